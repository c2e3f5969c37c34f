"""The serving benchmark's contestants answer the same question; nothing here is timed."""

import argparse
import dataclasses

import numpy as np
import pytest

from tml.benchmarks import light_ranker_serving as benchmark
from tml.projects.light_ranker.export.check import trainer_scores

ARGUMENTS = argparse.Namespace(candidates=30, distinct=2, rounds=2, requests=3)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "TOTAL_ROWS", 5_000)
        folder = tmp_path_factory.mktemp("serving")
        split = benchmark._write_features(folder / "features", 13)
        plain = benchmark._write_features(folder / "plain_features", 0)
        yield folder, split, plain


def test_the_tables_have_the_rows_that_are_promised():
    sizes = benchmark._table_sizes()
    assert len(sizes) == 26
    assert sum(sizes) == pytest.approx(2_700_000, rel=0.001)


def test_the_plain_model_is_the_split_one_with_other_sides(features):
    _, split, plain = features
    assert not any(feature.side == "user" for feature in plain.spec.features)
    assert sum(feature.side == "user" for feature in split.spec.features) == 13 + 6
    rows = benchmark._encoded(split.spec, np.random.default_rng(0), 20)
    scores = trainer_scores(benchmark._model(split, "none"), None, rows)["raw"]
    same = dataclasses.replace(rows, spec=plain.spec)
    np.testing.assert_array_equal(scores, trainer_scores(benchmark._model(plain, "none"), None, same)["raw"])
    assert len(set(scores.tolist())) == 20


def test_every_form_of_a_request_is_the_same_request(features):
    folder, split, _ = features
    for request in benchmark._requests(folder, ARGUMENTS):
        sides = np.array([feature.side == "user" for feature in split.spec.ids])
        np.testing.assert_array_equal(request.rows.ids[:, sides], np.repeat(request.user.ids, 30, axis=0))
        np.testing.assert_array_equal(request.rows.ids[:, ~sides], request.candidates.ids)
        encoded = split.encode({name: request.raw_candidates[name] for name in split.columns("candidate")}, "candidate")
        np.testing.assert_array_equal(encoded.continuous, request.candidates.continuous)
        assert set(request.raw_user) == set(split.columns("user"))


def test_contestants_take_turns(features):
    folder, *_ = features
    turns = []
    contestants = {name: lambda request, name=name: turns.append(name) for name in ("ours", "theirs")}
    found = benchmark._measure(contestants, benchmark._requests(folder, ARGUMENTS), ARGUMENTS)
    assert [len(block) for blocks in found.values() for block in blocks] == [3] * 4
    num_calls = 2 + 3  # warm-up with the two requests there are, then three measured
    assert turns == (["ours"] * num_calls + ["theirs"] * num_calls) * 2
