"""Hashes of feature ids, as the original light ranker computes them, for numpy and torch int64 arrays alike.

All arithmetic is that of unsigned 64-bit integers that wrap. Signed integers wrap to the same bits, and each result is
cut to its low bits after the shift, so the signed shifts of numpy, torch and ONNX give the same ids; torch code that
calls these functions can be exported. Sources: `integer_multiplicative_hashing` and its 64-bit sibling of libtwml's
hashing discretizer, `limit_bits` and `multiplicative_hash` of twml.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from tml.common.errors import ConfigError

Ids = TypeVar("Ids", np.ndarray, Tensor)
HashWidth = Literal[32, 64]

# The 64-bit constant is 14695981039346656039, written as the signed number with the same bits.
_BIN_CONSTANTS: dict[HashWidth, int] = {32: 2_654_435_761, 64: 14_695_981_039_346_656_039 - (1 << 64)}
_REHASH_CONSTANT = 2_479_700_537


def limit_bits(ids: Ids, num_bits: int) -> Ids:
    """The low `num_bits` bits of `ids` (int64, any shape): ids in `[0, 2 ** num_bits)`, also of negative ids."""
    _check(ids, num_bits, 63)
    return ids & ((1 << num_bits) - 1)


def rehash(ids: Ids, num_bits: int) -> Ids:
    """Spread ids whose low bits are not spread: `(ids * 2479700537) mod 2 ** num_bits`, for fewer than 32 bits.

    The constant is odd, hence two ids that differ in their low `num_bits` bits never meet.
    """
    _check(ids, num_bits, 31)
    return limit_bits(ids * _REHASH_CONSTANT, num_bits)


def hash_bins(ids: Ids, bins: Ids, num_bits: int, width: HashWidth = 32) -> Ids:
    """Hash (feature id, bin) into `[0, 2 ** num_bits)`.

    `x = (id * c + bin) * c`, of which bits `width - num_bits` up to `width` are taken. With a width of 32 only the low
    32 bits of an id matter.

    Args:
        ids: int64, any shape.
        bins: int64, the same shape or one that broadcasts with it.
        num_bits: of the output, 1 to 32 (63 with a width of 64).
        width: of the integers that are hashed.

    Returns:
        int64 ids.
    """
    _check(ids, num_bits, min(width, 63))
    constant = _BIN_CONSTANTS[width]
    mixed = (ids * constant + bins) * constant
    return (mixed >> (width - num_bits)) & ((1 << num_bits) - 1)


def _check(ids: np.ndarray | Tensor, num_bits: int, most: int) -> None:
    if ids.dtype not in (np.int64, torch.int64):
        raise ConfigError("ids have to be int64", where="hash of feature ids", value=str(ids.dtype), limit="int64")
    if not 1 <= num_bits <= most:
        raise ConfigError(
            "number of bits out of range", where="hash of feature ids", value=num_bits, limit=f"1..{most}"
        )
