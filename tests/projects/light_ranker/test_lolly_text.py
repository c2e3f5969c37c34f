from __future__ import annotations

import itertools
import math
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tml.common.errors import ConfigError, DataError
from tml.projects.light_ranker.lolly import text
from tml.projects.light_ranker.lolly.model import Bucket, LollyModel, NoBucketError
from tml.projects.light_ranker.lolly.text import format_lolly, parse_lolly, read_lolly, write_lolly

DZ = ".dz/dz_model=mdl/dz_range="
TEXT = f"""\
unified_engagement\tbias\t-0.935945
unified_engagement\tencoded_tweet_features.is_user_spam_flag\t-0.181130
unified_engagement\tencoded_tweet_features.has_link\t+2.5e-1
unified_engagement\tuser_reputation\t0.0
unified_engagement\tuser_reputation{DZ}-inf_1.000000e+00\t-0.5
unified_engagement\tuser_reputation{DZ}1.000000e+00_2.000000e+00\t0.031004
unified_engagement\tuser_reputation{DZ}2.000000e+00_inf\t.75
unified_engagement\tage{DZ}-3.5_-1E-2\t1.
"""


def lines(*rows: tuple[str, str], model: str = "m") -> list[str]:
    return [f"{model}\t{feature}\t{weight}" for feature, weight in rows]


@pytest.fixture
def model() -> LollyModel:
    return parse_lolly(TEXT.splitlines())


def test_every_line_form_is_read(model):
    assert model.name == "unified_engagement"
    assert model.bias == -0.935945
    assert model.binary == {
        "encoded_tweet_features.is_user_spam_flag": -0.18113,
        "encoded_tweet_features.has_link": 0.25,
    }
    assert model.discretized == {
        "user_reputation": (Bucket(-math.inf, 1, -0.5), Bucket(1, 2, 0.031004), Bucket(2, math.inf, 0.75)),
        "age": (Bucket(-3.5, -0.01, 1.0),),
    }


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, -0.935945),
        ({"encoded_tweet_features.has_link": 1}, -0.935945 + 0.25),
        ({"encoded_tweet_features.has_link": 0.0}, -0.935945 + 0.25),
        ({"encoded_tweet_features.has_link": False}, -0.935945),
        ({"encoded_tweet_features.has_link": np.False_}, -0.935945),
        ({"encoded_tweet_features.has_link": None, "user_reputation": math.nan}, -0.935945),
        ({"user_reputation": -1e30}, -0.935945 - 0.5),
        ({"user_reputation": 0.999999}, -0.935945 - 0.5),
        ({"user_reputation": 1.0}, -0.935945 + 0.031004),
        ({"user_reputation": 2}, -0.935945 + 0.75),
        ({"user_reputation": 2, "age": -3.5}, -0.935945 + 0.75 + 1),
        ({"a feature the model does not know": 7}, -0.935945),
    ],
)
def test_the_score_is_bias_plus_present_weights_plus_bucket_weights(model, row, expected):
    assert model.score(row) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("value", [-0.01, -3.6, math.inf])
def test_a_value_outside_every_bucket_is_an_error_and_a_lookup_error(model, value):
    with pytest.raises(NoBucketError, match="feature 'age'") as raised:
        model.score({"age": value})
    assert isinstance(raised.value, LookupError)
    assert isinstance(raised.value, DataError)
    assert raised.value.limit == "[-3.5, -0.01)"


def test_a_bias_of_exactly_zero_is_the_bias_and_no_feature():
    model = parse_lolly(lines(("bias", "0.0"), ("a", "1")))
    assert (model.bias, dict(model.binary)) == (0.0, {"a": 1.0})


def test_a_discretised_feature_needs_no_plain_line_and_a_model_no_discretised_feature():
    assert parse_lolly(lines(("bias", "1"), (f"a{DZ}0_1", "2"))).score({"a": 0.5}) == 3
    assert parse_lolly(lines(("bias", "1"))).discretized == {}


def test_the_plain_weight_of_a_discretised_feature_is_dropped_with_a_warning(monkeypatch):
    warned: list[str] = []
    monkeypatch.setattr(text.logger, "warning", lambda message, *values: warned.append(message % values))
    model = parse_lolly(lines(("a", "5"), ("bias", "1"), (f"a{DZ}0_1", "2")))
    assert warned == ["lolly model: 1 discretised features also have a plain weight, which is dropped: a"]
    assert model.score({"a": 0.5}) == 3
    assert model.binary == {}


def test_buckets_left_empty_by_rounding_for_display_are_dropped():
    model = parse_lolly(lines(("bias", "0"), (f"a{DZ}1_1", "9"), (f"a{DZ}1_1", "8"), (f"a{DZ}1_2", "3")))
    assert model.discretized == {"a": (Bucket(1, 2, 3.0),)}
    assert model.score({"a": 1.0}) == 3


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ("m\tbias\t1", "twice"),
        ("m\tflag\t1", "twice"),
        (f"m\tx{DZ}0.0_1.0\t2", "twice"),
        ("m flag2 1", "not three fields"),
        ("m\tflag2", "not three fields"),
        ("m\tflag2\t1\t2", "not three fields"),
        ("m\t\t1", "not three fields"),
        ("m\tflag2\tone", "no finite number"),
        ("m\tflag2\tnan", "no finite number"),
        ("m\tflag2\tinf", "no finite number"),
        ("m\tflag2\t1e999", "no finite number"),
        ("m\tflag2\t1_0", "no finite number"),
        (f"m\ty{DZ}1_0\t1", "ends before it begins"),
        (f"m\ty{DZ}1\t1", "not a range"),
        (f"m\ty{DZ}0_nan\t1", "not a range"),
        (f"m\ty{DZ}0_1_2\t1", "not a range"),
        ("m\ty.dz/dz_model=tree/dz_range=0_1\t1", "not a range"),
    ],
)
def test_a_malformed_or_repeated_line_is_named_by_its_number(bad, what):
    good = lines(("bias", "0.5"), ("flag", "1"), (f"x{DZ}0_1", "1"))
    with pytest.raises(DataError, match=what) as raised:
        parse_lolly([*good, "", bad], source="model.tsv")
    assert raised.value.where == "model.tsv, line 5"


