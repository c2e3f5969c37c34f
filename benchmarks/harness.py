"""What benchmarks share: options, medians and spread, the machine, versions and commit, and the record of a run."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATA = ROOT / "data" / "benchmarks"
RUNS = ROOT / "runs" / "benchmarks"

PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "numpy", "pyarrow")


@dataclass(frozen=True)
class Spread:
    """The middle and the ends of repeated measurements of one thing."""

    median: float
    low: float
    high: float
    num_rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def shown(self, digits: int = 0) -> str:
        """`median (low to high)`."""
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f} to {self.high:,.{digits}f})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours over theirs, round by round: neighbours in time share the machine's mood, whole series do not."""
    return Spread.of([mine / other for mine, other in zip(ours, theirs, strict=True)])


def parse_count(text: str) -> int:
    """A whole number with an optional `k` or `m`: `200k` is 200,000."""
    factor = {"k": 1_000, "m": 1_000_000}.get(text[-1:].lower(), 1)
    with suppress(ValueError):
        number = float(text[:-1] if factor > 1 else text) * factor
        if number >= 1 and number.is_integer():
            return int(number)
    raise ArgumentTypeError(f"{text!r} is not a positive whole number")


def some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """The type of an option that takes some known names, commas between them."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise ArgumentTypeError(f"unknown name {name!r}; known: {', '.join(known)}")
        return names

    return parse


def argument_parser(
    description: str | None, record: str, rounds: str | None = None, default_rounds: int = 3, overrides: bool = False
) -> ArgumentParser:
    """A benchmark's command line with the options that most of them have.

    Args:
        description: the docstring of the script, which `--help` shows as it is.
        record: name of the record; a run of other sizes can have a record of its own.
        rounds: what `--rounds` counts; without it there is no such option.
        default_rounds: of that option.
        overrides: whether `--set SECTION.KEY=VALUE` changes tml's config.
    """
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--record", default=record, metavar="NAME", help="of the record (default: %(default)s)")
    if rounds:
        parser.add_argument("--rounds", type=parse_count, default=default_rounds, help=rounds)
    if overrides:
        parser.add_argument(
            "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a setting of tml's config"
        )
    return parser


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    processor = _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()
    flags = (_field("/proc/cpuinfo", "flags") or "").split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor,
        "usable_cores": len(os.sched_getaffinity(0)),
        "vector_units": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Installed versions; packages that are not installed are left out."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of this checkout, with `+changes` if tracked files differ from it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def circumstances() -> dict[str, Any]:
    """When, where and with what a benchmark begins."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table; numbers to the right."""
    names = list(rows[0])
    cells = [[_cell(row[name]) for name in names] for row in rows]
    numeric = [all(isinstance(row[name], int | float | None) for row in rows) for name in names]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]

    def line(values: Sequence[str]) -> str:
        padded = [
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(values, widths, numeric, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (width - 1) + ":" if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
    return "\n".join([line(names), line(rule), *map(line, cells)])


def write_record(folder: Path, name: str, record: Mapping[str, Any], text: str) -> None:
    """Print a result, and write it to `folder/name.json` and `folder/name.md`.

    Args:
        folder: made if it is missing.
        name: of the benchmark.
        record: everything that was measured; `Spread` values are allowed.
        text: what a reader wants to see, in Markdown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    where = record["circumstances"]
    page = f"# {name}\n\n{text}\n\n{_describe(where)}\n"
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1, default=_plain) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(page, encoding="utf-8")
    print(f"\n{page}\nrecord: {folder / name}.json, {folder / name}.md")


def _describe(where: Mapping[str, Any]) -> str:
    host = where["machine"]
    installed = _listed(where["versions"])
    peers = "".join(f" {system}: {_listed(versions)}." for system, versions in where.get("peers", {}).items())
    return (
        f"Machine: {host['processor']}, {host['usable_cores']} usable cores, {host['memory_gib']} GiB, "
        f"{' '.join(host['vector_units'])}; load at the start {host['load_before']}. "
        f"Python {host['python']}, {installed}.{peers} Commit {where['commit']}, {where['time']}."
    )


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}".lstrip("0") if abs(value) < 1 else f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be recorded")


def _field(path: str, name: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith(name)), None)
    except OSError:
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
