"""Fixtures that several rooms' tests use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def keep_threads() -> Iterator[None]:
    """The number of torch's threads is put back after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
