from __future__ import annotations

import itertools
import math

import mmh3
import numpy as np
import pytest
import torch

from tml.common.errors import ConfigError, DataError
from tml.common.modules.discretizers import HashingDiscretizer
from tml.projects.light_ranker.lolly import hashed as module
from tml.projects.light_ranker.lolly.hashed import (
    HashedBins,
    HashedLolly,
    bin_rows,
    cover,
    feature_row,
    hash_lolly,
    lolly_of_weights,
)
from tml.projects.light_ranker.lolly.model import Bucket, LollyModel, NoBucketError
from tml.projects.light_ranker.lolly.text import format_lolly, parse_lolly

INF = math.inf
BITS = 22


def planted(seed: int = 0, num_features: int = 20) -> LollyModel:
    """Weights of full float64 precision, bounds from the whole line, up to 12 buckets of each feature."""
    draws = np.random.default_rng(seed)
    binary = {f"tweet.flag_{i}": draws.normal() for i in range(num_features)}
    discretized = {}
    for i in range(num_features):
        inner = np.unique(draws.normal(scale=10, size=draws.integers(1, 12)).round(1))
        edges = [-INF, *map(float, inner), INF]
        discretized[f"user.number_{i}"] = tuple(Bucket(lo, hi, draws.normal()) for lo, hi in itertools.pairwise(edges))
    return LollyModel("planted", draws.normal(), binary, discretized)


def random_rows(model: LollyModel, num_rows: int, seed: int = 1) -> list[dict[str, float]]:
    """Rows in which features are missing, and every fourth value lies on a bound."""
    draws = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        row = {feature: 1.0 for feature in model.binary if draws.random() < 0.5}
        for feature, buckets in model.discretized.items():
            if draws.random() < 0.8:
                row[feature] = float(draws.normal(scale=12))
                if draws.random() < 0.25 and len(buckets) > 1:
                    row[feature] = buckets[draws.integers(1, len(buckets))].lo
        rows.append(row)
    return rows


def by_hand(model: LollyModel, bits: int) -> tuple[dict[int, float], dict[str, tuple[int, list[float]]]]:
    """The original's initialisation with Python's integers: weights by row, and id and negated bounds by feature."""
    mask = (1 << bits) - 1
    weights, bounds = {}, {}
    for feature, weight in model.binary.items():
        weights[mmh3.hash64(feature.encode("utf-16-le"), 0, True, True)[0] & mask] = weight
    for feature, buckets in model.discretized.items():
        key = mmh3.hash64(feature.encode("utf-16-le"), 0, True, True)[0] & mask
        pairs = sorted((-bucket.lo, bucket.weight) for bucket in buckets)
        for index, (_, weight) in enumerate(pairs):
            mixed = (key * 2654435761 + index) * 2654435761 % 2**64
            weights[(mixed >> (32 - bits)) & mask] = weight
        bounds[feature] = key, [bound for bound, _ in pairs]
    return weights, bounds


def score_by_rows(model: LollyModel, hashed: HashedLolly, row: dict[str, float]) -> float:
    """The logit through the hashed weights."""
    terms = [hashed.bias]
    for feature, value in row.items():
        if feature in hashed.presence:
            terms.append(hashed.weight[hashed.presence[feature]])
        else:
            bins = hashed.bins[feature]
            terms.append(hashed.weight[bins.rows[np.searchsorted(bins.boundaries, value, side="right")]])
    return math.fsum(terms)


def test_weights_and_boundaries_are_those_of_the_originals_rule():
    model = planted()
    weights, bounds = by_hand(model, BITS)
    hashed = hash_lolly(model, BITS)
    found = np.flatnonzero(hashed.weight)
    assert {int(row): hashed.weight[row] for row in found} == weights
    ids, boundaries = hashed.negated_boundaries()
    for feature, key, row in zip(hashed.bins, ids, boundaries, strict=True):
        assert (key, list(row[: len(bounds[feature][1])])) == bounds[feature]
        assert np.isposinf(row[len(bounds[feature][1]) :]).all()


