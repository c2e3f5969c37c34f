"""Conversions of many files that can be stopped at any time: one part of the result for each file, whole or not there.

`_conversion.json` in the result's folder holds what is being done (the plan) and what each finished part counted. A
second start with the same plan makes the parts that are missing; with another plan it is refused.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tml.common.errors import ConfigError, DataError
from tml.common.filesystem import is_remote, remove_tree, write_json
from tml.ml_logging import get_logger

STATE_FILE = "_conversion.json"

# Source file, target file -> counts by name.
ConvertOne = Callable[[str, str], Mapping[str, int]]


def convert_parts(
    files: Sequence[str],
    out: str | os.PathLike[str],
    suffix: str,
    plan: Mapping[str, Any],
    convert_one: ConvertOne,
    *,
    overwrite: bool = False,
) -> dict[str, int]:
    """Converts each file to `<out>/part-<n><suffix>`.

    Args:
        files: what to convert, in the order of the parts.
        out: a local folder.
        suffix: of the parts' names.
        plan: all that decides about the result, as JSON; the files and their sizes are added.
        convert_one: writes a part, whole or not at all.
        overwrite: replace what an earlier conversion left in the folder.

    Returns:
        the sums of the parts' counts, and `files`.

    Raises:
        ConfigError: the folder is remote, or holds another conversion or anything else.
    """
    if is_remote(out):
        raise ConfigError(
            "folder is not local", where="out", value=str(out), fix="convert to a local folder and copy it"
        )
    folder = Path(out)
    state = _begin(folder, {**plan, "files": [[file, _size(file)] for file in files]}, overwrite)
    for number, file in enumerate(files):
        name = f"part-{number:05d}{suffix}"
        if name in state["parts"] and (folder / name).is_file():
            continue
        state["parts"][name] = dict(convert_one(file, str(folder / name)))
        write_json(folder / STATE_FILE, state)
        get_logger(__name__).info("%s -> %s: %s", file, name, state["parts"][name])
    return dict(sum((Counter(part) for part in state["parts"].values()), Counter()), files=len(files))


def _begin(folder: Path, plan: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    plan = json.loads(json.dumps(plan))
    path = folder / STATE_FILE
    if overwrite and path.is_file():
        remove_tree(folder)
    state = _read(path)
    if state is None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                "folder holds something else", where=folder, limit="a new or empty folder, or an earlier conversion",
                fix="name another folder",
            )  # fmt: skip
        state = {"plan": plan, "parts": {}}
        write_json(path, state)
    if state["plan"] != plan:
        differing = sorted(key for key in plan if state["plan"].get(key) != plan[key])
        raise ConfigError(
            "folder holds another conversion", where=folder, value=f"other {', '.join(differing) or 'plan'}",
            limit="the same plan, to go on", fix="name another folder, or overwrite",
        )  # fmt: skip
    return state


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(state["plan"], dict) and isinstance(state["parts"], dict):
            return state
    except (ValueError, KeyError, TypeError):
        pass
    raise DataError("state of a conversion cannot be read", where=path, fix="name another folder, or overwrite")


def _size(file: str) -> int | None:
    return None if is_remote(file) else os.path.getsize(file)
