"""Pydantic's report on a document as one `ConfigError` that names every fault with its line."""

from __future__ import annotations

import difflib
import re
from typing import Any

import pydantic

from tml.common.errors import ConfigError
from tml.core.config.yaml_document import Document, KeyPath, dotted

_NO_VALUE = ("missing", "unknown_key", "group")


def as_config_error(error: pydantic.ValidationError, document: Document) -> ConfigError:
    """One error for all faults: file and line, dotted path, value, and what is allowed."""
    lines = error.errors(include_url=False)
    if len(lines) == 1:
        return _single(lines[0], document)
    faults = sorted({_one_line(line, document) for line in lines}, key=_natural_order)
    return ConfigError(
        f"{len(faults)} faults in the config\n" + "\n".join(f"  - {fault}" for fault in faults), where=document.source,
    )  # fmt: skip


def _single(line: Any, document: Document) -> ConfigError:
    path = _real_path(line, document)
    shows_value = line["type"] not in _NO_VALUE and line["input"] is not None
    said, _, suggestion = _allowed(line).partition("; did you mean ")
    return ConfigError(
        f"{dotted(path) or 'the config'}: {said}",
        where=document.place(path),
        value=line["input"] if shows_value else None,
        fix=f"did you mean {suggestion}" if suggestion else None,
    )


def _one_line(line: Any, document: Document) -> str:
    path = _real_path(line, document)
    value = "" if line["type"] in _NO_VALUE else f" = {_shortened(line['input'])}"
    return f"{document.place(path)}: {dotted(path) or 'the config'}{value}: {_allowed(line)}"


def _allowed(line: Any) -> str:
    """Pydantic's sentence in this project's voice, with the nearest choice where there are choices."""
    message = str(line["msg"])
    if line["type"] == "missing":
        return "a value is required"
    if line["type"] in ("literal_error", "enum"):
        return message.replace("Input should be", "must be") + _nearest_choice(line)
    for prefix in ("Value error, ", "Assertion failed, "):
        message = message.removeprefix(prefix)
    return re.sub(r"^Input should be ", "must be ", message)


def _nearest_choice(line: Any) -> str:
    choices = re.findall(r"'([^']*)'", str(line.get("ctx", {}).get("expected", "")))
    near = difflib.get_close_matches(str(line["input"]).lower(), choices, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _real_path(line: Any, document: Document) -> KeyPath:
    """The error's location without the names that pydantic adds for members of a union."""
    path: list[str | int] = []
    here = document.data
    for depth, part in enumerate(line["loc"], start=1):
        if _holds(here, part):
            here = here[part]
        elif depth < len(line["loc"]) or not (line["type"] == "missing" or _is_default(line, here)):
            continue
        path.append(part)
    return tuple(path)


def _is_default(line: Any, section: Any) -> bool:
    # A default that fails its own check stands in no file, but its name is the best thing to say.
    return isinstance(section, dict) and line["input"] is not section


def _holds(container: Any, part: Any) -> bool:
    if isinstance(container, list):
        return isinstance(part, int) and part < len(container)
    return isinstance(container, dict) and part in container


def _natural_order(text: str) -> list[tuple[int, str]]:
    # Line 10 comes after line 9.
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", text)]


def _shortened(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else shown[:97] + "..."
