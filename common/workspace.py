"""The out folder of work in stages: its plan, the stages' marks, and the step that makes it complete."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from tml.common.differences import ABSENT, differences
from tml.common.errors import ConfigError
from tml.common.filesystem import write_json, write_text

META = "meta.json"


class Workspace:
    """An out folder.

    The folder is complete when `meta.json` is there, which is written last. Until then everything is in the hidden work
    folder, whose marks let a restart continue after the last finished stage.

    Args:
        out: the folder.
        published: what a complete folder holds beside `meta.json`.
        cleared: what is removed to overwrite an earlier result; default: `published`.
        work: name of the hidden work folder.
        what: the kind of work, for messages.
    """

    def __init__(
        self,
        out: Path,
        published: tuple[str, ...],
        cleared: tuple[str, ...] | None = None,
        work: str = ".work",
        what: str = "conversion",
    ) -> None:
        self.out, self.work, self.what = out, out / work, what
        self.published, self.cleared = published, published if cleared is None else cleared
        self.result = self.work / "result"
        self._held: IO[str] | None = None

    def begin(self, plan: dict[str, Any], overwrite: bool) -> bool:
        """Compares the plan with what is there; False when the very same work is complete already.

        Raises:
            ConfigError: the folder belongs to another plan, holds files of another kind, or a process is at work in it.
        """
        plan = json.loads(json.dumps(plan))
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError("the out folder is a file", where=str(self.out), fix="choose another --out")
        self._refuse_strangers(plan)
        if overwrite:
            self._clear()
        if (self.out / META).exists():
            self._refuse_change(_load(self.out / META)["plan"], plan)
            shutil.rmtree(self.work, ignore_errors=True)
            return False
        self._lock()
        if (self.work / "plan.json").exists():
            self._take_up(plan)
        else:
            self._discard_work()  # what is left of work that was being discarded
            self._lock()
        write_json(self.work / "plan.json", plan)
        return True

    def _lock(self) -> None:
        """Makes the work folder and keeps others out until `release`, or until this process ends in whatever way."""
        self.release()
        self.work.mkdir(parents=True, exist_ok=True)
        self._held = open(self.work / "lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process is at work on a {self.what} here", where=str(self.out), limit="one at a time",
                fix="wait for it, or choose another --out",
            ) from None  # fmt: skip
        except OSError:
            pass  # a file system without locks

    def release(self) -> None:
        """Lets others at the folder; harmless when it is not held."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _take_up(self, plan: dict[str, Any]) -> None:
        """Continues earlier work on the same plan; work that ended in an error may be followed by a changed plan."""
        old = _load(self.work / "plan.json")
        if old != plan:
            if not (self.work / "failed").exists():
                self._refuse_change(old, plan)
            self._discard_work()
            self._lock()
        (self.work / "failed").unlink(missing_ok=True)

    def _refuse_strangers(self, plan: dict[str, Any]) -> None:
        """Files that this kind of work did not make are nobody's to replace: they may be somebody's only copy."""
        if self.work.exists() or self._is_of_this_kind(plan):
            return
        strangers = [name for name in (META, *self.published) if (self.out / name).exists()]
        if strangers:
            raise ConfigError(
                "the out folder holds files of something else", where=str(self.out), value=strangers,
                limit=f"an empty folder, or an earlier {self.what}, which alone --overwrite replaces",
                fix="choose another --out, or move these files away",
            )  # fmt: skip

    def _is_of_this_kind(self, plan: dict[str, Any]) -> bool:
        """Whether `meta.json` is that of this kind of work, whatever its settings."""
        try:
            meta = _load(self.out / META)
            # Older versions of the program wrote no kind, and plans with fewer entries.
            return meta.get("kind", self.what) == self.what and bool(meta["plan"]) and set(meta["plan"]) <= set(plan)
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            return False

    def _clear(self) -> None:
        """Removes an earlier result. The work folder, which says that all of it may go, is removed last."""
        self._lock()
        for path in (self.out / META, *(self.out / name for name in self.cleared)):
            _remove(path)
        self._discard_work()

    def _discard_work(self) -> None:
        # Without its plan nothing in it counts, should this be cut off.
        (self.work / "plan.json").unlink(missing_ok=True)
        shutil.rmtree(self.work)

    def _refuse_change(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        # An option that has come with a newer version of the program, and is not given, changes nothing.
        changed = [change for change in differences(old, new) if (change.old, change.new) != (ABSENT, None)]
        if changed:
            raise ConfigError(
                f"the out folder holds another {self.what}",
                where=str(self.out),
                value="; ".join(map(str, changed)),
                limit="the same settings and unchanged input files",
                fix=f"choose another --out, or pass --overwrite to replace the {self.what}",
            )

    def stage(self, name: str, run: Callable[[], Any]) -> Any:
        """Runs a stage unless its mark is there; gives its result, which is plain JSON and kept in the mark."""
        mark = self.work / f"done-{name}.json"
        if not mark.exists():
            write_json(mark, run())
        return _load(mark)

    def meta(self) -> dict[str, Any]:
        """The content of `meta.json` of a complete folder."""
        return dict(_load(self.out / META))

    def fail(self) -> None:
        """Notes that the run ended in an error that another plan, or mended data, may avoid."""
        if self.work.exists():
            write_text(self.work / "failed", "")

    def publish(self, meta: dict[str, Any]) -> None:
        """Moves the results into the out folder and then writes `meta.json`; may be cut off and run again."""
        for name in self.published:
            if (self.result / name).exists():
                _remove(self.out / name)  # left of an earlier result whose removal was cut off
                (self.result / name).replace(self.out / name)
        write_json(self.out / META, {"kind": self.what, **meta})
        shutil.rmtree(self.work, ignore_errors=True)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
