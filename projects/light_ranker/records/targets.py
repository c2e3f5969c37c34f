"""Finding features by id in decoded records, and reading labels and weights from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from tml.projects.light_ranker.records.columns import RecordColumns

_MAX_SLOT_BITS = 20


class IdTable:
    """Finds many ids among a few known ones.

    A multiplicative hash without collisions, found by trying, gives each key the one id that it may be. For thousands
    of ids, where there is no such hash of a moderate size, a binary search does.

    Args:
        ids: each once.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = np.array(ids, np.int64)
        self._order = np.argsort(self._ids)
        self._multiplier, self._slots = self._hash()

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The place of each key (int64 [N]) among the ids, or -1, int64 [N]."""
        if not len(self._ids):
            return np.full(len(keys), -1)
        if self._slots is not None:
            place = self._slots[self._slot_of(keys, self._multiplier, len(self._slots))]
        else:
            place = np.searchsorted(self._ids, keys, sorter=self._order)
            place = self._order[np.minimum(place, len(self._ids) - 1)]
        return np.where(self._ids[place] == keys, place, -1)

    def _hash(self) -> tuple[int, np.ndarray | None]:
        # With as many slots as pairs of ids, every second multiplier or so is free of collisions.
        num_slots = 1 << max(2 * len(self._ids).bit_length(), 1)
        if num_slots > 1 << _MAX_SLOT_BITS:
            return 0, None
        for multiplier in np.random.default_rng(0).integers(0, 2**63, 64).tolist():
            slot_of = self._slot_of(self._ids, 2 * multiplier + 1, num_slots)
            if len(np.unique(slot_of)) == len(self._ids):
                slots = np.zeros(num_slots, np.int64)
                slots[slot_of] = np.arange(len(self._ids))
                return 2 * multiplier + 1, slots
        return 0, None

    @staticmethod
    def _slot_of(keys: np.ndarray, multiplier: int, num_slots: int) -> np.ndarray:
        return (keys.view(np.uint64) * np.uint64(multiplier)) >> np.uint64(65 - num_slots.bit_length())


def read_labels(columns: RecordColumns, ids: Sequence[int], taken: Iterable[int] = ()) -> np.ndarray:
    """The labels of records, float64 [B, len(ids)]: 1 for a binary feature, a continuous feature's value, else NaN.

    Args:
        columns: B records.
        ids: of the labels.
        taken: ids that are features, and so no labels.
    """
    return _targets(columns, ("binary", "continuous"), ids, taken, np.nan)


def read_weights(columns: RecordColumns, ids: Sequence[int], taken: Iterable[int] = ()) -> np.ndarray:
    """The weights of records, float64 [B, len(ids)]: a continuous feature's value, else 0.

    Args:
        columns: B records.
        ids: of the weights.
        taken: ids that are features or labels, and so no weights.
    """
    return _targets(columns, ("continuous",), ids, taken, 0.0)


def _targets(
    columns: RecordColumns, kinds: Sequence[str], ids: Sequence[int], taken: Iterable[int], default: float
) -> np.ndarray:
    out = np.full((columns.num_records, len(ids)), default)
    wanted, others = IdTable(ids), IdTable(list(taken))
    for kind in kinds if len(ids) else ():
        entries = columns.entries[kind]
        chosen = np.flatnonzero(wanted.find(entries.keys) >= 0)
        entries = entries.at(chosen[others.find(entries.keys[chosen]) < 0])
        out[entries.rows, wanted.find(entries.keys)] = 1.0 if entries.values is None else entries.values
    return out
