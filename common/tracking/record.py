"""The record of an experiment: `experiment.json` in its folder says what was run, how it went, and what came of it.

record = ExperimentRecord("runs/a")
record.begin(parameters, step=0)            # status RUNNING
record.evaluation(100, {"auc": 0.73})
record.artifact("export", "runs/a/export")  # at any time, also after the end and from another program
record.end("SUCCEEDED")                     # or FAILED with a message, or PREEMPTED: to be continued
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shlex
import socket
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import tml
from tml.common.errors import DataError
from tml.common.filesystem import atomic_write
from tml.common.filesystem.digest import file_info

logger = logging.getLogger(__name__)

RECORD_NAME = "experiment.json"
Status = Literal["RUNNING", "SUCCEEDED", "FAILED", "PREEMPTED"]

_STATUS_OF_CLOSE: dict[str, Status] = {"finished": "SUCCEEDED", "preempted": "PREEMPTED"}


class ExperimentRecord:
    """The record in a folder. Every call reads the file, changes it and replaces it whole, so one program at a time.

    The file holds `status`, `message`, `parameters`, `evaluations` (step, split, time, metrics; a metric that is not
    finite is null), `artifacts` by name (path, sha256, bytes, time), and `starts`: one entry for every time the run was
    started or continued, with command line, host, version, step, start, end, status and message.

    Args:
        folder: of the run; made when something is recorded.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.path = self.folder / RECORD_NAME

    def read(self) -> dict[str, Any]:
        """What is recorded so far; an empty record if there is none, or none that can be read."""
        empty: dict[str, Any] = {"version": 1, "status": None, "message": None, "parameters": {}}
        empty |= {"starts": [], "evaluations": [], "artifacts": {}}
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return empty | found if isinstance(found, dict) else empty
        except FileNotFoundError:
            return empty
        except ValueError as error:
            logger.warning("%s cannot be read and is begun anew: %s", self.path, error)
            return empty

    def begin(self, parameters: Mapping[str, Any], step: int = 0, command_line: str | None = None) -> None:
        """A run starts, or goes on from `step`; what was evaluated after that step is forgotten, as it comes again.

        Args:
            parameters: the whole config as plain values.
            step: completed steps.
            command_line: of this program; by default that of this process.
        """
        record = self.read()
        if record["status"] == "RUNNING":
            _end(record, "FAILED", "ended without a word: it was killed, or the machine went down")
        start = {
            "command_line": shlex.join(sys.argv) if command_line is None else command_line,
            "host": socket.gethostname(),
            "version": tml.__version__,
            "from_step": step,
            "started": _now(),
        }
        record["starts"].append(start)
        record |= {"status": "RUNNING", "message": None, "parameters": _plain(parameters)}
        record["evaluations"] = [evaluation for evaluation in record["evaluations"] if evaluation["step"] <= step]
        self._write(record)

    def evaluation(self, step: int, metrics: Mapping[str, float], split: str = "validation") -> None:
        """An evaluation has these metrics; one of the same step and split is replaced."""
        record = self.read()
        others = [known for known in record["evaluations"] if (known["step"], known["split"]) != (step, split)]
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        record["evaluations"] = [*others, {"step": step, "split": split, "time": _now(), "metrics": finite}]
        self._write(record)

    def artifact(self, name: str, path: str | os.PathLike[str], sha256: str | None = None) -> str:
        """A file or folder came of the run, such as its export.

        Args:
            name: what it is; a later artifact of the same name replaces it.
            path: where it is; recorded relative to the folder if it lies inside.
            sha256: `sha256_of(path)` if it is known already.

        Returns:
            The sha256.

        Raises:
            DataError: there is no such file or folder.
        """
        record, place = self.read(), Path(path)
        digest = sha256_of(place) if sha256 is None else sha256
        inside = place.resolve().is_relative_to(self.folder.resolve())
        shown = place.resolve().relative_to(self.folder.resolve()) if inside else place
        num_bytes = sum(file.stat().st_size for file in _files_of(place))
        record["artifacts"][name] = {"path": str(shown), "sha256": digest, "bytes": num_bytes, "time": _now()}
        self._write(record)
        return digest

    def end(self, status: Status, message: str | None = None) -> None:
        """The run has ended; `message` says why if it failed."""
        record = self.read()
        _end(record, status, message)
        self._write(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path, "w") as file:
            file.write(json.dumps(record, indent=2) + "\n")


class RecordTracker:
    """The record as a tracker: of all values it takes those of evaluations, whose names begin with `eval/`.

    Args:
        folder: of the run.
        step: completed steps of the run that begins.
        parameters: the whole config as plain values.
    """

    def __init__(self, folder: str | os.PathLike[str], step: int, parameters: Mapping[str, Any]) -> None:
        self._record = ExperimentRecord(folder)
        self._record.begin(parameters, step)

    def track(self, step: int, values: Mapping[str, float]) -> None:
        """Record an evaluation's metrics."""
        metrics = {name.removeprefix("eval/"): value for name, value in values.items() if name.startswith("eval/")}
        if metrics:
            self._record.evaluation(step, metrics)

    def close(self, status: str, message: str | None = None) -> None:
        """Record how the run has ended."""
        self._record.end(_STATUS_OF_CLOSE.get(status, "FAILED"), message)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file's content; of a folder, that of its files' relative names and hashes, sorted by name."""
    place = Path(path)
    if place.is_file():
        return file_info(place).sha256
    lines = (f"{file.relative_to(place).as_posix()}\0{sha256_of(file)}\n" for file in _files_of(place))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _files_of(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataError("there is nothing to record", where=place, limit="a file or folder")
    return sorted((file for file in place.rglob("*") if file.is_file()), key=lambda file: file.as_posix())


def _end(record: dict[str, Any], status: Status, message: str | None) -> None:
    record |= {"status": status, "message": message}
    if record["starts"]:
        record["starts"][-1] |= {"ended": _now(), "status": status, "message": message}


def _plain(value: Any) -> Any:
    """JSON has no infinity; as a parameter it is text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
