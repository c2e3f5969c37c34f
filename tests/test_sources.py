"""What the sources import, and that every test checks something."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def functions_of(path: Path) -> list[ast.FunctionDef]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in nodes if isinstance(node, ast.FunctionDef)]


def _modules(*packages: str) -> Iterator[tuple[str, ast.Module]]:
    for package in packages:
        for path in sorted((FOLDER.parent / package).rglob("*.py")):
            yield path.relative_to(FOLDER.parent).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def _imports(nodes: Any) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_b35_nothing_closed_or_heavy_is_imported_by_the_way():
    closed = {"twitter", "tensorflow", "gcsfs", "google", "kubernetes"}
    optional = {"wandb", "mlflow", "usearch", "tensorboard", "s3fs"}
    for path, tree in _modules("common", "core", "machines", "ml_logging", "projects"):
        anywhere = {name.split(".")[0] for name in _imports(ast.walk(tree))}
        at_the_top = {name.split(".")[0] for name in _imports(tree.body)}
        assert not anywhere & closed, path
        assert not at_the_top & optional, path


def test_b36_imports_point_down():
    rooms = ["projects", "core", "common", "machines", "ml_logging"]
    for number, room in enumerate(rooms):
        for path, tree in _modules(room):
            above = {f"tml.{higher}" for higher in rooms[:number]}
            upward = {name for name in _imports(_at_run_time(tree)) if any(name.startswith(a) for a in above)}
            assert not upward, path


def _at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _at_run_time(node)


def test_b37_no_test_is_empty():
    checked = 0
    for path in sorted(FOLDER.rglob("test_*.py")):
        functions = functions_of(path)
        checking = {function.name for function in functions if _checks(function, set())}
        checking |= {function.name for function in functions if _checks(function, checking)}
        tests = {function.name for function in functions if function.name.startswith("test_")}
        assert tests, path
        assert not {name for name in tests if name not in checking}, path
        checked += len(tests)
    assert checked > 500


def _checks(function: ast.FunctionDef, helpers: set[str]) -> bool:
    """Whether a function has an assert, or calls something that does."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if (
                name in helpers | {"raises", "warns", "run_ranks", "gradcheck"}
                or "assert" in name
                or name.startswith("check")
            ):
                return True
    return False
