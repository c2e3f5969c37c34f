"""An out folder belongs to one kind of work: what is not its own is never removed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tml.common.errors import ConfigError
from tml.common.filesystem import write_json, write_text
from tml.common.workspace import META, Workspace

PLAN = {"options": {"rows": 1}, "files": ["a"]}


def _workspace(out: Path, what: str = "preparation") -> Workspace:
    return Workspace(out, ("train", "config.yaml"), work=".prepare", what=what)


def _make(out: Path, text: str = "new", plan: dict[str, Any] = PLAN, overwrite: bool = False) -> bool:
    workspace = _workspace(out)
    if not workspace.begin(plan, overwrite):
        return False
    (workspace.result / "train").mkdir(parents=True, exist_ok=True)
    write_text(workspace.result / "train" / "part-0", text)
    workspace.publish({"rows": 1, "plan": plan})
    workspace.release()
    return True


@pytest.mark.parametrize(
    "meta", [None, {"rows": 3}, {"kind": "sample", "plan": PLAN}, {"plan": {"seed": 1}}, [], "text"]
)
def test_overwriting_spares_files_that_this_kind_of_work_did_not_make(tmp_path: Path, meta: Any) -> None:
    write_text(tmp_path / "train" / "part-0", "the only copy")
    if meta is not None:
        write_json(tmp_path / META, meta)
    for overwrite in (True, False):
        with pytest.raises(ConfigError, match=r"holds files of something else[\s\S]*move these files away"):
            _make(tmp_path, overwrite=overwrite)
    assert (tmp_path / "train" / "part-0").read_text() == "the only copy"


def test_overwriting_replaces_an_earlier_result_and_leaves_what_lies_beside_it(tmp_path: Path) -> None:
    assert _make(tmp_path, "old")
    write_text(tmp_path / "notes.txt", "mine")
    assert not _make(tmp_path, "same plan, nothing to do")
    other = PLAN | {"options": {"rows": 2}}
    with pytest.raises(ConfigError, match="holds another preparation"):
        _make(tmp_path, plan=other)
    assert _make(tmp_path, "new", other, overwrite=True)
    assert (tmp_path / "train" / "part-0").read_text() == "new"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_result_of_an_older_version_without_a_kind_is_known_by_its_plan(tmp_path: Path) -> None:
    write_text(tmp_path / "train" / "part-0", "old")
    write_json(tmp_path / META, {"plan": {"options": {"rows": 1}}})
    assert _make(tmp_path, "new", overwrite=True)
    assert (tmp_path / "train" / "part-0").read_text() == "new"


@pytest.mark.parametrize("num_removals", range(3))
def test_a_removal_that_was_cut_off_goes_on_without_the_old_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_removals: int
) -> None:
    _make(tmp_path, "old")
    left = iter(range(num_removals))
    real = shutil.rmtree

    def killed(path: Path, **options: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        real(path, **options)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        _make(tmp_path, plan=PLAN | {"options": {"rows": 2}}, overwrite=True)
    monkeypatch.undo()
    assert _make(tmp_path, "new", PLAN | {"options": {"rows": 3}})
    assert (tmp_path / "train" / "part-0").read_text() == "new"


def test_marks_that_are_left_of_discarded_work_do_not_count(tmp_path: Path) -> None:
    workspace = _workspace(tmp_path)
    workspace.begin(PLAN, overwrite=False)
    workspace.stage("count", lambda: "of the old plan")
    workspace.release()
    (workspace.work / "plan.json").unlink()  # what a discard removes first
    again = _workspace(tmp_path)
    again.begin(PLAN | {"options": {"rows": 2}}, overwrite=False)
    assert again.stage("count", lambda: "of the new plan") == "of the new plan"
