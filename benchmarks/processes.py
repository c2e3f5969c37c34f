"""Runs a command as a process of its own and measures it: wall time, and the peak memory of all its processes."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# Often at first, for short processes; then rarely enough not to be in the way.
_FIRST_POLL_S, _LAST_POLL_S = 0.02, 0.5


@dataclass(frozen=True)
class Finished:
    """What a finished command took.

    Attributes:
        wall_seconds: from its start to its end, imports included.
        peak_bytes: of the whole tree of processes, shared pages counted once; polled, in the end twice a second.
    """

    wall_seconds: float
    peak_bytes: int


def run_measured(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Finished:
    """Run a command to its end.

    Args:
        command: program and arguments.
        log: file that takes what it prints.
        environment: variables beside the present ones.
        folder: working folder; the present one if None.

    Raises:
        SystemExit: it failed; says where its log is and how that ends.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            list(command), stdout=output, stderr=subprocess.STDOUT, env=os.environ | (environment or {}), cwd=folder
        )
        watch = _MemoryWatch(process.pid)
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            watch.stop()
        seconds = time.perf_counter() - start
    if code:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
        raise SystemExit(f"{tail}\n\nfailed with exit code {code}: {' '.join(command)}\nwhole log: {log}")
    return Finished(seconds, watch.peak_bytes)


class _MemoryWatch:
    """Polls a tree of processes from a thread."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid, self._done = pid, threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _poll(self) -> None:
        pause = _FIRST_POLL_S
        while not self._done.wait(pause):
            pause = min(1.5 * pause, _LAST_POLL_S)
            self.peak_bytes = max(self.peak_bytes, sum(map(proportional_bytes, tree_of(self._pid))))


def tree_of(pid: int) -> list[int]:
    """A process and all its descendants, as far as they still live."""
    found, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        found.append(current)
        with suppress(OSError):
            for task in os.listdir(f"/proc/{current}/task"):
                waiting += map(int, Path(f"/proc/{current}/task/{task}/children").read_text().split())
    return found


def proportional_bytes(pid: int) -> int:
    """Memory of one process in which a page shared by n processes counts 1/n; 0 if it is gone."""
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
