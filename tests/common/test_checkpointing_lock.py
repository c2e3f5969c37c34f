"""Fault 12, second half: two jobs on one folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tml.common.checkpointing.lock import LOCK_NAME, SILENT_AFTER_S, DirectoryLock
from tml.common.errors import CheckpointError

_HOLD = """
import sys, pathlib
from tml.common.checkpointing.lock import DirectoryLock
lock = DirectoryLock(pathlib.Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.readline()
"""


def _holder(directory: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def _acquired(directory: Path) -> bool:
    lock = DirectoryLock(directory)
    lock.acquire()
    lock.release()
    return True


def test_fault_12_a_live_job_keeps_others_out_and_a_killed_one_does_not(tmp_path: Path) -> None:
    process = _holder(tmp_path)
    try:
        with pytest.raises(CheckpointError, match=rf"pid {process.pid}.*sign of life \d+ s ago") as caught:
            DirectoryLock(tmp_path).acquire()
        assert str(tmp_path / LOCK_NAME) in str(caught.value)
    finally:
        process.kill()
    # Dead but not reaped: a zombie does not count as alive.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert _acquired(tmp_path)
    process.wait()
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_second_lock_in_the_same_process_is_refused_until_the_first_is_released(tmp_path: Path) -> None:
    first = DirectoryLock(tmp_path)
    first.acquire()
    with pytest.raises(CheckpointError, match=f"pid {os.getpid()}"):
        DirectoryLock(tmp_path).acquire()
    first.release()
    first.release()
    assert _acquired(tmp_path)


def test_a_reused_pid_is_not_the_owner(tmp_path: Path) -> None:
    first = DirectoryLock(tmp_path)
    first.acquire()
    owner = json.loads((tmp_path / LOCK_NAME).read_text())
    (tmp_path / LOCK_NAME).write_text(json.dumps(owner | {"process_start": "1"}))
    assert _acquired(tmp_path)


def _owner_elsewhere(directory: Path, silent_s: float) -> None:
    path = directory / LOCK_NAME
    path.write_text(json.dumps({"host": "far", "machine": "far/1", "pid": 1, "since": time.time() - 1e4}))
    os.utime(path, (time.time() - silent_s, time.time() - silent_s))


def test_an_owner_on_another_machine_is_believed_until_it_has_been_silent(tmp_path: Path) -> None:
    _owner_elsewhere(tmp_path, SILENT_AFTER_S / 2)
    with pytest.raises(CheckpointError, match="host far"):
        DirectoryLock(tmp_path).acquire()
    _owner_elsewhere(tmp_path, SILENT_AFTER_S * 2)
    assert _acquired(tmp_path)


def test_a_lock_that_was_taken_over_is_not_released_by_its_former_owner(tmp_path: Path) -> None:
    first = DirectoryLock(tmp_path)
    first.acquire()
    _owner_elsewhere(tmp_path, 0)
    first.release()
    assert (tmp_path / LOCK_NAME).exists()


def test_an_unreadable_lock_counts_as_a_live_owner_and_an_empty_one_as_none(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text("{")
    with pytest.raises(CheckpointError, match="host unknown"):
        DirectoryLock(tmp_path).acquire()
    (tmp_path / LOCK_NAME).write_text("")
    assert _acquired(tmp_path)
