"""Small atomic writes: a file is there whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Writes a text file under a temporary name, syncs it and moves it into place."""
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically, indented and with its keys as given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
