"""The indices of faults name tests that exist, for every fault."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
FAULTS = [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 13, 14, 18, 23, *range(26, 36), 37, 38, 39, 42, 43]
INDICES = {"bad_input.txt": [f"{n:02d}" for n in FAULTS], "original_bugs.txt": [f"B{n:02d}" for n in range(1, 39)]}


@cache
def functions_of(path: str) -> set[str]:
    nodes = ast.walk(ast.parse((FOLDER / path).read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", INDICES)
def test_an_index_names_tests_that_exist_for_every_fault(name: str) -> None:
    lines = [line for line in (FOLDER / "index" / name).read_text(encoding="utf-8").splitlines() if "::" in line]
    named = [(fault, *test.split("::")) for fault, test in (line.split() for line in lines)]
    assert not [f"{path}::{test}" for _, path, test in named if test not in functions_of(path)]
    assert sorted({fault for fault, _, _ in named}) == INDICES[name]
