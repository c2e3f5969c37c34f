"""Typed configs: `BaseConfig`, and reading them from YAML with overrides and good explanations."""

from tml.core.config.base_config import BaseConfig
from tml.core.config.defaults import with_todays_defaults
from tml.core.config.formatting import config_hash, format_config
from tml.core.config.loading import load_config, load_document, parse_config

__all__ = [
    "BaseConfig",
    "config_hash",
    "format_config",
    "load_config",
    "load_document",
    "parse_config",
    "with_todays_defaults",
]
