"""Typed configs: `BaseConfig`, and reading them from YAML with overrides and good explanations."""

from tml.core.config.base_config import BaseConfig

__all__ = ["BaseConfig"]
