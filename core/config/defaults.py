"""Settings that an older version of the program wrote, beside a config of today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic

from tml.core.config.base_config import BaseConfig


def with_todays_defaults(values: Mapping[str, Any], config: BaseConfig) -> dict[str, Any]:
    """The values of an older version, with the default of every field that has come since.

    Parsing them would do the same, but not for values that hold a setting that is gone.

    Args:
        values: as `model_dump(mode="json")` of the older version gave them.
        config: of today; says at which places sections stand.
    """
    filled = {name: _filled(value, getattr(config, name, None)) for name, value in values.items()}
    new = {name: field for name, field in type(config).model_fields.items() if name not in values}
    return filled | {name: _default(field) for name, field in new.items() if not field.is_required()}


def _filled(value: Any, now: Any) -> Any:
    if isinstance(now, BaseConfig) and isinstance(value, Mapping):
        return with_todays_defaults(value, now)
    if isinstance(now, list | tuple) and isinstance(value, list):
        same = min(len(value), len(now))
        return [*(_filled(*pair) for pair in zip(value[:same], now[:same], strict=True)), *value[same:]]
    if isinstance(now, Mapping) and isinstance(value, Mapping):
        return {key: _filled(item, now.get(key)) for key, item in value.items()}
    return value


def _default(field: pydantic.fields.FieldInfo) -> Any:
    # A default may be written as something that validation turns into a section.
    kind: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(field.annotation)  # type: ignore[arg-type]
    return kind.dump_python(kind.validate_python(field.get_default(call_default_factory=True)), mode="json")
