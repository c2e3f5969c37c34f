"""A folder that appears whole or not at all, also when the process is killed.

    with new_folder("models/a", is_ours=is_model, what="exported model", overwrite=True) as folder:
        (folder / "model.bin").write_bytes(...)

It is filled under a name of its own beside its place, made durable, and takes its place as the last act.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tml.common.errors import DataError
from tml.common.filesystem.atomic import sync_path
from tml.common.filesystem.filesystem import is_remote

# Of Linux's renameat2(2), which Python does not offer.
_CURRENT_FOLDER, _RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def new_folder(
    out_dir: str | os.PathLike[str], *, is_ours: Callable[[Path], bool], what: str, overwrite: bool
) -> Iterator[Path]:
    """A folder to fill, which takes the name `out_dir` when the block ends and vanishes when it raises.

    Args:
        out_dir: where; must not exist or be empty unless `overwrite`.
        is_ours: whether a folder holds what may be replaced.
        what: what is written, for messages: "exported model".
        overwrite: replace one that lies there already; it stays untouched until the new one is complete.

    Raises:
        DataError: the place is taken, remote or cannot be written.
    """
    target = _check_target(out_dir, is_ours, what, overwrite)
    temporary = target.with_name(f".{target.name}.{_host()}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        temporary.mkdir()
        yield temporary
        # Contents and entries must be on disk before the name says that all is there.
        for path in (*temporary.rglob("*"), temporary):
            sync_path(path)
        _take_place(temporary, target)
    except OSError as error:
        fix = "free some space or mend the cause and export again; nothing half-written is left"
        raise DataError(f"the {what} cannot be written", where=target, value=str(error), fix=fix) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_target(out_dir: str | os.PathLike[str], is_ours: Callable[[Path], bool], what: str, overwrite: bool) -> Path:
    if is_remote(out_dir):
        raise DataError("models are exported to local folders", where=out_dir, fix="export locally and copy the folder")
    target = Path(out_dir).absolute()
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return target
    ours = is_ours(target)
    if overwrite and ours:
        return target
    raise DataError(
        "the folder to be written is not empty",
        where=target,
        value=f"an {what}" if ours else f"something that is not an {what}",
        limit="a new or empty folder",
        fix="add --overwrite to replace it" if ours else "choose another folder; this one is left alone",
    )


def _sweep(target: Path) -> None:
    """Remove what processes of this machine left that were killed; those of other machines may still be at work."""
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
    sync_path(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step, so that no kill can fall between; False where the system or disk cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    exchanged = call(_CURRENT_FOLDER, os.fsencode(one), _CURRENT_FOLDER, os.fsencode(other), _RENAME_EXCHANGE)
    return bool(exchanged == 0)
