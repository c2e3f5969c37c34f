"""Fixtures that several rooms' tests use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tml.ml_logging import rank_logging


@pytest.fixture
def keep_threads() -> Iterator[None]:
    """The number of torch's threads is put back after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `warn_once` has said in other tests is said again."""
    monkeypatch.setattr(rank_logging, "_warned", set())