@pytest.mark.parametrize(
    ("given_lines", "what"),
    [
        ([], "empty lolly model"),
        (lines(("a", "1")), "without a bias"),
        (lines(("bias", "1"), (f"x{DZ}0_2", "1"), (f"x{DZ}1_3", "1")), "overlap"),
        (lines(("bias", "1"), (f"x{DZ}1_1", "1")), "without a bucket"),
        (lines(("bias", "1")) + lines(("bias", "2"), model="n"), "several lolly models"),
    ],
)
def test_a_model_that_cannot_be_is_refused(given_lines, what):
    with pytest.raises(DataError, match=what):
        parse_lolly(given_lines)


def test_one_of_several_models_is_taken_by_name():
    both = lines(("bias", "1"), ("a", "1")) + lines(("bias", "2"), ("a", "3"), model="n")
    assert parse_lolly(both, "n").score({"a": 1}) == 5
    with pytest.raises(DataError, match="no such lolly model"):
        parse_lolly(both, "o")


def test_files_are_read_whole_and_what_is_no_text_is_refused(tmp_path, model):
    path = tmp_path / "model.tsv"
    path.write_bytes(TEXT.replace("\n", "\r\n").encode())
    assert read_lolly(path) == model
    path.write_bytes(b"m\tbias\t\xff\xfe")
    with pytest.raises(DataError, match="byte 7"):
        read_lolly(path)
    with pytest.raises(DataError, match=r"absent\.tsv"):
        read_lolly(tmp_path / "absent.tsv")


def test_a_discretised_feature_is_written_with_the_plain_line_the_original_needs(model):
    assert "unified_engagement\tage\t0.0" in list(format_lolly(model))


@pytest.mark.parametrize("feature", ["a\tb", "a\nb", "bias", "a.dz/dz_model=mdl/dz_range=0_1", " "])
def test_a_name_that_would_break_a_line_is_not_written(feature):
    with pytest.raises(ConfigError):
        list(format_lolly(LollyModel("m", 0.0, {feature: 1.0}, {})))


numbers = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(string.ascii_letters + string.digits + "._=#-é ", min_size=1).filter(
    lambda n: n.strip() and n != "bias"
)


@st.composite
def models(draw) -> LollyModel:
    features = draw(st.lists(names, unique=True, max_size=8))
    num_binary = draw(st.integers(0, len(features)))
    discretized = {}
    for feature in features[num_binary:]:
        bounds = st.floats(allow_nan=False).map(lambda x: x + 0.0)
        ends = sorted(draw(st.lists(bounds, min_size=2, max_size=6, unique=True)))
        discretized[feature] = tuple(
            Bucket(lo, hi, draw(numbers)) for lo, hi in itertools.pairwise(ends) if draw(st.booleans())
        ) or (Bucket(ends[0], ends[-1], draw(numbers)),)
    return LollyModel("m", draw(numbers), {f: draw(numbers) for f in features[:num_binary]}, discretized)


@settings(max_examples=60, deadline=None)
@given(models())
def test_written_and_read_again_it_is_the_same_model(model):
    assert parse_lolly(list(format_lolly(model))) == model


def test_a_file_written_and_read_again_is_the_same_model(tmp_path, model):
    write_lolly(model, tmp_path / "again.tsv")
    assert read_lolly(tmp_path / "again.tsv") == model


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="mbias\t01.e+-_infdz/\n =" + DZ, max_size=80))
def test_any_text_is_a_model_or_a_data_error(anything):
    try:
        model = parse_lolly(anything.splitlines())
    except DataError:
        return
    assert math.isfinite(model.score({}))


def test_a_table_scores_like_its_rows(model):
    draws = np.random.default_rng(3)
    reputation = np.where(draws.random(200) < 0.3, np.nan, draws.normal(size=200) * 2).astype(np.float32)
    columns = {"user_reputation": reputation, "encoded_tweet_features.has_link": draws.random(200) < 0.5}
    expected = [model.score({name: values[row] for name, values in columns.items()}) for row in range(200)]
    np.testing.assert_allclose(model.score_columns(columns, 200), expected, rtol=0, atol=1e-15)
    columns["age"] = np.full(200, np.nan)
    columns["age"][17] = 5.0
    with pytest.raises(NoBucketError, match="row 17"):
        model.score_columns(columns, 200)


def test_float32_bounds_that_meet_leave_no_empty_bucket():
    close = LollyModel(
        "m", 0.1, {"f": 0.2}, {"x": (Bucket(0, 0.3, 1), Bucket(0.3, 0.3 + 1e-12, 2), Bucket(0.3 + 1e-12, 1, 3))}
    )
    rounded = close.in_float32()
    assert rounded.discretized == {"x": (Bucket(0, float(np.float32(0.3)), 1), Bucket(float(np.float32(0.3)), 1, 3))}
    assert (rounded.bias, rounded.binary["f"]) == (float(np.float32(0.1)), float(np.float32(0.2)))
