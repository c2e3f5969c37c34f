"""Versions of libraries, for what a run leaves behind."""

from __future__ import annotations

from contextlib import suppress
from importlib import metadata


def library_versions(*names: str) -> dict[str, str]:
    """Versions by name of those distributions that are installed."""
    versions = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
