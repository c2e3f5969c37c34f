"""Feature ids as the original computes them, and the keys that discrete and string features mix with their values.

The id of a feature is the first half of MurmurHash3_x64_128 (seed 0) over its name in UTF-16, little endian. A name
`left#right` is hashed in two steps, so that the same column of different tables shares the hash of `left`. The hashes
that come later, of ids with bins and into few bits, are in `tml.common.modules.hashing`.
"""

from __future__ import annotations

from functools import lru_cache

import mmh3
import numpy as np

from tml.common.errors import DataError

_MIX = np.uint64(2654435761)
_BYTES_AT_ONCE = 1 << 22  # of text that is hashed in one go; a longer text is hashed alone


@lru_cache(maxsize=1 << 16)
def feature_id(name: str) -> int:
    """The signed 64-bit id of a feature name.

    A `#` at the start of a name does not split it.

    Raises:
        DataError: the name holds a lone surrogate, so that it is no valid text.
    """
    left, sharp, right = name.partition("#")
    if not (left and sharp):
        return _first_half(_utf16(name))
    return _first_half(mmh3.hash_bytes(_utf16(left), 0, True)[:8] + _utf16(right))


def _first_half(data: bytes) -> int:
    return mmh3.hash64(data, 0, True, True)[0]


def _utf16(text: str) -> bytes:
    try:
        return text.encode("utf-16-le")
    except UnicodeEncodeError:
        raise DataError(
            "a name is not valid text", where="feature id", value=text, limit="UTF-8", fix="mend the name at its source"
        ) from None


def mix_discrete(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Key of a discrete feature with its value: `key ^ (17 + value) * 2654435761`, modulo 2^64, as int64 [N]."""
    mixed = (np.asarray(values, np.int64).view(np.uint64) + np.uint64(17)) * _MIX
    return np.asarray(keys, np.int64) ^ mixed.view(np.int64)


def mix_string(keys: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Key of a string feature with its value's `text_hashes`: exclusive or with the sign extended, as int64 [N]."""
    return np.asarray(keys, np.int64) ^ np.asarray(hashes, np.int32).astype(np.int64)


def text_hashes(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The hash `h = 31 * h + byte`, from 0, modulo 2^32, of many texts that lie in one buffer.

    Args:
        data: uint8, the buffer.
        starts, lengths: int64 [N], where each text lies in it.

    Returns:
        int32 [N].
    """
    hashes = np.zeros(len(starts), np.uint32)
    begin = 0
    ends = np.cumsum(lengths)
    while begin < len(starts):
        before = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + _BYTES_AT_ONCE, side="right")))
        hashes[begin:end] = _hashes_of(data, starts[begin:end], lengths[begin:end])
        begin = end
    return hashes.view(np.int32)


def _hashes_of(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Each hash as a sum of bytes times powers of 31, which numpy adds up for all texts at once."""
    hashes = np.zeros(len(starts), np.uint32)
    present = np.flatnonzero(lengths)
    if not len(present):
        return hashes
    starts, lengths = starts[present], lengths[present]
    powers = np.ones(int(lengths.max()), np.uint32)
    np.cumprod(np.full(len(powers) - 1, 31, np.uint32), dtype=np.uint32, out=powers[1:])
    place = ragged_arange(lengths)
    terms = data[np.repeat(starts, lengths) + place].astype(np.uint32)
    terms *= powers[np.repeat(lengths - 1, lengths) - place]
    first = np.cumsum(lengths) - lengths
    hashes[present] = np.add.reduceat(terms, first, dtype=np.uint32)
    return hashes


def ragged_arange(lengths: np.ndarray) -> np.ndarray:
    """`0, 1, ..., n - 1` for each n of `lengths`, one after another, int64."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) - np.repeat(ends - lengths, lengths)
