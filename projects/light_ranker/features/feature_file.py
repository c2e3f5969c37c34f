"""features.yaml as text: one feature or label per line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import yaml

from tml.common.errors import ConfigError
from tml.common.filesystem import open_file
from tml.core.config.loading import parse_config
from tml.projects.light_ranker.features.config import FeatureConfig


def feature_text(values: Mapping[str, Any], header: str = "", comments: Mapping[str, str] | None = None) -> str:
    """The text of a feature config.

    Args:
        values: plain values, as `FeatureConfig.dumped()` gives them.
        header: comment lines above.
        comments: feature or label name -> what stands behind it.
    """
    lines = [header] if header else []
    for section, value in values.items():
        if isinstance(value, list):
            lines.append(f"{section}:\n")
            lines += [feature_line(item, (comments or {}).get(str(item.get("name")))) for item in value]
        else:
            lines.append(yaml.safe_dump({section: value}, sort_keys=False, allow_unicode=True))
    return "".join(lines)


def feature_line(item: Mapping[str, Any], comment: str | None) -> str:
    """One feature or label as a line of a list, with a comment behind it."""
    text = yaml.safe_dump(
        dict(item), default_flow_style=True, sort_keys=False, allow_unicode=True, width=2**31
    ).rstrip()  # fmt: skip
    return f"  - {text}  # {comment}\n" if comment else f"  - {text}\n"


def read_resolved(path: str | os.PathLike[str]) -> FeatureConfig:
    """Reads a features.yaml that `prepare` wrote; `$` means nothing in it.

    Raises:
        ConfigError: it is not as `prepare` wrote it. DataError: it is missing.
    """
    with open_file(path, "r") as file:
        text = file.read()
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            "features.yaml is damaged", where=str(path), value=str(error), fix="prepare the data again"
        ) from None
    return parse_config(FeatureConfig, values if isinstance(values, dict) else {}, str(path))
