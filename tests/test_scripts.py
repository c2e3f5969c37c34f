"""The shell scripts: clean, honest about what they would run, and set-up that installs what it says, once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([
    *ROOT.glob("scripts/*.sh"), *ROOT.glob("projects/*/scripts/*.sh"), *ROOT.glob("benchmarks/*/*.sh"),
    ROOT / ".ci" / "run",
])  # fmt: skip

# A Python that makes environments with nothing but itself in them, and writes down what pip was asked for.
FAKE_PYTHON = """\
#!/usr/bin/env bash
case "$*" in
"-c import sys"*) exit 0 ;;
--version) echo Python 3.11.0 ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-c import torch.version"*) echo "${FAKE_BUILD:-cpu}" ;;
"-c import "*) exit "${FAKE_NO_IMPORT:-0}" ;;
"-m pip install "*)
  echo "$*" >>"$FAKE_LOG"
  case "$*" in *"+cpu"*) exit "${FAKE_NO_LOCAL_TORCH:-0}" ;; esac
  ;;
*) echo "unexpected: $*" >&2; exit 9 ;;
esac
"""


def run(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TML_", "NUM_RANKS"))}
    return subprocess.run(
        ["bash", str(ROOT / script), *arguments],
        env={**inherited, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class FakeMachine:
    """Set-up with `FAKE_PYTHON` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.venv, self.log, self.python = folder / "venv", folder / "pip.log", folder / "python"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)

    def setup(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        settings = {
            "TML_PYTHON": str(self.python), "TML_VENV": str(self.venv), "TML_DEVICE": "cpu", "FAKE_LOG": str(self.log),
        }  # fmt: skip
        return run("scripts/setup.sh", *arguments, **{**settings, **variables})

    def setup_peer(self, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        venvs = {f"TML_VENV_{peer}": str(self.venv) for peer in ("PBG", "KERAS")}
        return run(script, **{"TML_PYTHON": str(self.python), "FAKE_LOG": str(self.log), **venvs, **variables})

    def pip_calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


def test_scripts_are_clean_for_shellcheck() -> None:
    assert len(SCRIPTS) >= 10
    tool = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([str(tool), *map(str, SCRIPTS)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_scripts_are_executable_and_stop_at_errors() -> None:
    for script in SCRIPTS:
        if script.name != "lib.sh":
            assert os.access(script, os.X_OK), script
            assert "set -euo pipefail" in script.read_text(), script


@pytest.mark.parametrize(
    ("docker_script", "host_twin"),
    [
        ("scripts/docker_run.sh", "scripts/run_local.sh"),
        ("scripts/docker_test.sh", "scripts/test.sh"),
        ("projects/twhin/scripts/docker_run.sh", "projects/twhin/scripts/run_in_docker.sh"),
        ("projects/light_ranker/scripts/docker_run.sh", "projects/light_ranker/scripts/run_in_docker.sh"),
    ],
)
def test_a_docker_script_runs_its_host_twin_on_the_checkout(docker_script: str, host_twin: str) -> None:
    shown = run(docker_script, "--extra", DRY_RUN="1", TML_DEVICE="cpu")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("docker run --rm ")
    assert f"--volume {ROOT}:/app" in shown.stdout
    assert shown.stdout.endswith(f" tml:cpu {host_twin} --extra\n")
    assert (ROOT / host_twin).is_file()


def test_idocker_opens_a_shell() -> None:
    assert run("scripts/idocker.sh", DRY_RUN="1", TML_DEVICE="cpu").stdout.endswith(" -it tml:cpu bash\n")


def test_the_gpu_image_sees_the_gpus() -> None:
    shown = run("scripts/docker_run.sh", DRY_RUN="1", TML_DEVICE="cuda").stdout
    assert " --gpus all " in shown
    assert " tml:cuda " in shown
    assert " --gpus " not in run("scripts/docker_run.sh", DRY_RUN="1", TML_DEVICE="cpu").stdout


def test_real_data_is_mounted_when_it_is_named() -> None:
    shown = run("scripts/docker_test.sh", DRY_RUN="1", TML_DEVICE="cpu", TML_DATA="/some/data").stdout
    assert "--volume /some/data:/data:ro --env TML_DATA=/data" in shown


def test_images_are_built_for_the_device_and_with_the_callers_indexes() -> None:
    shown = run(
        "scripts/build_images.sh", DRY_RUN="1", TML_DEVICE="cuda", TML_TORCH_INDEX="https://example.org/whl"
    ).stdout
    assert shown == "docker build --tag tml:cuda --build-arg DEVICE=cuda --build-arg TML_TORCH_INDEX .\n"


def test_the_image_is_made_by_the_same_set_up() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "RUN scripts/setup.sh\n" in dockerfile
    assert "USER tml" in dockerfile
    assert "scripts/docker_test.sh" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_continuous_integration_runs_every_check() -> None:
    assert "exec scripts/test.sh" in (ROOT / ".ci" / "run").read_text()
    checks = (ROOT / "scripts" / "test.sh").read_text()
    for command in (
        "ruff check .",
        "ruff format --check .",
        "lint-imports",
        "mypy -p tml.projects -p tml.core -p tml.common -p tml.machines -p tml.ml_logging",
        "shellcheck",
        "pytest",
    ):
        assert command in checks


def test_set_up_never_follows_requirements(machine: FakeMachine) -> None:
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    calls = machine.pip_calls()
    assert [call.split("--no-compile ")[1] for call in calls] == [
        f"torch=={pinned_torch()}+cpu",
        "-r requirements/cpu.txt",
        "--no-build-isolation --editable .",
    ]
    assert all("--no-deps" in call for call in calls)


def test_a_second_set_up_does_nothing(machine: FakeMachine) -> None:
    machine.setup()
    done = machine.setup()
    assert done.returncode == 0
    assert "up to date" in done.stdout
    assert machine.pip_calls() == []


def test_an_interrupted_set_up_is_finished_by_the_next(machine: FakeMachine) -> None:
    machine.setup()
    (machine.venv / ".tml-stamp").write_text("cpu unfinished\n")
    assert machine.setup().returncode == 0
    assert len(machine.pip_calls()) == 3


def test_without_a_local_build_torch_comes_from_the_public_cpu_index(machine: FakeMachine) -> None:
    assert machine.setup(FAKE_NO_LOCAL_TORCH="1").returncode == 0
    assert machine.pip_calls()[1].endswith(f"--index-url https://download.pytorch.org/whl/cpu torch=={pinned_torch()}")


def test_a_named_torch_index_is_the_only_one_asked(machine: FakeMachine) -> None:
    assert machine.setup(TML_TORCH_INDEX="https://example.org/whl").returncode == 0
    assert machine.pip_calls()[0].endswith(f"--index-url https://example.org/whl torch=={pinned_torch()}")


def test_the_gpu_lock_takes_torch_like_any_other_package(machine: FakeMachine) -> None:
    assert machine.setup(TML_DEVICE="cuda", FAKE_BUILD="cuda").returncode == 0
    assert [call.split("--no-compile ")[1] for call in machine.pip_calls()] == [
        "-r requirements/cuda.txt",
        "--no-build-isolation --editable .",
    ]


def test_a_torch_of_the_wrong_build_is_refused_and_not_taken_for_ready(machine: FakeMachine) -> None:
    done = machine.setup(FAKE_BUILD="cuda")
    assert done.returncode == 1
    assert "error: the installed torch is a cuda build" in done.stderr
    assert "up to date" not in machine.setup().stdout


def test_changing_the_device_starts_from_an_empty_environment(machine: FakeMachine) -> None:
    machine.setup()
    leftover = machine.venv / "lib"
    leftover.mkdir()
    assert machine.setup(TML_DEVICE="cuda", FAKE_BUILD="cuda").returncode == 0
    assert not leftover.exists()


def test_packages_alone_are_not_taken_for_the_whole(machine: FakeMachine) -> None:
    machine.setup("packages")
    assert not any("--editable" in call for call in machine.pip_calls())
    machine.setup()
    assert any("--editable" in call for call in machine.pip_calls())


def test_the_environment_of_pbg_has_the_cpu_build_of_torch_before_anything_that_needs_it(machine: FakeMachine) -> None:
    done = machine.setup_peer("benchmarks/twhin_vs_pbg/setup_pbg.sh")
    assert done.returncode == 0, done.stderr
    first, second = machine.pip_calls()
    assert first.endswith("install -qq --disable-pip-version-check torch==2.13.0+cpu")
    assert " torchbiggraph==1.0.0 torch==2.13.0 setuptools<81 " in second


def test_the_environment_of_a_peer_is_made_once_and_not_taken_for_ready_before_it_works(machine: FakeMachine) -> None:
    script = "benchmarks/light_ranker_vs_keras/setup_keras.sh"
    done = machine.setup_peer(script, FAKE_NO_IMPORT="1")
    assert done.returncode == 1
    assert "error: keras, pyarrow, tensorflow: cannot be imported" in done.stderr
    assert machine.setup_peer(script).returncode == 0
    assert " tensorflow-cpu==2.21.0 " in machine.pip_calls()[0]
    assert machine.setup_peer(script).returncode == 0
    assert machine.pip_calls() == []


@pytest.mark.parametrize("venv", ["relative", "/absolute"])
def test_the_environments_commands_come_first(venv: str, tmp_path: Path) -> None:
    folder = tmp_path / "env"
    (folder / "bin").mkdir(parents=True)
    named = "env" if venv == "relative" else str(folder)
    code = f"cd {tmp_path}; . {ROOT}/scripts/lib.sh; use_venv; echo ${{PATH%%:*}}"
    shown = subprocess.run(["bash", "-c", code], env={**os.environ, "TML_VENV": named}, capture_output=True, text=True)
    assert shown.stdout.strip() == f"{folder}/bin"


def test_no_usable_python_is_said_with_the_limit(machine: FakeMachine) -> None:
    done = machine.setup(TML_PYTHON="false")
    assert done.returncode == 1
    assert "error: no usable Python found" in done.stderr
    assert "3.11 <= Python" in done.stderr


def test_an_unknown_device_is_said_with_the_known_ones(machine: FakeMachine) -> None:
    done = machine.setup(TML_DEVICE="tpu")
    assert done.returncode == 1
    assert "limit: cpu or cuda" in done.stderr


def pinned_torch() -> str:
    lines = (ROOT / "requirements" / "cpu.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith("torch==")).removeprefix("torch==")
