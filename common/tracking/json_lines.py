"""Metrics as JSON lines, one object per step."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any

from tml.common.filesystem import atomic_write


class JsonLinesTracker:
    """Appends `{"step": ..., "time": ..., <name>: <value>}` to a file; values that are not finite become null.

    Args:
        path: the file; lines of steps after `step` and a torn last line are dropped from it, as they will come again.
        step: completed steps of the run that begins.
    """

    def __init__(self, path: str, step: int) -> None:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        _drop_lines_after(path, step)
        self._path = path

    def track(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 3)} | finite) + "\n")

    def close(self, status: str, message: str | None = None) -> None:
        """Nothing is open between lines."""


def read_metrics(path: str) -> list[dict[str, float | None]]:
    """The lines of a metrics file in order, without a torn last one; none if there is no file."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return []
    return [line for line in map(_parsed, text.splitlines()) if line is not None]


def _drop_lines_after(path: str, step: int) -> None:
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.readlines()
    except FileNotFoundError:
        return
    kept = [line for line in lines if (values := _parsed(line)) is not None and values["step"] <= step]
    if kept != lines:
        with atomic_write(path, "w") as file:
            file.writelines(line if line.endswith("\n") else line + "\n" for line in kept)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) and isinstance(values.get("step"), int) else None
