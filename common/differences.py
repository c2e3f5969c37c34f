"""What differs between two plain values, such as the settings of a run before and now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ABSENT = object()


@dataclass(frozen=True)
class Difference:
    """A place at which two values differ; as text `model.tables.0.embedding_dim: 64 -> 128`.

    Args:
        path: keys and indices from the root on, with dots between them.
        old: the value before, or `ABSENT`.
        new: the value now, or `ABSENT`.
    """

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.old)} -> {_shown(self.new)}"

    def lies_below(self, *paths: str) -> bool:
        """Whether it is at one of the paths, or deeper."""
        return any(self.path == path or self.path.startswith(f"{path}.") for path in paths)


def differences(old: Any, new: Any, path: str = "") -> list[Difference]:
    """Every difference of two values made of mappings, lists and scalars, in the order of the keys of `old`.

    A list is compared item by item if it holds mappings or lists, else as one value.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        pairs = [(str(key), old.get(key, ABSENT), new.get(key, ABSENT)) for key in keys]
    elif (_is_nested(old) and isinstance(new, list | tuple)) or (isinstance(old, list | tuple) and _is_nested(new)):
        pairs = [(str(i), _at(old, i), _at(new, i)) for i in range(max(len(old), len(new)))]
    else:
        return [] if _equal(old, new) else [Difference(path, old, new)]
    return [found for key, a, b in pairs for found in differences(a, b, f"{path}.{key}" if path else key)]


def _is_nested(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value)


def _at(values: Any, index: int) -> Any:
    return values[index] if index < len(values) else ABSENT


def _equal(old: Any, new: Any) -> bool:
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return len(old) == len(new) and all(map(_equal, old, new))
    # True == 1 in Python, but not in a config; NaN equals itself there, but not in Python.
    if isinstance(old, bool) != isinstance(new, bool):
        return False
    return bool(old == new) or (old != old and new != new)


def _shown(value: Any) -> str:
    return "(absent)" if value is ABSENT else json.dumps(value, default=str)
