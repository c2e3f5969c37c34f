"""A resolved config as YAML and as a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import yaml

from tml.core.config.base_config import BaseConfig
from tml.core.config.yaml_document import scalar_tag


def format_config(config: BaseConfig) -> str:
    """The whole config, defaults included, as YAML that `load_config` reads back to an equal config."""
    data = _escaped(config.model_dump(mode="json"))
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def config_hash(config: BaseConfig | Mapping[str, Any]) -> str:
    """A SHA-256 (hex) of the values, the same in every process and for every order of keys."""
    data = config.model_dump(mode="json") if isinstance(config, BaseConfig) else config
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


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
