"""From a table of strings to training data: `tml convert` against PyTorch-BigGraph's importer, on the same TSV file.

    python benchmarks/convert_speed.py                          # 2 M edges, three rounds
    python benchmarks/convert_speed.py --edges 200k --rounds 1

Both read `left id <tab> relation <tab> right id`, number the ids of each type of node, and write numbered edges:
parquet and a vocabulary (tml), HDF5 and a list of names (PBG, `import_from_tsv`). tml also counts ids, checks every
line and proposes a config; PBG keeps all ids in Python's dictionaries and shuffles them. That both found as many edges
and nodes is checked.

The interval is that of the whole process, from its start to its end, imports included: it is a command that people wait
for. Memory is the peak of all processes of a system.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tml.benchmarks.harness import DATA, RUNS, argument_parser, circumstances, parse_count, write_record
from tml.benchmarks.peers import pbg_versions, run_worker, set_up_pbg
from tml.benchmarks.runs import run_tml
from tml.benchmarks.turns import Measured, take_turns
from tml.benchmarks.twhin_vs_pbg.settings import Graph

HERE = Path(__file__).resolve().parent
WORK = RUNS / "convert_speed"


def main() -> None:
    arguments = _parse_arguments()
    python = set_up_pbg()
    edges = sample_edges(arguments.edges)
    record: dict[str, Any] = {"circumstances": circumstances() | {"peers": {"PBG": pbg_versions(python)}}}
    found: dict[str, dict[str, Any]] = {}
    contestants: dict[str, Callable[[], Measured]] = {
        "tml": lambda: convert_with_tml(edges, found),
        "PBG": lambda: convert_with_pbg(edges, python, found),
    }
    runs = take_turns(contestants, arguments.rounds, "edges")
    require_equal(found)
    counts = ", ".join(f"{size:,} {name}s" for name, size in found["tml"]["num_entities"].items())
    text = f"{found['tml']['num_edges']:,} edges, {edges.stat().st_size / 2**20:,.0f} MiB of TSV; {counts}."
    record |= runs.record() | {"found": found}
    write_record(arguments.results, arguments.record, record, f"{text}\n\n{runs.report()}")


def sample_edges(num_edges: int) -> Path:
    """A TSV file of `tml sample-graph`, kept under data/benchmarks."""
    folder = DATA / f"tsv-{num_edges}"
    run_tml(["sample-graph", "--edges", str(num_edges), "--out", folder], WORK / "sample.log")
    return folder / "edges.tsv"


def convert_with_tml(edges: Path, found: dict[str, dict[str, Any]]) -> Measured:
    """Convert anew, and note what was found under `tml`."""
    folder = WORK / "tml"
    shutil.rmtree(folder, ignore_errors=True)
    process = run_tml(["convert", edges, "--typed-ids", ":", "--out", folder], WORK / "tml-convert.log")
    # Some edges are held out for validation and test.
    files = sorted((folder / "edges").glob("*/*.parquet"))
    num_edges = sum(pq.read_metadata(file).num_rows for file in files)
    found["tml"] = {"num_edges": num_edges, "num_entities": Graph.read(folder).tables}
    return Measured(num_edges, process.wall_seconds, process)


def convert_with_pbg(edges: Path, python: Path, found: dict[str, dict[str, Any]]) -> Measured:
    """Likewise by PBG; the types of nodes are those that tml found, as PBG has to be told."""
    graph = Graph.read(WORK / "tml")
    job = {"edges": str(edges), "folder": str(WORK / "pbg-data"), "entities": list(graph.tables)}
    script = HERE / "twhin_vs_pbg" / "pbg_importer.py"
    answer, process = run_worker(script, job | {"relations": graph.relations}, WORK / "pbg", python)
    found["PBG"] = answer
    return Measured(answer["num_edges"], process.wall_seconds, process)


def require_equal(found: dict[str, dict[str, Any]]) -> None:
    """Both systems have seen the same graph.

    Raises:
        SystemExit: they have not.
    """
    ours, theirs = ({key: each[key] for key in ("num_edges", "num_entities")} for each in found.values())
    if ours != theirs:
        raise SystemExit(f"the systems found different graphs: {found}")


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, "convert_speed", rounds="conversions by each system, taking turns")
    parser.add_argument("--edges", type=parse_count, default=2_000_000, help="of the sample graph, such as 200k or 2m")
    return parser.parse_args()


if __name__ == "__main__":
    main()
