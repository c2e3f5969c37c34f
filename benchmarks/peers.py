"""Other systems in environments of their own: made once by a script, asked for their versions, run as workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tml.benchmarks.harness import ROOT
from tml.benchmarks.processes import Finished, run_measured


def set_up_peer(script: Path, variable: str, folder: str) -> Path:
    """Make a system's environment if it is missing.

    Args:
        script: makes it; does nothing when that is done.
        variable: of the process's environment, names another folder.
        folder: where the environment goes by default, below the repository's root.

    Returns:
        its Python.
    """
    subprocess.run([str(script)], check=True)
    return ROOT / os.environ.get(variable, folder) / "bin" / "python"


def set_up_pbg() -> Path:
    """PyTorch-BigGraph's Python."""
    return set_up_peer(ROOT / "benchmarks" / "twhin_vs_pbg" / "setup_pbg.sh", "TML_VENV_PBG", ".venv-pbg")


def pbg_versions(python: Path) -> dict[str, str]:
    """Of PyTorch-BigGraph and what it rests on."""
    return peer_versions(python, ("torchbiggraph", "torch", "numpy", "h5py"))


def peer_versions(python: Path, packages: Iterable[str]) -> dict[str, str]:
    """Versions of the packages in another environment."""
    code = (
        "import json, sys; from importlib.metadata import version;"
        "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    )
    done = subprocess.run([str(python), "-c", code, *packages], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def run_worker(
    script: Path,
    job: Mapping[str, Any],
    folder: Path,
    python: Path | str = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], Finished]:
    """Run `script worker JOB.json` in a process of its own, which writes JSON to the path that its job has as `out`.

    Args:
        script: knows the task by its job.
        job: plain values.
        folder: of job, answer and log.
        python: of its environment.
        environment: variables beside the present ones.

    Returns:
        what it wrote; its time and memory.

    Raises:
        SystemExit: it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, out = folder / "job.json", folder / "answer.json"
    out.unlink(missing_ok=True)
    path.write_text(json.dumps({**job, "out": str(out)}, indent=1), encoding="utf-8")
    done = run_measured([str(python), str(script), "worker", str(path)], folder / "log", environment)
    return json.loads(out.read_text(encoding="utf-8")), done
