"""A resolved config as YAML, as a hash, and as a difference to another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import yaml

from tml.core.config.base_config import BaseConfig
from tml.core.config.yaml_document import scalar_tag

_ABSENT = object()


def format_config(config: BaseConfig) -> str:
    """The whole config, defaults included, as YAML that `load_config` reads back to an equal config."""
    data = _escaped(config.model_dump(mode="json"))
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def config_hash(config: BaseConfig | Mapping[str, Any]) -> str:
    """A SHA-256 (hex) of the values, the same in every process and for every order of keys."""
    data = config.model_dump(mode="json") if isinstance(config, BaseConfig) else config
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def config_diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two configs' plain values (`model_dump(mode="json")`).

    Returns:
        Lines such as `model.embeddings.tables.0.embedding_dim: 64 -> 128`, in the order of the keys of `old`; a key
        that only one of them has is `(absent)` in the other.
    """
    return list(_differences(old, new, ""))


def _differences(old: Any, new: Any, path: str) -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        pairs = [(str(key), old.get(key, _ABSENT), new.get(key, _ABSENT)) for key in keys]
    elif _is_list(old) and _is_list(new):
        length = max(len(old), len(new))
        pairs = [(str(i), _at(old, i), _at(new, i)) for i in range(length)]
    else:
        return [] if _equal(old, new) else [f"{path}: {_shown(old)} -> {_shown(new)}"]
    return [line for key, a, b in pairs for line in _differences(a, b, f"{path}.{key}" if path else key)]


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _at(values: Any, index: int) -> Any:
    return values[index] if index < len(values) else _ABSENT


def _equal(old: Any, new: Any) -> bool:
    # True == 1 in Python, but not in a config; NaN equals itself there, but not in Python.
    if isinstance(old, bool) != isinstance(new, bool):
        return False
    return bool(old == new) or (old != old and new != new)


def _shown(value: Any) -> str:
    return "(absent)" if value is _ABSENT else json.dumps(value, default=str)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what `read_document` would not read back as text, and shares nothing by aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _escaped(data: Any) -> Any:
    # Variables are replaced in values only, so keys keep their dollars.
    if isinstance(data, dict):
        return {key: _escaped(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_escaped(value) for value in data]
    return data.replace("$", "$$") if isinstance(data, str) else data


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    needs_quotes = scalar_tag(text) != "str"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if needs_quotes else None)


_Dumper.add_representer(str, _represent_text)
