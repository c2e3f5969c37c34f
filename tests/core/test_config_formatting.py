import math
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tml.core.config import BaseConfig, config_hash, format_config, load_config


class Relation(BaseConfig):
    name: str
    operator: Literal["translation", "complex_diagonal"] = "translation"


class Config(BaseConfig):
    learning_rate: float = 1e-5
    limit: int | None = None
    path: Path = Path("runs/x")
    relations: tuple[Relation, ...] = ()
    names: dict[str, float] = {}  # noqa: RUF012
    by_number: dict[int, str] = {}  # noqa: RUF012


def _round_trip(config, tmp_path):
    path = tmp_path / "resolved.yaml"
    path.write_text(format_config(config), encoding="utf-8")
    return load_config(Config, path, environment={})


AWKWARD = (
    "1e-3",
    "yes",
    "null",
    "~",
    "",
    "007",
    "0x1",
    "$HOME",
    "${X}",
    "$$",
    "<<",
    "a: b",
    "# x",
    " x ",
    "é\n\ty",
    "1_000",
)


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_loads_back_equal(tmp_path, text):
    config = Config(relations=[Relation(name=text)], names={text: 1.0})
    assert _round_trip(config, tmp_path) == config


@pytest.mark.parametrize("value", [1e-5, 1e-300, 0.1, 3.0, 1e22, math.inf, -math.inf])
def test_floats_load_back_equal(tmp_path, value):
    config = Config(learning_rate=value, by_number={3: "x"}, path="/a b/c")
    assert _round_trip(config, tmp_path) == config


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=12),
    rate=st.floats(allow_nan=False),
)
def test_any_config_loads_back_equal(tmp_path_factory, text, rate):
    config = Config(learning_rate=rate, relations=[Relation(name=text)])
    assert _round_trip(config, tmp_path_factory.mktemp("c")) == config


def test_defaults_are_shown():
    assert "operator: translation" in format_config(Config(relations=[Relation(name="fav")]))


def test_hash_is_the_same_in_another_process_and_changes_with_a_value():
    code = (
        "from tml.core.config import config_hash; print(config_hash({'b': [1, {'y': 2.5, 'x': None}], 'a': 'ü'}))"
    )  # fmt: skip
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = config_hash({"a": "ü", "b": [1, {"x": None, "y": 2.5}]})
    assert out.stdout.strip() == ours
    assert len(ours) == 64
    assert config_hash(Config()) == config_hash(Config(limit=None))
    assert config_hash(Config()) != config_hash(Config(limit=1))
