from __future__ import annotations

import math

import pytest

from tml.common.errors import DataError
from tml.projects.light_ranker.lolly.debug import (
    DebugLine,
    format_debug_line,
    name_features,
    parse_debug_line,
    score_debug_line,
)
from tml.projects.light_ranker.lolly.model import Bucket, LollyModel, NoBucketError
from tml.projects.light_ranker.records.feature_ids import feature_id

MODEL = LollyModel("m", -0.5, {"flag": 0.25}, {"age": (Bucket(-1.0, 0.0, 2.0), Bucket(0.0, math.inf, 4.0))})


def line_of(**values: float) -> str:
    ids = " ".join(str(feature_id(name)) for name in values)
    return f"[[-1.5]][[2e-3]][[{ids}]][[{' '.join(map(str, values.values()))}]]"


def test_negative_values_and_exponents_are_read():
    parsed = parse_debug_line(f"step 3: {line_of(flag=1.0, age=-2.5e-1)}\n")
    assert (parsed.logit, parsed.lolly_logit) == (-1.5, 0.002)
    assert parsed.values == {feature_id("flag"): 1.0, feature_id("age"): -0.25}
    assert parse_debug_line("[[inf]][[-inf]][[]][[]]") == DebugLine(math.inf, -math.inf, {})


def test_an_example_is_scored_by_the_text_model():
    assert score_debug_line(parse_debug_line(line_of(flag=1.0, age=-0.25)), MODEL) == -0.5 + 0.25 + 2
    assert score_debug_line(parse_debug_line(line_of(flag=0.0, age=7)), MODEL) == -0.5 + 0.25 + 4
    with pytest.raises(NoBucketError):
        score_debug_line(parse_debug_line(line_of(age=-1.5)), MODEL)


def test_ids_the_model_does_not_know_are_returned_and_add_nothing():
    line = parse_debug_line(line_of(flag=1.0, other=3.0))
    assert name_features(line, MODEL) == ({"flag": 1.0}, [feature_id("other")])
    assert score_debug_line(line, MODEL) == -0.25


def test_a_line_written_and_read_again_is_the_same():
    line = DebugLine(-1 / 3, 1e-300, {-(2**63): 0.1, 5: -math.inf})
    assert parse_debug_line(format_debug_line(line)) == line


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("", "not a debug line"),
        ("[[1]][[2]][[3]]", "not a debug line"),
        ("[[1]][[2]][[3 4]][[5]]", "cannot be read"),
        ("[[one]][[2]][[3]][[5]]", "cannot be read"),
        ("[[1]][[2]][[3.5]][[5]]", "cannot be read"),
        ("[[1]][[2]][[3 3]][[5 6]]", "twice"),
    ],
)
def test_a_line_of_another_form_is_refused(line, what):
    with pytest.raises(DataError, match=what) as raised:
        parse_debug_line(line, where="log.txt, line 9")
    assert raised.value.where == "log.txt, line 9"
