"""Rows per second of reading DataRecords: one by one, in batches, hashed, from block files and into a table.

    python benchmarks/data_record_speed.py                          # 100 k made-up records of about 60 features
    python benchmarks/data_record_speed.py --rows 20k --features 300

A thrift library reads the same records in the same run, if it is installed (thriftpy2, with its compiled protocol), and
is what the ratios are over; without it they are over our own reading, one by one. Contestants take turns: rows/s depend
on the machine, the ratio hardly does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tml.benchmarks.harness import ROOT, argument_parser, circumstances, parse_count, versions, write_record
from tml.benchmarks.turns import take_turns, timed
from tml.core.config import parse_config
from tml.projects.light_ranker.records.block_reader import BlockReader
from tml.projects.light_ranker.records.block_writer import BlockWriter
from tml.projects.light_ranker.records.codec import decode_record, encode_record
from tml.projects.light_ranker.records.columns import decode_columns
from tml.projects.light_ranker.records.data_record import DataRecord, OrderedSet
from tml.projects.light_ranker.records.feature_ids import feature_id
from tml.projects.light_ranker.records.hashed import HashedFields, decode_hashed
from tml.projects.light_ranker.records.table_config import RecordTableConfig
from tml.projects.light_ranker.records.to_arrow import table_of

THRIFT, OURS = "thriftpy2, one by one", "one by one"


def main() -> None:
    arguments = _parse_arguments()
    records = [encode_record(record) for record in _records(arguments.rows, arguments.features)]
    record: dict[str, Any] = {"circumstances": circumstances()}
    record["circumstances"]["versions"] |= versions(("thriftpy2",))
    with tempfile.TemporaryDirectory() as folder:
        contestants = _contestants(records, Path(folder), arguments)
        baseline = THRIFT if THRIFT in contestants else OURS
        turns = {name: timed(read) for name, read in contestants.items()}
        runs = take_turns(turns, arguments.rounds, "rows", [baseline])
    for name, measured in runs.by_name.items():
        if {each.amount for each in measured} != {len(records)}:
            raise SystemExit(f"{name} read {measured[0].amount} of {len(records)} records")
    text = f"{len(records):,} records of {statistics.mean(map(len, records)):.0f} bytes."
    write_record(arguments.results, arguments.record, record | runs.record(), f"{text}\n\n{runs.report()}")


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, "data_record_speed", rounds="readings by each, taking turns", default_rounds=5)
    parser.add_argument("--rows", type=parse_count, default=100_000)
    parser.add_argument("--features", type=parse_count, default=60, help="of a record, about")
    parser.add_argument("--batch-size", type=parse_count, default=4096, help="records decoded at once")
    return parser.parse_args()


def _names(kind: str, count: int) -> list[str]:
    return [f"{kind}.{number}" for number in range(count)]


def _records(num_rows: int, num_features: int) -> Iterator[DataRecord]:
    """Half of the features are continuous, a quarter binary, the rest discrete, strings and sparse."""
    rng = np.random.default_rng(0)
    continuous = [feature_id(name) for name in _names("continuous", num_features // 2)]
    binary = [feature_id(name) for name in _names("binary", num_features // 2)]
    discrete = [feature_id(name) for name in _names("discrete", num_features // 10)]
    texts = [feature_id(name) for name in _names("string", num_features // 20)]
    topics = feature_id("topics")
    for _ in range(num_rows):
        present = rng.random(len(binary)) < 0.5
        yield DataRecord(
            binary=OrderedSet(key for key, chosen in zip(binary, present, strict=True) if chosen),
            continuous=dict(zip(continuous, rng.random(len(continuous)).tolist(), strict=True)),
            discrete=dict(zip(discrete, rng.integers(0, 1000, len(discrete)).tolist(), strict=True)),
            string={key: f"value {rng.integers(0, 50)}" for key in texts},
            sparse_binary={topics: OrderedSet(f"topic {t}" for t in rng.integers(0, 300, rng.integers(1, 6)).tolist())},
        )


def _contestants(records: list[bytes], folder: Path, arguments: argparse.Namespace) -> dict[str, Callable[[], int]]:
    batches = [records[i : i + arguments.batch_size] for i in range(0, len(records), arguments.batch_size)]
    for suffix in ("", ".gz"):
        with BlockWriter(str(folder / f"part{suffix}")) as writer:
            for record in records:
                writer.write(record)
    half = arguments.features // 2
    fields = HashedFields.from_names([*_names("continuous", half), *_names("binary", half), "topics"])
    columns = [{"name": name, "type": "continuous"} for name in _names("continuous", half)]
    config = parse_config(RecordTableConfig, {"features": [*columns, {"name": "topics", "type": "sparse_binary"}]})
    return {
        **_thriftpy2(records),
        OURS: lambda: sum(decode_record(record) is not None for record in records),
        "in batches": lambda: sum(decode_columns(batch).num_records for batch in batches),
        "in batches, hashed": lambda: sum(decode_hashed(batch, fields).num_records for batch in batches),
        "in batches, to a table": lambda: sum(table_of(batch, config)[0].num_rows for batch in batches),
        "blocks alone, raw": lambda: sum(map(len, BlockReader(str(folder / "part")))),
        "blocks alone, gzip": lambda: sum(map(len, BlockReader(str(folder / "part.gz")))),
    }


def _thriftpy2(records: list[bytes]) -> dict[str, Callable[[], int]]:
    try:
        from thriftpy2.protocol.cybin import TCyBinaryProtocol
        from thriftpy2.transport.memory import TCyMemoryBuffer
    except ImportError:
        print("thriftpy2 is not installed: no baseline")
        return {}
    sys.path.insert(0, str(ROOT))
    from tests.projects.light_ranker.records.thrift_spec import Record

    def read() -> int:
        for record in records:
            TCyBinaryProtocol(TCyMemoryBuffer(record)).read_struct(Record())
        return len(records)

    return {THRIFT: read}


if __name__ == "__main__":
    main()
