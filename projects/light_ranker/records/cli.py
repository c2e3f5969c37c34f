"""The commands `tml light-ranker records-to-table` and `table-to-records`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

OutOption = Annotated[Path, typer.Option(help="Folder to make.")]
FeaturesOption = Annotated[
    Path, typer.Option(help="YAML file of the features, labels and weight: names, types and columns.")
]
StartOption = Annotated[str | None, typer.Option(help="First date, for paths like logs/%Y/%m/%d/*.gz.")]
EndOption = Annotated[str | None, typer.Option(help="Last date, included.")]
OnErrorOption = Annotated[
    Literal["fail", "skip"], typer.Option(help="fail at the first bad record, or skip bad ones and count them.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier conversion.")]


def records_to_table_command(
    inputs: Annotated[list[str], typer.Argument(metavar="FILE...", help="Block files, patterns of them, or folders.")],
    features: FeaturesOption,
    out: OutOption,
    start: StartOption = None,
    end: EndOption = None,
    on_error: OnErrorOption = "fail",
    keep_rate: Annotated[float, typer.Option(help="Share of records to keep.")] = 1.0,
    file_keep_rate: Annotated[float, typer.Option(help="Share of files to keep.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of those draws.")] = 0,
    row_group_size: Annotated[int, typer.Option(help="Rows.")] = 131_072,
    overwrite: OverwriteOption = False,
) -> None:
    """Turn block files of DataRecords into parquet, one file for each; a second start goes on where it stopped.

    tml light-ranker records-to-table 'logs/*.gz' --features records.yaml --out data/table
    """
    from tml.core.config import load_config
    from tml.projects.light_ranker.records.table import ToTableOptions, records_to_table
    from tml.projects.light_ranker.records.table_config import RecordTableConfig

    options = ToTableOptions(on_error, keep_rate, file_keep_rate, seed, row_group_size)
    config = load_config(RecordTableConfig, features)
    _show(records_to_table(_found(inputs, start, end), out, config, options, overwrite=overwrite))


def table_to_records_command(
    inputs: Annotated[list[str], typer.Argument(metavar="FILE...", help="Parquet files, patterns, or folders.")],
    features: FeaturesOption,
    out: OutOption,
    start: StartOption = None,
    end: EndOption = None,
    on_error: OnErrorOption = "fail",
    compression: Annotated[Literal["gzip", "none"], typer.Option(help="Of the block files.")] = "gzip",
    records_per_block: Annotated[int, typer.Option(help="Records.")] = 100,
    overwrite: OverwriteOption = False,
) -> None:
    """Turn parquet into block files of DataRecords, one file for each; a second start goes on where it stopped.

    tml light-ranker table-to-records data/table --features records.yaml --out data/records
    """
    from tml.core.config import load_config
    from tml.projects.light_ranker.records.table import ToRecordsOptions, table_to_records
    from tml.projects.light_ranker.records.table_config import RecordTableConfig

    options = ToRecordsOptions(on_error, compression, records_per_block)
    config = load_config(RecordTableConfig, features)
    _show(table_to_records(_found(inputs, start, end), out, config, options, overwrite=overwrite))


def _found(inputs: list[str], start: str | None, end: str | None) -> list[str]:
    from tml.common.errors import ConfigError
    from tml.projects.light_ranker.data.files import DateRange, find_files

    if (start is None) != (end is None):
        raise ConfigError("dates come in pairs", where="--start, --end", value=(start, end), limit="both or neither")
    return find_files(inputs, None if start is None or end is None else DateRange.parse(start, end))


def _show(counts: dict[str, int]) -> None:
    shown = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count)
    typer.echo(shown)
