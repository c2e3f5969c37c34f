"""Exit codes with a meaning, and their way through torchrun.

torchrun answers every failure of its workers with 1. So `launch` gives the workers a folder, in
`TML_EXIT_CODE_DIR`, where a rank that ends on purpose leaves its code, and ends with that code itself.
"""

from __future__ import annotations

import os
from pathlib import Path

PREEMPTED_AND_SAVED = 75
FOLDER_VARIABLE = "TML_EXIT_CODE_DIR"


def record_exit_code(code: int) -> None:
    """Leave this rank's exit code for `launch`; call it right before exiting with it. Does nothing outside
    `launch`."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder and os.path.isdir(folder):
        rank, restart = os.environ.get("RANK", "0"), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        Path(folder, f"restart-{restart}-rank-{rank}").write_text(str(code))


def recorded_exit_code(folder: str | os.PathLike[str], restart: int | None = None) -> int | None:
    """The code that all ranks which left one agree on, or None.

    Args:
        folder: where the ranks left them.
        restart: count only those of the group's start number `restart` (0 is the first); None: of the last that
            left any.
    """
    records = {path.name: path.read_text().strip() for path in Path(folder).glob("restart-*-rank-*")}
    starts = {int(name.split("-")[1]) for name in records}
    restart = max(starts, default=0) if restart is None else restart
    codes = {code for name, code in records.items() if int(name.split("-")[1]) == restart}
    code = codes.pop() if len(codes) == 1 else ""
    return int(code) if code.isdecimal() else None
