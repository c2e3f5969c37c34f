"""From ids to rows of a feature's table: by vocabulary, by hash, or as they are.

Row 0 means missing and row 1 unknown; known ids begin at row 2.
"""

from __future__ import annotations

from typing import Protocol

import mmh3
import numpy as np

from tml.projects.light_ranker.features.kinds import HashedConfig, IdentityConfig
from tml.projects.light_ranker.features.raw_columns import Ids
from tml.projects.light_ranker.features.spec import FIRST_KNOWN, MISSING, UNKNOWN


class Lookup(Protocol):
    """Finds the rows of ids."""

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        ...

    def rows(self, ids: Ids) -> np.ndarray:
        """int64 [n], each from 1 to `num_rows` - 1, whether or not an id is missing."""
        ...


class HashedLookup:
    """Row `2 + hash % num_buckets`.

    The hash of an integer is MurmurHash3's 64-bit finaliser; that of a text is the first half of MurmurHash3_x64_128
    (seed 0) over its UTF-8 bytes; both unsigned.
    """

    def __init__(self, config: HashedConfig) -> None:
        self._num_buckets = np.uint64(config.num_buckets)

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return int(self._num_buckets) + FIRST_KNOWN

    def rows(self, ids: Ids) -> np.ndarray:
        """int64 [n]."""
        return (hash_ids(ids) % self._num_buckets).astype(np.int64) + FIRST_KNOWN


class IdentityLookup:
    """Row `2 + id`; ids outside the table come out as unknown, and are told by `outside`."""

    def __init__(self, config: IdentityConfig) -> None:
        self.num_ids = config.num_ids

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return self.num_ids + FIRST_KNOWN

    def outside(self, ids: Ids) -> np.ndarray:
        """bool [n]: not an integer from 0 to `num_ids` - 1."""
        outside = (ids.values < 0) | (ids.values >= self.num_ids)
        return outside if ids.foreign is None else outside | ids.foreign

    def rows(self, ids: Ids) -> np.ndarray:
        """int64 [n]."""
        return np.where(self.outside(ids), UNKNOWN, ids.values + FIRST_KNOWN)


def hash_ids(ids: Ids) -> np.ndarray:
    """64-bit hashes of ids (see `HashedLookup`): uint64 [n]."""
    if isinstance(ids.values, np.ndarray):
        return finalise(ids.values.astype(np.uint64))
    encoded = ids.values.dictionary_encode()
    hashes = np.array([mmh3.hash64(text, signed=False)[0] for text in encoded.dictionary.to_pylist()], np.uint64)
    return hashes[encoded.indices.to_numpy()] if len(encoded) else np.empty(0, np.uint64)


def finalise(keys: np.ndarray) -> np.ndarray:
    """MurmurHash3's fmix64, which spreads 64-bit integers: uint64 [n] -> uint64 [n]."""
    keys = keys ^ (keys >> np.uint64(33))
    keys = keys * np.uint64(0xFF51AFD7ED558CCD)
    keys = keys ^ (keys >> np.uint64(33))
    keys = keys * np.uint64(0xC4CEB9FE1A85EC53)
    return keys ^ (keys >> np.uint64(33))


def find_rows(lookup: Lookup, ids: Ids) -> np.ndarray:
    """The row of each id: 0 where missing, 1 where unknown or of another type; int64 [n]."""
    rows = lookup.rows(ids)
    if ids.foreign is not None:
        rows[ids.foreign] = UNKNOWN
    if ids.missing is not None:
        rows[ids.missing] = MISSING
    return rows
