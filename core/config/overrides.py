"""`a.b.c=value` from the command line, laid over a document before it is validated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tml.common.errors import ConfigError
from tml.core.config.yaml_document import Document, KeyPath, dotted, read_document


def apply_overrides(document: Document, overrides: Iterable[str], environment: Mapping[str, str] | None = None) -> None:
    """Change `document` in place, one override after the other.

    Args:
        document: from `read_document`.
        overrides: each `path=value`: keys and list indices joined by dots, the value parsed as YAML
            (`train_data.files=[a, b]`). Sections on the way that are missing or null are made; an index equal to a
            list's length appends.
        environment: variables for `$VAR`; the process environment when None.

    Raises:
        ConfigError: no `=`, no path, an index out of range, or a way that leads through a plain value.
    """
    for override in overrides:
        path_text, equals, value_text = override.partition("=")
        keys = path_text.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(
                "not an override", value=override, limit="section.key=value", fix="write it without blanks around '='",
            )  # fmt: skip
        source = f"override {override!r}"
        value = read_document(value_text, source, environment)
        path = _put(document, keys, value.data, source)
        _move_places(document, path, source)


def _put(document: Document, keys: list[str], value: Any, source: str) -> KeyPath:
    if document.data is None:
        document.data = {}
    here: Any = document.data
    path: KeyPath = ()
    for key in keys[:-1]:
        step = _step(here, key, path, source)
        path = (*path, step)
        here = _child(here, step)
    step = _step(here, keys[-1], path, source)
    if isinstance(here, list) and step == len(here):
        here.append(value)
    else:
        here[step] = value
    return (*path, step)


def _child(container: Any, step: Any) -> Any:
    if isinstance(container, list) and step == len(container):
        container.append({})
    elif isinstance(container, dict) and container.get(step) is None:
        container[step] = {}
    return container[step]


def _step(container: Any, key: str, path: KeyPath, source: str) -> Any:
    """The key or index that `key` means in this container."""
    if isinstance(container, dict):
        return key
    if isinstance(container, list):
        if key.isdecimal() and int(key) <= len(container):
            return int(key)
        raise ConfigError(
            f"no element {key!r} in the list {dotted(path)!r}", where=source,
            limit=f"an index from 0 to {len(container)}; {len(container)} appends",
        )  # fmt: skip
    raise ConfigError(
        f"{dotted(path)!r} is a value, not a section", where=source, value=container, fix="check the path",
    )  # fmt: skip


def _move_places(document: Document, path: KeyPath, source: str) -> None:
    for known in [known for known in document.places if known[: len(path)] == path]:
        del document.places[known]
    document.places[path] = source
