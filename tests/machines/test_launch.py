import logging
import os
import signal
import subprocess
import sys
import time

import pytest
import typer
from typer.testing import CliRunner

from tml.machines import Machine, MachinesError, parse_machines
from tml.machines.cli import CONTEXT_SETTINGS, make_launch_command
from tml.machines.exit_codes import record_exit_code, recorded_exit_code
from tml.machines.launch import (
    LaunchOptions,
    build_torchrun_command,
    choose_num_ranks,
    launch,
    launch_variables,
    num_cores,
)

CHIEF = Machine(mem=2**30, cpu=4, num_accelerators=8, accelerator_type="a100")
CPU_CHIEF = Machine(mem=2**30, cpu=4)
MACHINES = parse_machines({"chief": {"mem": "1Mi", "cpu": 1}})


def test_one_rank_per_declared_accelerator(caplog):
    assert choose_num_ranks(CHIEF, LaunchOptions(cpu_ranks=3), 8) == 8
    assert choose_num_ranks(CHIEF, LaunchOptions(), 16) == 8
    assert not caplog.records


@pytest.mark.parametrize(("here", "cpu_ranks", "expected"), [(2, 1, 2), (0, 1, 1), (0, 3, 3)])
def test_18_fewer_accelerators_than_declared_are_used_and_said(caplog, here, cpu_ranks, expected):
    assert choose_num_ranks(CHIEF, LaunchOptions(cpu_ranks=cpu_ranks), here) == expected
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"8 declared (a100), {here} on this machine" in record.getMessage()


def test_18_fewer_accelerators_than_declared_are_an_error_when_strict():
    with pytest.raises(MachinesError, match=r"(?s)fewer accelerators.*value: 2.*limit: 8 declared \(a100\)"):
        choose_num_ranks(CHIEF, LaunchOptions(strict=True), 2)
    assert choose_num_ranks(CHIEF, LaunchOptions(strict=True), 8) == 8


def test_without_declared_accelerators_cpu_ranks_start_even_beside_some(caplog):
    assert choose_num_ranks(CPU_CHIEF, LaunchOptions(), 4) == 1
    assert choose_num_ranks(CPU_CHIEF, LaunchOptions(cpu_ranks=2), 0) == 2
    assert not caplog.records


def test_asking_for_ranks_overrides_the_declaration(caplog):
    assert choose_num_ranks(CHIEF, LaunchOptions(num_ranks=2), 8) == 2
    assert choose_num_ranks(CHIEF, LaunchOptions(num_ranks=2), 0) == 2
    assert not caplog.records
    assert choose_num_ranks(CHIEF, LaunchOptions(num_ranks=2), 1) == 2
    assert "2 asked for, 1 on this machine" in caplog.text


@pytest.mark.parametrize("options", [LaunchOptions(num_ranks=0), LaunchOptions(cpu_ranks=0)])
def test_no_ranks_at_all_are_refused(options):
    with pytest.raises(MachinesError, match="too small"):
        choose_num_ranks(CHIEF, options, 1)


def test_command_for_one_node():
    command = build_torchrun_command("run.py", ["--config", "a b.yaml"], MACHINES, 3, LaunchOptions(max_restarts=2))
    assert command == [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
        "--nproc-per-node", "3", "--max-restarts", "2",
        "run.py", "--config", "a b.yaml",
    ]  # fmt: skip


def test_command_for_several_nodes_takes_their_number_from_the_replicas():
    machines = parse_machines({"chief": {"mem": "1Gi", "cpu": 1, "replicas": 4}})
    command = build_torchrun_command("run.py", [], machines, 1, LaunchOptions(rdzv_endpoint="host:29400"))
    assert "--standalone" not in command
    assert command[3:9] == ["--nnodes", "4", "--rdzv-backend", "c10d", "--rdzv-endpoint", "host:29400"]
    options = LaunchOptions(rdzv_endpoint="host:29400", num_nodes="1:2")
    assert "1:2" in build_torchrun_command("run.py", [], machines, 1, options)
    with pytest.raises(MachinesError, match=r"(?s)rendezvous.*4 nodes.*--rdzv_endpoint"):
        build_torchrun_command("run.py", [], machines, 1, LaunchOptions())


def test_threads_are_shared_among_ranks_unless_set():
    cores = min(num_cores(), 4)
    assert launch_variables(1, CPU_CHIEF, {"A": "b"}) == {"OMP_NUM_THREADS": str(cores), "A": "b"}
    assert launch_variables(64, CPU_CHIEF, {})["OMP_NUM_THREADS"] == "1"
    assert launch_variables(1, CPU_CHIEF, {"OMP_NUM_THREADS": "7"})["OMP_NUM_THREADS"] == "7"


