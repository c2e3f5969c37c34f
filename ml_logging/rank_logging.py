"""One logger for all of tml, on the standard library's `logging`, that knows which rank it speaks for.

The rank comes from the environment, as torchrun and Slurm set it, so that logging works before any process group
and without torch.
"""

from __future__ import annotations

import logging
import os
import sys

from tml.ml_logging.json_lines import JsonLinesHandler

ROOT = "tml"
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_warned: set[tuple[str, str]] = set()


def rank() -> int:
    """This process's global rank: `RANK`, else Slurm's inside a step, else 0."""
    in_slurm_step = "SLURM_STEP_NUM_TASKS" in os.environ
    text = os.environ.get("RANK") or (os.environ.get("SLURM_PROCID") if in_slurm_step else None) or "0"
    # A malformed rank is reported where the process group is set up; a log line is no place to fail.
    return int(text) if text.isdecimal() else 0


def get_logger(name: str) -> logging.Logger:
    """A logger under `tml`; pass `__name__`. Works before `configure_logging` (then only warnings are shown)."""
    if name == ROOT or name.startswith(ROOT + "."):
        return logging.getLogger(name)
    return logging.getLogger(f"{ROOT}.{name.strip('_') or 'main'}")


def configure_logging(
    level: str = "info", json_lines_path: str | os.PathLike[str] | None = None, all_ranks: bool = False
) -> None:
    """Send log records to stderr and, on request, to a file of JSON lines. Call it once, early; a second call
    replaces the first.

    Args:
        level: "debug", "info", "warning" or "error".
        json_lines_path: file to append to, one object a record; its folder is made. Ranks share one file.
        all_ranks: False: rank 0 logs, other ranks only errors. True: every rank logs. Records of ranks other than
            0, and of all ranks when all log, carry their rank.

    Raises:
        ValueError: `level` is unknown.
    """
    if level.lower() not in LEVELS:
        raise ValueError(f"unknown log level {level!r}; known: {', '.join(LEVELS)}")
    threshold = LEVELS[level.lower()]
    if rank() != 0 and not all_ranks:
        threshold = logging.ERROR
    root = logging.getLogger(ROOT)
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(threshold)
    root.addHandler(_console_handler(show_rank=all_ranks or rank() != 0))
    if json_lines_path is not None:
        root.addHandler(JsonLinesHandler(json_lines_path, rank()))


def warn_once(logger: logging.Logger, message: str) -> None:
    """Log a warning the first time this logger is given this message, and never again in this process."""
    key = (logger.name, message)
    if key not in _warned:
        _warned.add(key)
        logger.warning(message, stacklevel=2)


def _console_handler(show_rank: bool) -> logging.Handler:
    prefix = f"[rank {rank()}] " if show_rank else ""
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter(f"{prefix}%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    return handler


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to whatever `sys.stderr` is at the time, as rich and test runners replace it."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
