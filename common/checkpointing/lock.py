"""One writer per checkpoint directory: a lock file that says who, and that outlives `kill -9` without a key."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tml.common.errors import CheckpointError

logger = logging.getLogger(__name__)

LOCK_NAME = "lock.json"
HEARTBEAT_S = 30.0
# An owner on another machine cannot be asked whether it lives; it is given up after this silence.
SILENT_AFTER_S = 600.0


class DirectoryLock:
    """The lock of one directory, held from `acquire` to `release`.

    An owner on this machine is alive as long as its process is (pid and start time); an owner on another machine as
    long as it touches the file, which it does every 30 seconds.

    Args:
        directory: an existing directory.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / LOCK_NAME
        self._released = threading.Event()
        self._owner: dict[str, Any] | None = None

    def acquire(self) -> None:
        """Take the lock; take over that of a dead owner with a warning.

        Raises:
            CheckpointError: a live job holds it.
        """
        with _exclusively_open(self.path) as descriptor:
            owner = _read_owner(descriptor)
            age_s = max(0.0, time.time() - os.fstat(descriptor).st_mtime)
            if owner is not None:
                self._refuse_or_take_over(owner, age_s)
            self._owner = _this_process()
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(self._owner).encode(), 0)
            os.fsync(descriptor)
        threading.Thread(target=self._beat, name="checkpoint-lock", daemon=True).start()

    def release(self) -> None:
        """Give the lock back; harmless when it is not, or no longer, ours."""
        self._released.set()
        if self._owner is None or not self.path.exists():
            return
        with _exclusively_open(self.path) as descriptor:
            if _read_owner(descriptor) == self._owner:
                self.path.unlink()
        self._owner = None

    def _refuse_or_take_over(self, owner: dict[str, Any], age_s: float) -> None:
        described = f"host {owner.get('host')}, pid {owner.get('pid')}, since {_as_time(owner.get('since'))}"
        if _is_alive(owner, age_s):
            raise CheckpointError(
                "another job writes into this checkpoint directory",
                where=self.path,
                value=f"owner: {described}, last sign of life {age_s:.0f} s ago",
                limit="one writer per directory",
                fix=f"stop that job, choose another save_dir, or delete {self.path} if the job is surely gone",
            )
        logger.warning(
            "taking over the lock %s of a job that has ended without releasing it (%s)", self.path, described
        )

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self.path)


@contextlib.contextmanager
def _exclusively_open(path: Path) -> Iterator[int]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Somebody may have deleted the file between our open and our flock; then it guards nothing.
            if path.exists() and os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _read_owner(descriptor: int) -> dict[str, Any] | None:
    content = os.pread(descriptor, 1 << 16, 0)
    if not content:
        return None
    try:
        owner = json.loads(content)
    except ValueError:
        owner = None
    # Content that is no owner record is not ours to throw away: it counts as an unknown owner elsewhere.
    return owner if isinstance(owner, dict) else {"host": "unknown", "pid": None}


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "process_start": _process_start(os.getpid()),
        "since": time.time(),
    }


def _machine() -> str:
    """Names the set of processes whose pids we can see: kernel boot and pid namespace."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts)


def _process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; tells a process from a later one with the same pid."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, start = fields[0], fields[19]
    return None if state == "Z" else start


def _is_alive(owner: dict[str, Any], age_s: float) -> bool:
    if owner.get("machine") != _machine():
        return age_s < SILENT_AFTER_S
    pid = int(owner["pid"])
    if Path("/proc/self/stat").exists():
        return _process_start(pid) == owner.get("process_start")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _as_time(seconds: object) -> str:
    if not isinstance(seconds, int | float):
        return "unknown"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