def test_hashed_weights_score_exactly_as_the_text():
    model = planted()
    hashed = hash_lolly(model, BITS)
    for row in random_rows(model, 300):
        assert score_by_rows(model, hashed, row) == model.score(row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_original_path_of_negated_values_scores_exactly_as_the_text(dtype):
    """Mask, negate, discretise, sum of weights: in float32 as the text read in float32, in float64 as the text."""
    model = planted(seed=2)
    if dtype == torch.float32:
        model = model.in_float32()
    hashed = hash_lolly(model, BITS)
    discretizer = HashingDiscretizer(*hashed.negated_boundaries(), output_bits=BITS, dtype=dtype)
    weight = torch.from_numpy(hashed.weight).to(dtype)
    for row in random_rows(model, 200):
        values = torch.tensor(list(row.values()), dtype=dtype)
        ids = torch.tensor([feature_row(feature, BITS) for feature in row])
        rows, _, present = discretizer(ids, -values)
        assert present.all()
        text = model.score(dict(zip(row, values.tolist(), strict=True)))
        # Term by term it is the same; the sum alone is taken without rounding, as the text's is.
        assert math.fsum([hashed.bias, *weight[rows].tolist()]) == text


def test_the_weights_survive_export_and_import():
    model = planted(seed=3)
    hashed = hash_lolly(model, BITS)
    text = lolly_of_weights("planted", hashed.bias, hashed.weight, hashed.presence, hashed.bins, left_closed=True)
    assert text == model
    again = parse_lolly(list(format_lolly(text)))
    assert again == model
    hashed_again = hash_lolly(again, BITS)
    assert np.array_equal(hashed_again.weight, hashed.weight)
    assert (hashed_again.bins, hashed_again.presence) == (hashed.bins, hashed.presence)


def test_float32_weights_survive_export_and_import_bit_by_bit():
    model = planted(seed=4).in_float32()
    hashed = hash_lolly(model, BITS)
    weight = hashed.weight.astype(np.float32)
    text = lolly_of_weights("m", hashed.bias, weight, hashed.presence, hashed.bins, left_closed=True)
    again = hash_lolly(parse_lolly(list(format_lolly(text))), BITS)
    assert np.array_equal(again.weight.astype(np.float32), weight)


def test_fitted_bins_are_exported_with_the_same_float32_values_in_each():
    boundaries = tuple(float(np.float32(edge)) for edge in (-INF, -2.5, 0.0, 0.1, 0.1, 7e-40, 3.3))
    boundaries = tuple(sorted(boundaries))
    rows = tuple(range(len(boundaries) + 1))
    weight = np.arange(len(rows), dtype=np.float32) + 1
    text = lolly_of_weights("m", 0.0, weight, {}, {"x": HashedBins(boundaries, rows)}, left_closed=False)
    around = [np.nextafter(np.float32(b), np.float32(s)) for b in boundaries[1:] for s in (-INF, INF)]
    for value in [*boundaries[1:], *map(float, around), -1e30, 1e30]:
        code = np.searchsorted(boundaries, value, side="left")
        assert text.score({"x": value}) == weight[code], value


def test_gaps_weigh_nothing_and_the_text_itself_refuses_them():
    model = LollyModel("m", 1.0, {}, {"x": (Bucket(0, 1, 2.0), Bucket(3, 4, 5.0))})
    covered = (
        Bucket(-INF, 0, 0.0), Bucket(0, 1, 2.0), Bucket(1, 3, 0.0), Bucket(3, 4, 5.0), Bucket(4, INF, 0.0),
    )  # fmt: skip
    assert cover(model.discretized["x"]) == covered
    hashed = hash_lolly(model, 12)
    assert [score_by_rows(model, hashed, {"x": value}) for value in (-9, 0, 1, 3, 4)] == [1, 3, 1, 6, 1]
    with pytest.raises(NoBucketError):
        model.score({"x": 2.0})


def test_fitted_bins_take_the_hashes_of_the_boundaries_below():
    assert bin_rows("user.age", 3, 20, left_closed=True) == bin_rows("user.age", 3, 20, left_closed=False)[::-1]
    key = mmh3.hash64("user.age".encode("utf-16-le"), 0, True, True)[0] & (2**20 - 1)
    expected = [(((key * 2654435761 + code) * 2654435761) >> 12) % 2**20 for code in range(4)]
    assert bin_rows("user.age", 3, 20, left_closed=False) == tuple(expected)


def test_colliding_hashes_are_refused_or_warned_about(monkeypatch):
    model = planted()
    with pytest.raises(DataError, match="collide") as raised:
        hash_lolly(model, 8)
    assert "input_size_bits" in str(raised.value)
    warned: list[str] = []
    monkeypatch.setattr(module.logger, "warning", lambda message, *values: warned.append(message % values))
    hashed = hash_lolly(model, 8, on_collision="warn")
    assert any("collide" in message for message in warned)
    collision = next(one for one in hashed.collisions if not one.harmless)
    assert hashed.weight[collision.row] == collision.weights[-1]


def test_rows_shared_at_equal_weight_are_kept_with_a_warning(monkeypatch):
    warned: list[str] = []
    monkeypatch.setattr(module.logger, "warning", lambda message, *values: warned.append(message % values))
    model = LollyModel("m", 0.0, {f"flag_{i}": 0.5 for i in range(40)}, {})
    hashed = hash_lolly(model, 6)
    assert hashed.collisions
    assert all(collision.harmless for collision in hashed.collisions)
    assert len(warned) == 1
    row = dict.fromkeys(model.binary, 1.0)
    assert score_by_rows(model, hashed, row) == model.score(row) == 20.0


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="out of range"):
        hash_lolly(planted(), 33)
    with pytest.raises(DataError, match="too large for float32"):
        hash_lolly(LollyModel("m", 0.0, {"a": 1e39}, {}), BITS)
