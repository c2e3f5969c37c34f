"""Hashes of feature ids, against slow Python integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.common.onnx_session import exported
from tml.common.errors import ConfigError
from tml.common.modules.hashing import HashWidth, hash_bins, limit_bits, rehash

IDS = np.array([0, 1, 255, 12_345, -1, 2**62 + 7, -(2**63), 2**63 - 1, -7_046_029_254_386_353_131], dtype=np.int64)


def slow_hash(feature_id: int, bin_number: int, num_bits: int, width: int) -> int:
    """C's uint64 arithmetic, written with unbounded integers."""
    constant = {32: 2654435761, 64: 14695981039346656039}[width]
    x = (feature_id % 2**64) * constant % 2**64
    x = (x + bin_number) % 2**64
    x = x * constant % 2**64
    return (x >> (width - num_bits)) % 2**num_bits


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("num_bits", [1, 12, 22, 32])
def test_hash_equals_slow_python_integers(width: HashWidth, num_bits: int) -> None:
    bins = np.arange(len(IDS), dtype=np.int64) * 3
    expected = [slow_hash(int(one), int(number), num_bits, width) for one, number in zip(IDS, bins, strict=True)]
    assert hash_bins(IDS, bins, num_bits, width).tolist() == expected
    assert hash_bins(torch.from_numpy(IDS), torch.from_numpy(bins), num_bits, width).tolist() == expected


def test_hash_of_a_small_case_by_hand() -> None:
    # (1 * c + 1) * c with c = 2654435761 is 7046029257, ... modulo 2 ** 32, of which the top 8 bits are taken.
    c = 2654435761
    assert hash_bins(np.array([1]), np.array([1]), 8).tolist() == [((c + 1) * c % 2**32) >> 24]


def test_only_the_low_32_bits_of_an_id_matter_to_the_narrow_hash() -> None:
    low, high = np.array([77]), np.array([77 + (5 << 32)])
    bins = np.array([3])
    assert hash_bins(low, bins, 22).tolist() == hash_bins(high, bins, 22).tolist()
    assert hash_bins(low, bins, 22, 64).tolist() != hash_bins(high, bins, 22, 64).tolist()


def test_limit_bits_keeps_the_low_bits_of_negative_ids_too() -> None:
    expected = [int(one) % 2**22 for one in IDS]
    assert limit_bits(IDS, 22).tolist() == expected
    assert limit_bits(torch.from_numpy(IDS), 22).tolist() == expected


def test_rehash_equals_slow_python_integers_and_is_one_to_one() -> None:
    expected = [int(one) * 2479700537 % 2**20 for one in IDS]
    assert rehash(IDS, 20).tolist() == expected
    assert rehash(torch.from_numpy(IDS), 20).tolist() == expected
    assert len(np.unique(rehash(np.arange(2**12), 12))) == 2**12


def test_ids_are_spread_evenly() -> None:
    counts = np.bincount(hash_bins(np.arange(2**16), np.zeros(2**16, dtype=np.int64), 8), minlength=256)
    assert counts.min() > 200
    assert counts.max() < 320


@pytest.mark.parametrize("num_bits", [0, 33])
def test_bits_out_of_range_are_refused(num_bits: int) -> None:
    with pytest.raises(ConfigError, match="number of bits out of range"):
        hash_bins(IDS, IDS, num_bits)
    with pytest.raises(ConfigError, match="number of bits out of range"):
        rehash(IDS, 32)


def test_ids_of_another_type_are_refused() -> None:
    with pytest.raises(ConfigError, match="int64"):
        limit_bits(np.array([1], dtype=np.uint64), 8)


class _Hashes(torch.nn.Module):
    def forward(self, ids: torch.Tensor, bins: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return hash_bins(ids, bins, 22), hash_bins(ids, bins, 40, 64), limit_bits(ids, 12), rehash(ids, 12)


def test_exported_hashes_equal_eager_ones(tmp_path: Path) -> None:
    ids, bins = torch.from_numpy(IDS), torch.arange(len(IDS))
    run = exported(_Hashes(), (ids, bins), tmp_path)
    for ours, onnx in zip(_Hashes()(ids, bins), run(ids, bins), strict=True):
        assert torch.equal(ours, onnx)
