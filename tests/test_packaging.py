"""The wheel works away from the repository, and the lock files are complete."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]

# torchrec asks for the GPU build of fbgemm on every machine, and for a torchmetrics that its code has long outgrown.
KNOWN_COMPLAINTS = {("torchrec", "fbgemm-gpu"), ("torchrec", "torchmetrics")}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins)
    return dict(pins)


def package_sources() -> list[Path]:
    rooms = [
        "__init__.py",
        "pyproject.toml",
        "README.md",
        "requirements",
        "projects",
        "core",
        "common",
        "machines",
        "ml_logging",
    ]
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *rooms],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    return [Path(name) for name in listing.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that nothing old in build/ gets in and nothing new is left there."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for path in package_sources():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, tree / path)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-qq",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        out,
    ]
    subprocess.run([*map(str, command), str(tree)], check=True)
    (built,) = out.glob("tml-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-qq",
        "--no-deps",
        "--no-index",
        "--no-compile",
        "--target",
        str(target),
    ]
    subprocess.run([*command, str(wheel)], check=True)
    return target


def run_installed(installed: Path, cwd: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_wheel_holds_every_module_and_no_tests(wheel: Path) -> None:
    inside = {name.removeprefix("tml/") for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    assert inside == {path.as_posix() for path in package_sources() if path.suffix == ".py"}


def test_the_wheel_holds_configs_machines_and_locks(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"tml/{path.as_posix()}" for path in package_sources() if path.suffix == ".yaml" or path.name.endswith(".txt")
    }
    assert {"tml/projects/twhin/machines.yaml", "tml/requirements/cpu.txt", "tml/requirements/cuda.txt"} <= wanted
    assert wanted <= inside


def test_the_command_runs_from_the_wheel_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    assert "doctor" in run_installed(installed, tmp_path, "-m", "tml.projects.cli", "--help")
    where = run_installed(installed, tmp_path, "-c", "import tml; print(tml.__file__)")
    assert Path(where.strip()) == installed / "tml" / "__init__.py"


def test_doctor_finds_the_locks_in_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "from tml.projects.doctor import read_locks; print(sorted(read_locks()), read_locks()['cpu.txt']['torch'])"
    assert (
        run_installed(installed, tmp_path, "-c", code).strip()
        == f"['cpu.txt', 'cuda.txt'] {read_lock('cpu.txt')['torch']}"
    )


def test_the_wheel_has_the_command(wheel: Path) -> None:
    (entry_points,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("entry_points.txt"))
    assert "tml = tml.projects.cli:main" in zipfile.ZipFile(wheel).read(entry_points).decode()


def test_the_lock_satisfies_every_requirement_of_its_packages() -> None:
    pins = read_lock("cpu.txt" if installed_build("fbgemm-gpu-cpu") else "cuda.txt")
    complaints = set()
    for package in pins:
        for text in metadata.requires(package) or []:
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            pinned = pins.get(normalised(requirement.name))
            if pinned is None or not requirement.specifier.contains(pinned, prereleases=True):
                complaints.add((package, normalised(requirement.name)))
    assert complaints == {known for known in KNOWN_COMPLAINTS if known[1] not in pins or known[1] == "torchmetrics"}


def installed_build(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def test_the_two_locks_differ_only_in_what_the_device_needs() -> None:
    cpu, cuda = read_lock("cpu.txt"), read_lock("cuda.txt")
    assert cpu.pop("fbgemm-gpu-cpu") == cuda.pop("fbgemm-gpu")
    assert cpu.items() <= cuda.items()
    assert {name.split("-")[0] for name in cuda.keys() - cpu.keys()} == {"cuda", "nvidia", "triton"}


def test_every_direct_dependency_is_pinned_to_its_list() -> None:
    lists = [ROOT / "requirements" / name for name in ("base.in", "dev.in", "no_deps.in", "cpu.in")]
    lines = [line.split("#")[0].strip() for path in lists for line in path.read_text().splitlines()]
    direct = [line.split("==") for line in lines if line and not line.startswith("-r")]
    pins = read_lock("cpu.txt")
    assert len(direct) > 15
    assert {normalised(name): version for name, version in direct}.items() <= pins.items()
