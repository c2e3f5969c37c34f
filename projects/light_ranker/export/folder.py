"""A folder that appears whole or not at all, also when the process is killed."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from tml.common.errors import DataError
from tml.common.filesystem import is_remote
from tml.projects.light_ranker.serving.signature import SIGNATURE_NAME, files_below, is_export

# Of Linux's renameat2(2), which Python does not offer.
_CURRENT_FOLDER, _RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def new_export(out_dir: str | os.PathLike[str], overwrite: bool) -> Iterator[Path]:
    """A folder to fill, which takes the name `out_dir` when the block ends and vanishes when it raises.

    Args:
        out_dir: where; must not exist or be empty unless `overwrite`.
        overwrite: replace an exported ranker that lies there already; it stays untouched until the new one is complete.

    Raises:
        DataError: the place is taken, remote or cannot be written.
    """
    target = _check_target(out_dir, overwrite)
    temporary = target.with_name(f".{target.name}.{_host()}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        temporary.mkdir()
        yield temporary
        for name in (*files_below(temporary), SIGNATURE_NAME, "."):
            _sync(temporary / name)
        _take_place(temporary, target)
    except OSError as error:
        fix = "free some space or mend the cause and export again; nothing half-written is left"
        raise DataError("the model cannot be written", where=target, value=str(error), fix=fix) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_target(out_dir: str | os.PathLike[str], overwrite: bool) -> Path:
    if is_remote(out_dir):
        raise DataError("models are exported to local folders", where=out_dir, fix="export locally and copy the folder")
    target = Path(out_dir).absolute()
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return target
    if overwrite and is_export(target):
        return target
    known = is_export(target)
    raise DataError(
        "the folder for the model is not empty",
        where=target,
        value="an exported ranker" if known else "something that is not an exported ranker",
        limit="a new or empty folder",
        fix="add --overwrite to replace the model" if known else "choose another folder; this one is left alone",
    )


def _sweep(target: Path) -> None:
    """Remove what exports of this machine left that were killed; those of other machines may still be at work."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.{_host()}.*.tmp"):
        number = path.name.split(".")[-2]
        if number.isdecimal() and (int(number) == os.getpid() or not _is_alive(int(number))):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _host() -> str:
    return re.sub(r"\W", "-", platform.node()) or "here"


def _take_place(temporary: Path, target: Path) -> None:
    """Give the finished folder its name; what lay there ends up under the temporary one, or gone."""
    if target.exists() and not _exchange(temporary, target):
        aside = temporary.with_suffix(".old")
        target.rename(aside)
        try:
            temporary.rename(target)
        except BaseException:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    elif not target.exists():
        temporary.rename(target)
    _sync(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step, so that no kill can fall between; False where the system or disk cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    return call(_CURRENT_FOLDER, os.fsencode(one), _CURRENT_FOLDER, os.fsencode(other), _RENAME_EXCHANGE) == 0


def _sync(path: Path) -> None:
    # Content, and for a folder its entries, must be on disk before the name says that the model is complete.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
