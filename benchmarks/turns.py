"""Contestants take turns, A B A B, so that a machine that slows down slows them all; and what came of it as tables.

runs = take_turns({"tml": ours.train, "PBG": theirs.train}, num_rounds=3, unit="edges")
runs.ratio("tml").shown(2)          # over the last one, the baseline, round by round
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tml.benchmarks.harness import Spread, markdown_table, ratios
from tml.benchmarks.processes import Finished


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
    """All measurements, by contestant; the last one is the baseline.

    Attributes:
        unit: what is counted, in the plural: edges, queries.
        by_name: as many of each.
    """

    unit: str
    by_name: dict[str, list[Measured]]

    @property
    def baseline(self) -> str:
        """The contestant that the others are held against."""
        return list(self.by_name)[-1]

    def rates(self, name: str) -> list[float]:
        """Of a contestant, round by round."""
        return [run.rate for run in self.by_name[name]]

    def ratio(self, name: str) -> Spread:
        """How many times as fast as the baseline."""
        return ratios(self.rates(name), self.rates(self.baseline))

    def seconds(self, name: str) -> Spread:
        """Of the measured interval."""
        return Spread.of([run.seconds for run in self.by_name[name]])

    def record(self) -> dict[str, Any]:
        """What `write_record` keeps: every measurement, and the ratios."""
        rows = [
            {"amount": run.amount, "seconds": run.seconds} | (_of_process(run.process) if run.process else {})
            for runs in self.by_name.values()
            for run in runs
        ]
        names = [name for name, runs in self.by_name.items() for _ in runs]
        rounds = [number + 1 for runs in self.by_name.values() for number in range(len(runs))]
        described = [
            {"contestant": name, "round": number} | row for name, number, row in zip(names, rounds, rows, strict=True)
        ]
        others = [name for name in self.by_name if name != self.baseline]
        return {"unit": self.unit, "runs": described, "rate_ratios": {name: self.ratio(name) for name in others}}

    def report(self, more: Mapping[str, Mapping[str, Any]] | None = None) -> str:
        """Rounds, medians and ratios in Markdown.

        Args:
            more: further columns of the medians, by contestant.
        """
        summary = [self._summary(name) | dict((more or {}).get(name, {})) for name in self.by_name]
        keys = dict.fromkeys(key for row in summary for key in row)
        medians = markdown_table([{key: row.get(key) for key in keys} for row in summary])
        over = [
            f"{name} / {self.baseline}: {self.ratio(name).shown(2)}." for name in self.by_name if name != self.baseline
        ]
        parts = [self._rounds(), "Medians (lowest to highest):", medians, " ".join(over)]
        return "\n\n".join(part for part in parts if part)

    def _rounds(self) -> str:
        rows = []
        for number, runs in enumerate(zip(*self.by_name.values(), strict=True), start=1):
            named = dict(zip(self.by_name, runs, strict=True))
            row: dict[str, Any] = {"round": number}
            row |= {f"{name} {self.unit}/s": _rounded(run.rate) for name, run in named.items()}
            others = [name for name in named if name != self.baseline]
            label = (lambda name: "ratio") if len(others) == 1 else (lambda name: f"{name} ratio")
            rows.append(row | {label(name): named[name].rate / named[self.baseline].rate for name in others})
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


def take_turns(contestants: Mapping[str, Callable[[], Measured]], num_rounds: int, unit: str) -> Runs:
    """Measure each contestant once a round, in their order, and print every round as it ends.

    Args:
        contestants: the last one is the baseline.
        num_rounds: at least one.
        unit: what they count, in the plural.
    """
    found: dict[str, list[Measured]] = {name: [] for name in contestants}
    for number in range(num_rounds):
        for name, measure in contestants.items():
            found[name].append(measure())
        latest = ", ".join(f"{name} {_rounded(runs[-1].rate):,}" for name, runs in found.items())
        print(f"round {number + 1}, {unit}/s: {latest}", flush=True)
    return Runs(unit, found)


def _of_process(process: Finished) -> dict[str, float]:
    return {"wall_seconds": process.wall_seconds, "peak_mib": process.peak_bytes / 2**20}


def _rounded(rate: float) -> int | float:
    return round(rate) if rate >= 100 else round(rate, 2)
