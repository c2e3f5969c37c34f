"""Where an exported ranker goes."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from tml.common.filesystem import new_folder
from tml.projects.light_ranker.serving.signature import is_export


def new_export(out_dir: str | os.PathLike[str], overwrite: bool) -> AbstractContextManager[Path]:
    """A folder to fill, which appears whole or not at all, see `new_folder`; it replaces exported rankers alone."""
    return new_folder(out_dir, is_ours=is_export, what="exported ranker", overwrite=overwrite)
