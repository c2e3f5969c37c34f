"""From a YAML file, overrides and the environment to a validated config."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import pydantic

from tml.common.errors import ConfigError, DataError
from tml.common.filesystem import open_file
from tml.core.config.base_config import BaseConfig
from tml.core.config.faults import as_config_error
from tml.core.config.overrides import apply_overrides
from tml.core.config.yaml_document import Document, read_document

C = TypeVar("C", bound=BaseConfig)


def load_config(
    config_type: type[C],
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> C:
    """Read a config file, replace `$VAR`s, lay the overrides over it and validate the result.

    Args:
        config_type: what to read.
        path: a YAML file, local or remote.
        overrides: `a.b.c=value` or `a.tables.0.x=value` each, later ones win; see `apply_overrides`.
        environment: variables for `$VAR`; the process environment when None.

    Raises:
        ConfigError: names every fault with file, line, path, value and what is allowed.
    """
    return _validated(config_type, load_document(path, overrides, environment))


def load_document(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Document:
    """What `load_config` validates: for those who make the files that a config names before it can be valid.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or an override does not fit it.
    """
    document = read_document(_read_text(path), os.fspath(path), environment)
    apply_overrides(document, overrides, environment)
    return document


def parse_config(config_type: type[C], data: Mapping[str, Any], source: str = "config") -> C:
    """Validate values that are already in memory, for example those of a checkpoint.

    Args:
        config_type: what to make.
        data: plain values, as `config.model_dump(mode="json")` gives them; `$` means nothing in them.
        source: where they come from, for messages.

    Raises:
        ConfigError: names every fault.
    """
    return _validated(config_type, Document(source, dict(data)))


def _validated(config_type: type[C], document: Document) -> C:
    if document.data is None:
        document.data = {}
    if not isinstance(document.data, dict):
        raise ConfigError(
            "a config is a mapping of sections", where=document.place(()), value=document.data, limit="section: ...",
        )  # fmt: skip
    try:
        return config_type.model_validate(document.data)
    except pydantic.ValidationError as error:
        raise as_config_error(error, document) from None


def _read_text(path: str | os.PathLike[str]) -> str:
    try:
        with open_file(path, "r") as file:
            return str(file.read())
    except DataError as error:
        raise ConfigError(
            "cannot read the config file", where=error.where, value=error.value, limit=error.limit, fix=error.fix
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            "the config file is not UTF-8", where=path, value=str(error), fix="save it as UTF-8"
        ) from None
    except OSError as error:
        raise ConfigError("cannot read the config file", where=path, value=str(error)) from None
