from __future__ import annotations

import os
from pathlib import Path

import pytest

from tml.projects import doctor
from tml.projects.doctor import Finding

GOOD = {"torch": "2.13.0", "fbgemm-gpu-cpu": "1.8.0", "torchrec": "1.8.0"}


@pytest.mark.parametrize(
    ("torch", "fbgemm", "torchrec"),
    [("2.13.0", "1.8.0", "1.8.0"), ("2.12.1", "1.7.0", "1.7.0"), ("2.11.0", "1.6.0", "1.6.1")],
)
def test_working_triples_are_accepted(torch: str, fbgemm: str, torchrec: str) -> None:
    for build in ("fbgemm-gpu-cpu", "fbgemm-gpu"):
        assert doctor.check_triple({"torch": torch, build: fbgemm, "torchrec": torchrec}.get).status == "ok"


@pytest.mark.parametrize(
    "change",
    [
        {"torch": "2.12.0"},
        {"fbgemm-gpu-cpu": "1.9.0"},
        {"torchrec": "1.6.1"},
        {"torch": None},
        {"fbgemm-gpu-cpu": None},
    ],
)
def test_a_triple_that_cannot_work_is_named_with_those_that_can(change: dict[str, str | None]) -> None:
    finding = doctor.check_triple((GOOD | change).get)
    assert finding.status == "fail"
    assert "2.13/1.8/1.8" in finding.found
    assert finding.fix is not None
    assert "requirements/cpu.txt" in finding.fix


def test_two_builds_of_fbgemm_are_a_failure() -> None:
    finding = doctor.check_triple((GOOD | {"fbgemm-gpu": "1.8.0"}).get)
    assert finding.status == "fail"
    assert "overwrite" in finding.found


def test_the_locks_pin_a_working_triple() -> None:
    locks = doctor.read_locks()
    assert set(locks) == {"cpu.txt", "cuda.txt"}
    for pins in locks.values():
        assert doctor.check_triple(pins.get).status == "ok"


def test_pins_are_compared_with_the_lock_of_the_installed_build() -> None:
    pins = doctor.read_locks()["cuda.txt"]
    finding = doctor.check_pins(pins.get)
    assert (finding.status, finding.found) == ("ok", f"all {len(pins)} packages as in cuda.txt")


def test_a_package_that_differs_from_its_pin_is_named() -> None:
    pins = doctor.read_locks()["cpu.txt"]
    installed = {**pins, "duckdb": "0.1"}
    del installed["rich"]
    finding = doctor.check_pins(installed.get)
    assert finding.status == "note"
    assert "duckdb 0.1 (pinned" in finding.found
    assert "rich missing (pinned" in finding.found


def test_a_package_that_cannot_be_imported_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tml_test_wrong_binary.py").write_text("raise OSError('undefined symbol: _ZN3c10')")
    monkeypatch.syspath_prepend(tmp_path)
    finding = doctor.check_imports(("json", "tml_test_wrong_binary"))
    assert finding.status == "fail"
    assert "tml_test_wrong_binary (OSError: undefined symbol: _ZN3c10)" in finding.found
    assert "json" not in finding.found


def test_a_sharded_table_takes_the_step_worked_out_by_hand() -> None:
    finding = doctor.check_sharded_step()
    assert finding.status == "ok", finding.found


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_a_wrong_step_is_a_failure(error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_sharded_step_error", lambda: ("cpu", error))
    finding = doctor.check_sharded_step()
    assert finding.status == "fail"
    assert "limit 1e-5" in finding.found


def test_a_step_that_cannot_be_taken_is_a_failure_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> tuple[str, float]:
        raise RuntimeError("not supported in CPU mode\nmore")

    monkeypatch.setattr(doctor, "_sharded_step_error", broken)
    assert doctor.check_sharded_step().found == "RuntimeError: not supported in CPU mode"


def test_small_shared_memory_names_the_docker_option(tmp_path: Path) -> None:
    finding = doctor.check_shared_memory(str(tmp_path), wanted=1 << 60)
    assert finding.status == "note"
    assert finding.fix is not None
    assert "--shm-size" in finding.fix
    assert doctor.check_shared_memory(str(tmp_path), wanted=1).status == "ok"
    assert doctor.check_shared_memory(str(tmp_path / "missing")).status == "note"


def test_a_gpu_that_torch_cannot_use_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tml.common.device.num_accelerators", lambda: 0)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: Some Model (UUID: GPU-1)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert doctor.check_accelerator().status == "note"
    tool.write_text("#!/bin/sh\necho 'no devices'\nexit 9\n")
    assert doctor.check_accelerator().found == "none; training runs on the CPU"


def test_one_failure_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    good, note = Finding("a", "ok", "fine"), Finding("b", "note", "odd", "look at b")
    assert doctor.run_checks((lambda: good, lambda: note))
    assert not doctor.run_checks((lambda: good, lambda: Finding("c", "fail", "broken", "mend c"), lambda: good))
    printed = capsys.readouterr().out
    for text in ("ok    a", "note  b", "look at b", "fail  c", "broken", "mend c"):
        assert text in printed


def test_a_machine_without_a_compiler_can_train_and_is_told_what_it_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    from tml.common.native import compiler

    monkeypatch.setattr(compiler, "compiled", lambda source: None)
    finding = doctor.check_compiler()
    assert finding.status == "note"
    assert finding.fix is not None
    assert "g++" in finding.fix
