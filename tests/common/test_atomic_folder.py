"""A folder that appears whole or not at all: after faults, kills, and on disks that cannot swap names."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tml.common.errors import DataError
from tml.common.filesystem import atomic_folder, new_folder


def is_ours(folder: Path) -> bool:
    return (folder / "ours").exists()


def write(target: Path, text: str, overwrite: bool = False) -> None:
    with new_folder(target, is_ours=is_ours, what="exported thing", overwrite=overwrite) as folder:
        (folder / "below").mkdir()
        (folder / "below" / "text").write_text(text)
        (folder / "ours").touch()
        assert not target.exists() or (target / "below" / "text").read_text() != text


@pytest.fixture(params=["swapped in one step", "moved aside"])
def way(request, monkeypatch) -> None:
    """Whether names can be exchanged."""
    if request.param == "moved aside":
        monkeypatch.setattr(atomic_folder, "_exchange", lambda *_: False)


@pytest.mark.usefixtures("way")
def test_a_folder_is_there_when_the_block_ends_and_replaces_the_old_one(tmp_path):
    target = tmp_path / "new" / "target"
    write(target, "first")
    write(target, "second", overwrite=True)
    assert (target / "below" / "text").read_text() == "second"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("fault", [KeyError, KeyboardInterrupt])
def test_a_fault_leaves_the_old_one_and_nothing_else(tmp_path, fault):
    target = tmp_path / "target"
    write(target, "first")
    with pytest.raises(fault), new_folder(target, is_ours=is_ours, what="exported thing", overwrite=True):
        raise fault
    assert (target / "below" / "text").read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_a_disk_that_cannot_give_the_new_one_its_name_gets_the_old_one_back(tmp_path, monkeypatch):
    target = tmp_path / "target"
    write(target, "first")
    rename = Path.rename

    def refused(path: Path, to: Path) -> Path:
        if path.name.endswith(".tmp"):
            raise OSError("no")
        return rename(path, to)

    monkeypatch.setattr(atomic_folder, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(DataError, match="exported thing cannot be written"):
        write(target, "second", overwrite=True)
    assert (target / "below" / "text").read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_a_killed_process_leaves_the_old_one_and_the_next_clears_away(tmp_path):
    target = tmp_path / "target"
    write(target, "first")
    child = os.fork()
    if child == 0:
        with new_folder(target, is_ours=is_ours, what="exported thing", overwrite=True):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (target / "below" / "text").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 2
    other = tmp_path / ".target.elsewhere.1.tmp"
    other.mkdir()
    write(target, "second", overwrite=True)
    assert sorted(tmp_path.iterdir()) == [other, target], "another machine's may still be at work"


def test_what_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="something that is not an exported thing"):
        write(tmp_path, "text", overwrite=True)
    write(tmp_path / "target", "first")
    with pytest.raises(DataError, match="--overwrite"):
        write(tmp_path / "target", "second")
    with pytest.raises(DataError, match="local"):
        write("gs://bucket/target", "text")  # type: ignore[arg-type]
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "target" / "below" / "text").read_text() == "first"