def test_a_machine_smaller_than_declared_is_said(caplog, tmp_path):
    script = tmp_path / "run.py"
    script.touch()
    machines = parse_machines({"chief": {"mem": "900Pi", "cpu": 9999}})
    assert launch(str(script), [], machines, LaunchOptions(), lambda: 0, dry_run=True) == 0
    assert "declares 9999 cores" in caplog.text
    assert "declares 900 PiB of memory" in caplog.text


def test_a_missing_script_is_named_before_anything_starts():
    with pytest.raises(MachinesError, match=r"(?s)no such script.*nowhere\.py"):
        launch("nowhere.py", [], MACHINES, LaunchOptions(), lambda: 0)


def test_recorded_exit_codes_must_agree_and_belong_to_the_last_start(tmp_path, monkeypatch):
    monkeypatch.delenv("TML_EXIT_CODE_DIR", raising=False)
    record_exit_code(75)
    monkeypatch.setenv("TML_EXIT_CODE_DIR", str(tmp_path))
    assert recorded_exit_code(tmp_path) is None
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        record_exit_code(75)
    assert recorded_exit_code(tmp_path) == 75
    assert recorded_exit_code(tmp_path, restart=0) == 75
    assert recorded_exit_code(tmp_path, restart=1) is None
    record_exit_code(1)
    assert recorded_exit_code(tmp_path) is None


@pytest.fixture
def app():
    app = typer.Typer()
    app.command("launch", context_settings=CONTEXT_SETTINGS)(make_launch_command(lambda: 0))
    app.command("other")(lambda: None)
    return app


def test_command_line_passes_other_arguments_to_the_script(app, tmp_path):
    (tmp_path / "machines.yaml").write_text("chief: {mem: 1Mi, cpu: 1, num_accelerators: 2}\n")
    (tmp_path / "run.py").touch()
    script = str(tmp_path / "run.py")
    arguments = ["launch", script, "--config", "c.yaml", "--machines", str(tmp_path / "machines.yaml"), "a.b=1"]
    result = CliRunner().invoke(app, [*arguments, "--dry_run", "--cpu_ranks", "2", "--print_config"])
    assert result.exit_code == 0
    (line,) = [line for line in result.stdout.splitlines() if "torch.distributed.run" in line]
    assert line.endswith(f"--nproc-per-node 2 --max-restarts 0 {script} --config c.yaml a.b=1 --print_config")
    strict = CliRunner().invoke(app, [*arguments, "--strict"])
    assert isinstance(strict.exception, MachinesError)


RANK_SCRIPT = """\
import os, pathlib, signal, sys, time
from tml.machines.exit_codes import record_exit_code
def stop(*_):
    record_exit_code(75)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], os.environ["RANK"]).write_text(os.environ["OMP_NUM_THREADS"])
time.sleep(120)
"""
LAUNCHER = """\
import sys
from tml.machines import parse_machines
from tml.machines.launch import LaunchOptions, launch
machines = parse_machines({"chief": {"mem": "1Mi", "cpu": 1}})
sys.exit(launch(sys.argv[1], sys.argv[2:], machines, LaunchOptions(cpu_ranks=2), lambda: 0))
"""


def test_sigterm_reaches_the_ranks_through_torchrun_and_75_comes_back(tmp_path):
    (tmp_path / "run.py").write_text(RANK_SCRIPT)
    (tmp_path / "ready").mkdir()
    variables = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", LAUNCHER, str(tmp_path / "run.py"), str(tmp_path / "ready")]
    launcher = subprocess.Popen(command, env=variables, stderr=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + 100
        while len([path for path in (tmp_path / "ready").iterdir() if path.read_text()]) < 2:
            assert launcher.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.1)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(timeout=60) == 75
    finally:
        if launcher.poll() is None:
            launcher.terminate()
            launcher.wait(timeout=60)
    assert sorted(path.name for path in (tmp_path / "ready").iterdir()) == ["0", "1"]
    assert {path.read_text() for path in (tmp_path / "ready").iterdir()} == {"1"}


def test_the_exit_code_of_a_failing_job_comes_back(tmp_path, monkeypatch):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nfor last; do :; done\nexit "$last"\n')
    fake.chmod(0o755)
    (tmp_path / "run.py").touch()
    monkeypatch.setattr(sys, "executable", str(fake))
    arguments = [str(tmp_path / "run.py"), ["7"], MACHINES, LaunchOptions(), lambda: 0]
    before = signal.getsignal(signal.SIGTERM)
    assert launch(*arguments) == 7
    fake.write_text("#!/bin/sh\nkill -9 $$\n")
    assert launch(*arguments) == 137
    fake.write_text('#!/bin/sh\necho 75 > "$TML_EXIT_CODE_DIR/restart-0-rank-0"\nexit 1\n')
    assert launch(*arguments) == 75
    assert signal.getsignal(signal.SIGTERM) is before
