"""Ids are found among known ones, however many there are."""

from __future__ import annotations

import numpy as np
import pytest

from tml.projects.light_ranker.records.targets import IdTable


@pytest.mark.parametrize("num_ids", [0, 1, 2, 61, 500, 3000])
def test_every_key_is_found_and_no_other(num_ids):
    rng = np.random.default_rng(num_ids)
    ids = np.unique(rng.integers(-(2**63), 2**63 - 1, num_ids))
    rng.shuffle(ids)
    keys = np.concatenate([ids, rng.integers(-(2**63), 2**63 - 1, 500), [0, -1, 2**63 - 1, -(2**63)]])
    place = {key: at for at, key in enumerate(ids.tolist())}
    assert IdTable(ids.tolist()).find(keys).tolist() == [place.get(key, -1) for key in keys.tolist()]


def test_small_numbers_may_be_ids():
    assert IdTable(range(100)).find(np.arange(-5, 105)).tolist() == [-1] * 5 + list(range(100)) + [-1] * 5


def test_ids_that_share_their_low_or_high_bits_are_told_apart():
    ids = [number << 48 for number in range(50)] + [-(number << 3) for number in range(1, 50)]
    assert IdTable(ids).find(np.array(ids)).tolist() == list(range(99))
