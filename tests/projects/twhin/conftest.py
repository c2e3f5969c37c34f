"""What tests of exports have in common: a model of two tables and two relations."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from tests.projects.twhin.export_helpers import make_scorer, make_tables, write_vocab
from tml.projects.twhin.models.relations import RelationScorer


@pytest.fixture
def tables() -> dict[str, Tensor]:
    return make_tables()


@pytest.fixture
def scorer() -> RelationScorer:
    return make_scorer()


@pytest.fixture
def vocab_dir(tmp_path: Path) -> Path:
    return write_vocab(tmp_path / "vocab")
