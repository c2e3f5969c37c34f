"""Contestants take turns, A B A B, so that a machine that slows down slows them all; and what came of it as tables.

runs = take_turns({"tml": ours.train, "PBG": theirs.train}, num_rounds=3, unit="edges")
runs.ratio("tml", "PBG").shown(2)          # round by round
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tml.benchmarks.harness import Spread, markdown_table, ratios
from tml.benchmarks.peers import run_worker
from tml.benchmarks.processes import Finished

# A table of rounds with more of them is hard to read.
_MOST_RATIO_COLUMNS = 3


@dataclass(frozen=True)
class Measured:
    """One measurement of one contestant.

    Attributes:
        amount: what was done, in the unit of the comparison.
        seconds: that it took, in the interval that the benchmark names.
        process: time and memory of the whole process, if it had one of its own.
    """

    amount: int
    seconds: float
    process: Finished | None = None

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.amount / self.seconds


@dataclass(frozen=True)
class Runs:
    """All measurements, by contestant.

    Attributes:
        unit: what is counted, in the plural: edges, queries.
        by_name: as many of each.
        baselines: the contestants that the others are held against; the last one if there are none.
    """

    unit: str
    by_name: dict[str, list[Measured]]
    baselines: tuple[str, ...] = ()

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Who is held against whom."""
        baselines = self.baselines or (list(self.by_name)[-1],)
        return [(name, baseline) for name in self.by_name if name not in baselines for baseline in baselines]

    def rates(self, name: str) -> list[float]:
        """Of a contestant, round by round."""
        return [run.rate for run in self.by_name[name]]

    def ratio(self, name: str, baseline: str) -> Spread:
        """How many times as fast as the baseline."""
        return ratios(self.rates(name), self.rates(baseline))

    def seconds(self, name: str) -> Spread:
        """Of the measured interval."""
        return Spread.of([run.seconds for run in self.by_name[name]])

    def record(self) -> dict[str, Any]:
        """What `write_record` keeps: every measurement, and the ratios."""
        described = [
            {"contestant": name, "round": number, "amount": run.amount, "seconds": run.seconds}
            | (_of_process(run.process) if run.process else {})
            for name, runs in self.by_name.items()
            for number, run in enumerate(runs, start=1)
        ]
        found = {f"{name} / {baseline}": self.ratio(name, baseline) for name, baseline in self.pairs}
        return {"unit": self.unit, "runs": described, "rate_ratios": found}

    def report(self, more: Mapping[str, Mapping[str, Any]] | None = None) -> str:
        """Rounds, medians and ratios in Markdown.

        Args:
            more: further columns of the medians, by contestant.
        """
        summary = [self._summary(name) | dict((more or {}).get(name, {})) for name in self.by_name]
        keys = dict.fromkeys(key for row in summary for key in row)
        medians = markdown_table([{key: row.get(key) for key in keys} for row in summary])
        over = [f"{name} / {baseline}: {self.ratio(name, baseline).shown(2)}." for name, baseline in self.pairs]
        parts = [self._rounds(), "Medians (lowest to highest):", medians, "\n".join(f"- {line}" for line in over)]
        return "\n\n".join(part for part in parts if part)

    def _rounds(self) -> str:
        rows = []
        for number, runs in enumerate(zip(*self.by_name.values(), strict=True), start=1):
            named = dict(zip(self.by_name, runs, strict=True))
            row: dict[str, Any] = {"round": number}
            row |= {f"{name} {self.unit}/s": _rounded(run.rate) for name, run in named.items()}
            if len(self.pairs) <= _MOST_RATIO_COLUMNS:
                row |= {f"{name} / {other}": named[name].rate / named[other].rate for name, other in self.pairs}
            rows.append(row)
        return markdown_table(rows)

    def _summary(self, name: str) -> dict[str, Any]:
        runs = self.by_name[name]
        row = {
            "system": name,
            f"{self.unit}/s": Spread.of(self.rates(name)).shown(0 if max(self.rates(name)) >= 100 else 2),
            "seconds": self.seconds(name).shown(2),
        }
        processes = [run.process for run in runs if run.process is not None]
        if processes:
            row["whole process s"] = Spread.of([process.wall_seconds for process in processes]).shown(1)
            row["peak MiB"] = Spread.of([process.peak_bytes / 2**20 for process in processes]).shown()
        return row


def take_turns(
    contestants: Mapping[str, Callable[[], Measured]], num_rounds: int, unit: str, baselines: Sequence[str] = ()
) -> Runs:
    """Measure each contestant once a round, in their order, and print every round as it ends.

    Args:
        contestants: by name.
        num_rounds: at least one.
        unit: what they count, in the plural.
        baselines: that the others are held against; the last one if there are none.
    """
    found: dict[str, list[Measured]] = {name: [] for name in contestants}
    for number in range(num_rounds):
        for name, measure in contestants.items():
            found[name].append(measure())
        latest = ", ".join(f"{name} {_rounded(runs[-1].rate):,}" for name, runs in found.items())
        print(f"round {number + 1}, {unit}/s: {latest}", flush=True)
    return Runs(unit, found, tuple(baselines))


@dataclass(frozen=True)
class Race:
    """Contestants that a script knows as tasks of its own (`script worker JOB.json`), each in a process of its own.

    Attributes:
        script: of the benchmark; writes an answer with the `seconds` that were measured.
        folder: of jobs, answers and logs.
        problem: what the script is told beside the contestant's name.
        amount: what each does, in the unit of the comparison.
    """

    script: Path
    folder: Path
    problem: Mapping[str, Any]
    amount: int

    def run(self, names: Sequence[str], num_rounds: int, unit: str) -> tuple[Runs, dict[str, dict[str, Any]]]:
        """Let the contestants take turns; the last one is the baseline.

        Returns:
            the measurements, and the last answer of each.
        """
        answers: dict[str, dict[str, Any]] = {}

        def measure(name: str) -> Measured:
            answers[name], process = self.ask(name)
            return Measured(self.amount, answers[name]["seconds"], process)

        return take_turns({name: partial(measure, name) for name in names}, num_rounds, unit), answers

    def ask(self, name: str) -> tuple[dict[str, Any], Finished]:
        """A task's answer, and what its process took."""
        job = {"name": name, "problem": dict(self.problem)}
        return run_worker(self.script, job, self.folder / name.replace(" ", "-"))


def timed(action: Callable[[], int]) -> Callable[[], Measured]:
    """A contestant in this process.

    Args:
        action: does the work and returns how much it was, in the unit of the comparison.
    """

    def measure() -> Measured:
        start = time.perf_counter()
        amount = action()
        return Measured(amount, time.perf_counter() - start)

    return measure


def _of_process(process: Finished) -> dict[str, float]:
    return {"wall_seconds": process.wall_seconds, "peak_mib": process.peak_bytes / 2**20}


def _rounded(rate: float) -> int | float:
    return round(rate) if rate >= 100 else round(rate, 2)
