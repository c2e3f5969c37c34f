"""The floor plan of docs/architecture.md, held against the code; the contracts in pyproject.toml check the imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("projects", "core", "common", "machines", "ml_logging")
MAX_FUNCTION_LINES = 80


@cache
def project_files() -> tuple[Path, ...]:
    """Every file of the checkout that git does not ignore."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    paths = (ROOT / name for name in listing.stdout.decode().split("\0") if name)
    return tuple(sorted(path for path in paths if path.is_file()))


def python_files() -> list[Path]:
    return [path for path in project_files() if path.suffix == ".py"]


def package_files() -> list[Path]:
    return [path for path in python_files() if path.relative_to(ROOT).parts[0] in (*ROOMS, "__init__.py")]


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions_of(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_the_walk_finds_the_code():
    names = {shown(path) for path in package_files()}
    assert {"__init__.py", "common/device.py", "projects/cli.py"} <= names
    assert shown(Path(__file__)) in {shown(path) for path in python_files()}


def test_no_function_is_longer_than_80_lines():
    too_long = [
        f"{shown(path)}:{function.lineno} {function.name} has {function.end_lineno - function.lineno + 1} lines"
        for path in python_files()
        for function in functions_of(path)
        if function.end_lineno - function.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not too_long, "\n".join(too_long)


def test_only_the_device_module_names_the_vendors_device():
    word = "cu" + "da"
    naming = [shown(path) for path in package_files() if word in path.read_text(encoding="utf-8").lower()]
    assert naming == ["common/device.py"]


def test_every_package_is_listed_for_the_wheel():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    existing = {".".join(("tml", *path.relative_to(ROOT).parts[:-1])) for path in package_files()}
    assert existing == listed


def test_every_package_folder_has_an_init():
    bare = {shown(path.parent) for path in package_files() if not (path.parent / "__init__.py").is_file()}
    assert not bare


def test_every_module_says_what_it_is():
    silent = []
    for path in python_files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        empty_init = path.name == "__init__.py" and not tree.body
        if not ast.get_docstring(tree) and not empty_init:
            silent.append(shown(path))
    tests_speak_by_their_names = [name for name in silent if name.startswith(("tests/", "benchmarks/"))]
    assert sorted(set(silent) - set(tests_speak_by_their_names)) == []


def test_nothing_is_left_to_do():
    marks = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK")) + r")\b")
    found = [
        f"{shown(path)}:{number}"
        for path in project_files()
        if path.suffix in (".py", ".sh", ".md", ".yaml", ".yml", ".toml")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if marks.search(line)
    ]
    assert not found


def test_no_file_knows_the_machine_it_was_written_on():
    # Only .ci/run may name the folder beside the checkout in which continuous integration keeps real data.
    private = re.compile(
        "|".join(("/wo" + "rk/", "/ro" + "ot/", r"/tmp/ve" + "nv", "sha" + "red/(data|design|seeds|peers)"))
    )
    naming = []
    for path in project_files():
        if shown(path) == ".ci/run" or path.suffix not in (
            ".py",
            ".sh",
            ".md",
            ".yaml",
            ".yml",
            ".toml",
            ".txt",
            ".in",
            "",
        ):
            continue
        naming += [
            f"{shown(path)}:{number}"
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
            if private.search(line)
        ]
    assert not naming


def test_the_command_line_starts_without_torch():
    code = (
        "import sys, tml.projects.cli; print([name for name in ('torch', 'torchrec', 'duckdb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("project", ["twhin", "light_ranker"])
def test_a_run_starts_without_what_only_its_later_phases_need(project):
    later = ("torchmetrics", "scipy", "sklearn", "matplotlib", "pandas", "tensorboard", "duckdb", "onnx", "onnxruntime")
    code = f"import sys, tml.projects.{project}.run; print([name for name in {later} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == "[]"
