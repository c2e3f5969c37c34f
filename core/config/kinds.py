"""Which kinds of plain values a field takes, more strictly than pydantic's lax mode and less than its strict mode."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

YAML_1_1_BOOLEANS = {"yes", "no", "on", "off", "y", "n"}


def kind_mismatch(annotation: Any, value: Any) -> str | None:
    """Why `value` is not of the annotated kind, or None when it is, or when pydantic is the better judge.

    Lists for tuples, text for enums and paths, and whole floats for integers pass; the text '3' for a number, true for
    a number and 'yes' or 1 for a boolean do not.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind_mismatch(arguments[0], value)
    if origin in (Union, types.UnionType):
        faults = [_member_mismatch(member, value) for member in arguments if member is not type(None)]
        return faults[0] if value is not None and all(faults) else None
    if isinstance(value, Mapping):
        return _first_mismatch(arguments[1], value.items()) if len(arguments) == 2 and origin is not tuple else None
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return _elements_mismatch(origin, arguments, value)
    return _scalar_mismatch(annotation, value)


def _member_mismatch(annotation: Any, value: Any) -> str | None:
    # Beside other kinds, a choice that does not hold the value is a mismatch; alone, pydantic lists the choices.
    if get_origin(annotation) is Literal and value not in get_args(annotation):
        return f"{' or '.join(map(repr, get_args(annotation)))} is expected, not {_named(value)}"
    return kind_mismatch(annotation, value)


def _elements_mismatch(origin: Any, arguments: tuple[Any, ...], value: Sequence[Any]) -> str | None:
    if origin is tuple and Ellipsis not in arguments:
        pairs = enumerate(zip(arguments, value, strict=False))
        return next((f"element {i}: {why}" for i, (kind, item) in pairs if (why := kind_mismatch(kind, item))), None)
    return _first_mismatch(arguments[0], enumerate(value)) if arguments else None


def _first_mismatch(annotation: Any, items: Any) -> str | None:
    for place, item in items:
        if why := kind_mismatch(annotation, item):
            return f"element {place!r}: {why}"
    return None


def _scalar_mismatch(annotation: Any, value: Any) -> str | None:
    if annotation is bool and not isinstance(value, bool):
        hint = ", write it out" if str(value).lower() in YAML_1_1_BOOLEANS else ""
        return f"true or false is expected, not {_named(value)}{hint}"
    if annotation in (int, float) and isinstance(value, bool | str | None):
        return f"{'an integer' if annotation is int else 'a number'} is expected, not {_named(value)}"
    return None


def _named(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"the text {value!r}" if isinstance(value, str) else repr(value)
