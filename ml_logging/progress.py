"""Progress with rate and time left: a bar on a terminal, log lines everywhere else."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from tml.ml_logging.rank_logging import get_logger, rank


class Progress:
    """Counts units of work and reports rate and time left; use as a context manager.

        with Progress(num_rows, "converting", "rows") as progress:
            for batch in batches:
                progress.update(len(batch), file=name)

    Rank 0 shows a bar if stderr is a terminal, and otherwise logs a line at most every `log_every` seconds and one
    at the end. Other ranks show nothing.

    Args:
        total: units in all, or None when unknown (then no time left).
        description: what is going on: "training".
        unit: the name of what is counted: "edges".
        log_every: seconds between log lines, at least.
        window: the rate is taken over about the last `window` seconds, so that it follows a change of pace.
        clock: seconds, monotonic; a parameter for tests.
    """

    def __init__(
        self,
        total: int | None,
        description: str,
        unit: str = "steps",
        log_every: float = 10.0,
        window: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.num_done = 0
        self._log_every, self._window, self._clock = log_every, window, clock
        self._fields: dict[str, Any] = {}
        self._start = self._last_log = clock()
        self._marks: deque[tuple[float, int]] = deque([(self._start, 0)])
        self._bar: Any = None

    def __enter__(self) -> Self:
        self._start = self._last_log = self._clock()
        self._marks = deque([(self._start, self.num_done)])
        if rank() == 0 and sys.stderr.isatty():
            self._bar = _Bar(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif rank() == 0:
            self._log(f"{'stopped after' if kind else 'done in'} {duration(self.elapsed)}")

    def update(self, num: int = 1, **fields: Any) -> None:
        """Count `num` more units; `fields` (loss=0.31, ...) are shown beside the count."""
        now = self._clock()
        self.num_done += num
        self._fields.update(fields)
        self._marks.append((now, self.num_done))
        # The newest mark outside the window stays, as the window's left edge.
        while len(self._marks) > 2 and self._marks[1][0] <= now - self._window:
            self._marks.popleft()
        if self._bar is not None:
            self._bar.update()
        elif now - self._last_log >= self._log_every and rank() == 0:
            self._last_log = now
            self._log(self.status())

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    @property
    def rate(self) -> float:
        """Units a second over the window; 0 before the first update."""
        (first_time, first_done), (last_time, last_done) = self._marks[0], self._marks[-1]
        return (last_done - first_done) / (last_time - first_time) if last_time > first_time else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the total at the current rate, or None when either is unknown."""
        rate = self.rate
        if self.total is None or rate <= 0:
            return None
        return max(0, self.total - self.num_done) / rate

    def status(self) -> str:
        """`1,200 of 4,000 edges (30%), 400 edges/s, 7 s left, loss=0.31`."""
        parts = [f"{self.num_done:,} {self.unit}"]
        if self.total:
            parts = [f"{self.num_done:,} of {self.total:,} {self.unit} ({100 * self.num_done // self.total}%)"]
        parts.append(f"{_short(self.rate)} {self.unit}/s")
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        return ", ".join(parts + [f"{name}={_short(value)}" for name, value in self._fields.items()])

    def _log(self, tail: str) -> None:
        rate = self.num_done / self.elapsed if self.elapsed > 0 else 0.0
        fields = {"done": self.num_done, "total": self.total, "rate": self.rate or rate, **self._fields}
        if not tail.startswith(f"{self.num_done:,}"):
            tail = f"{self.num_done:,} {self.unit} {tail}, {_short(rate)} {self.unit}/s"
        get_logger(__name__).info("%s: %s", self.description, tail, extra={"progress": fields})


class _Bar:
    """A rich bar that shows a `Progress`."""

    def __init__(self, progress: Progress) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._progress = progress
        self._rich = RichProgress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"),
            console=Console(stderr=True), transient=False,
        )  # fmt: skip
        self._task = self._rich.add_task(progress.description, total=progress.total, status="")
        self._rich.start()

    def update(self) -> None:
        self._rich.update(self._task, completed=self._progress.num_done, status=self._progress.status())

    def close(self) -> None:
        self.update()
        self._rich.stop()


def duration(seconds: float) -> str:
    """`7 s`, `3 min 05 s` or `2 h 14 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"
