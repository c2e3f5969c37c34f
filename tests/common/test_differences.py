"""Differences of plain values: their paths, both values, and what counts as equal."""

from __future__ import annotations

import math

import pytest

from tml.common.differences import Difference, differences


def test_every_difference_has_its_path_and_both_values() -> None:
    old = {"a": {"dim": 64, "x": 1}, "tables": [{"name": "user"}, {"name": "tweet"}], "same": [1], "flag": 1}
    new = {"a": {"dim": 128, "y": None}, "tables": [{"name": "person"}], "same": (1,), "flag": True}
    assert list(map(str, differences(old, new))) == [
        "a.dim: 64 -> 128",
        "a.x: 1 -> (absent)",
        "a.y: (absent) -> null",
        'tables.0.name: "user" -> "person"',
        'tables.1: {"name": "tweet"} -> (absent)',
        "flag: 1 -> true",
    ]


def test_a_list_of_scalars_is_one_value() -> None:
    assert list(map(str, differences({"ids": [1, 2, 3]}, {"ids": [2, 1]}))) == ["ids: [1, 2, 3] -> [2, 1]"]
    assert list(map(str, differences({"ids": []}, {"ids": [{"a": 1}]}))) == ['ids.0: (absent) -> {"a": 1}']


def test_what_looks_the_same_is_the_same() -> None:
    assert differences({"a": math.nan, "b": 1, "c": [math.nan]}, {"b": 1.0, "c": (math.nan,), "a": math.nan}) == []
    assert [change.path for change in differences({"a": [True]}, {"a": [1]})] == ["a"]


@pytest.mark.parametrize(
    ("path", "is_below"), [("model", True), ("model.loss", True), ("mod", False), ("model.loss.x", False)]
)
def test_places_below_a_path(path: str, is_below: bool) -> None:
    assert Difference("model.loss", "softmax", "ranking").lies_below("other", path) == is_below
