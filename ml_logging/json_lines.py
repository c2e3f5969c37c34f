"""Log records as JSON lines."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_STANDARD = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonLinesHandler(logging.Handler):
    """Appends one JSON object a record: time (ISO, UTC), level, rank, name, message, `error` with the stack if
    there is one, and the record's extra fields (`logger.info("...", extra={"step": 3})`).

    A full disk must not stop training: the first failure to write is said on stderr, further ones are silent.
    """

    def __init__(self, path: str | os.PathLike[str], rank: int) -> None:
        super().__init__()
        self._path = Path(path)
        self._rank = rank
        self._failed = False
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Appending whole lines with single writes keeps the lines of several ranks apart.
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            os.write(self._descriptor, (self._line(record) + "\n").encode())
        except Exception as error:
            if not self._failed:
                self._failed = True
                print(f"cannot write log lines to {self._path}: {error}; going on without", file=sys.stderr)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        super().close()

    def _line(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "rank": self._rank,
            "name": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["error"] = logging.Formatter().formatException(record.exc_info)
        extra = {key: _plain(value) for key, value in record.__dict__.items() if key not in _STANDARD}
        return json.dumps(extra | fields, default=str)


def _plain(value: Any) -> Any:
    # JSON has no NaN or infinity, and many readers refuse a whole file over one.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
