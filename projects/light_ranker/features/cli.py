"""The commands `sample-clicks`, `inspect` and `prepare` of `tml light-ranker`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tml.common.errors import ConfigError
from tml.common.split_fractions import parse_split_fractions

_INPUT = "Input"
_SPLIT = "Split of one table"
_OUTPUT = "Output"

OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Paths = Annotated[
    list[str], typer.Argument(metavar="TABLE...", help="Parquet, CSV or TSV (.gz) files, patterns, folders or URLs.")
]
FeaturesOption = Annotated[Path, typer.Option(help="The feature config (see `inspect`).", rich_help_panel=_INPUT)]
TrainOption = Annotated[
    list[str], typer.Option(help="Training rows: files, patterns, folders, URLs; repeat or use commas.",
                            rich_help_panel=_INPUT),
]  # fmt: skip
ValidOption = Annotated[list[str] | None, typer.Option(help="Validation rows.", rich_help_panel=_INPUT)]
TestOption = Annotated[list[str] | None, typer.Option(help="Test rows.", rich_help_panel=_INPUT)]
TrainDatesOption = Annotated[
    str | None,
    typer.Option(help="START..END for paths like clicks/%Y/%m/%d/*.parquet, both included.", rich_help_panel=_INPUT),
]
ValidDatesOption = Annotated[str | None, typer.Option(help="The same for --valid.", rich_help_panel=_INPUT)]
TestDatesOption = Annotated[str | None, typer.Option(help="The same for --test.", rich_help_panel=_INPUT)]
HourResolutionOption = Annotated[int, typer.Option(help="Hours from folder to folder.", rich_help_panel=_INPUT)]
KeepRateOption = Annotated[float, typer.Option(help="Share of the rows of --train.", rich_help_panel=_INPUT)]
FileKeepRateOption = Annotated[float, typer.Option(help="Share of the files of --train.", rich_help_panel=_INPUT)]
FractionsOption = Annotated[
    str | None,
    typer.Option(help="Shares of train,valid,test, such as .8,.1,.1; groups stay together.", rich_help_panel=_SPLIT),
]
SplitTimeOption = Annotated[
    str | None, typer.Option(help="Split by this column's time instead of by chance.", rich_help_panel=_SPLIT)
]
SeedOption = Annotated[int, typer.Option(help="Of the split and the keep rates.", rich_help_panel=_SPLIT)]
RowGroupSizeOption = Annotated[int, typer.Option(help="Rows.", rich_help_panel=_OUTPUT)]
CompressionOption = Annotated[
    str, typer.Option(help="lz4, zstd (a fifth smaller, slower to read) or none.", rich_help_panel=_OUTPUT)
]
MemoryLimitOption = Annotated[
    str,
    typer.Option(help="For adding up vocabularies and rates; beyond it, the disk is used.", rich_help_panel=_OUTPUT),
]


def sample_clicks_command(
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    rows: Annotated[int, typer.Option(help="Shown items, over train, valid and test.")] = 200_000,
    candidates: Annotated[int, typer.Option(help="Items of a request.")] = 10,
    users: Annotated[int, typer.Option(help="0: a hundredth of the rows.")] = 0,
    items: Annotated[int, typer.Option(help="0: a two-hundredth of the rows.")] = 0,
    click_rate: Annotated[float, typer.Option(help="Share of clicks.")] = 0.2,
    seed: Annotated[int, typer.Option(help="The same seed gives the same rows.")] = 0,
    file_format: Annotated[str, typer.Option("--format", help="parquet or csv.")] = "parquet",
    overwrite: OverwriteOption = False,
) -> None:
    """Write made-up clicks and watch times with a planted truth, for a first run and for tests.

    tml light-ranker sample-clicks --out data/clicks
    """
    from tml.projects.light_ranker.data.sample_clicks import ClickParameters, sample_clicks

    parameters = ClickParameters(rows, candidates, users, items, click_rate, seed)
    meta = sample_clicks(parameters, out, file_format, overwrite=overwrite)
    for split, found in meta["splits"].items():
        typer.echo(f"{split}: {found['rows']:,} rows, click rate {found['click_rate']:.4f}")
    best = meta["best_on_test"]
    typer.echo(f"a model that knows the truth reaches AUC {best['auc']:.4f} and RCE {best['rce']:.2f} on the test rows")
    typer.echo(f"feature config: {out / 'features.yaml'}")


def inspect_command(
    paths: Paths,
    out: Annotated[Path | None, typer.Option(help="File to write; default: the terminal.")] = None,
    group: Annotated[str | None, typer.Option(help="Column of the request or user: tells the sides apart.")] = None,
    rows: Annotated[int, typer.Option(help="Rows to look at.")] = 200_000,
    delimiter: Annotated[str | None, typer.Option(help="Of text files. Default: a tab in .tsv, else a comma.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Propose a feature config for a table: kinds, sides, labels, and which columns had better be left out.

    tml light-ranker inspect clicks/*.parquet --group request_id --out features.yaml
    """
    from tml.common.filesystem import write_text
    from tml.projects.light_ranker.features.config import TextConfig
    from tml.projects.light_ranker.features.inspect import propose

    if out is not None and out.exists() and not overwrite:
        raise ConfigError("the file is there already", where=str(out), fix="name another --out, or pass --overwrite")
    text = propose(paths, group, rows, TextConfig(delimiter=delimiter))
    if out is None:
        typer.echo(text, nl=False)
        return
    write_text(out, text)
    typer.echo(f"{out}: read it before you use it, above all the sides and the labels")


def prepare_command(
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    features: FeaturesOption,
    train: TrainOption,
    valid: ValidOption = None,
    test: TestOption = None,
    train_dates: TrainDatesOption = None,
    valid_dates: ValidDatesOption = None,
    test_dates: TestDatesOption = None,
    hour_resolution: HourResolutionOption = 1,
    keep_rate: KeepRateOption = 1.0,
    file_keep_rate: FileKeepRateOption = 1.0,
    split_fractions: FractionsOption = None,
    split_time: SplitTimeOption = None,
    seed: SeedOption = 0,
    row_group_size: RowGroupSizeOption = 50_000,
    compression: CompressionOption = "lz4",
    memory_limit: MemoryLimitOption = "2GB",
    overwrite: OverwriteOption = False,
) -> None:
    """Turn a table of your own into encoded training data, vocabularies and a starter config.

    tml light-ranker prepare --features features.yaml --train train.parquet --valid valid.parquet --out data/ranker
    """
    from tml.projects.light_ranker.features.prepare import prepare
    from tml.projects.light_ranker.features.prepare_options import PrepareOptions

    dates = {"train": train_dates, "valid": valid_dates, "test": test_dates}
    options = PrepareOptions(
        features=str(features),
        inputs={"train": train, "valid": valid or [], "test": test or []},
        dates={split: _dates(split, text, hour_resolution) for split, text in dates.items() if text},
        split_fractions=None if split_fractions is None else parse_split_fractions(split_fractions),
        split_time=split_time,
        keep_rate=keep_rate,
        file_keep_rate=file_keep_rate,
        seed=seed,
        row_group_size=row_group_size,
        compression=compression,  # type: ignore[arg-type]
        memory_limit=memory_limit,
    )
    _show(out, prepare(options, out, overwrite=overwrite))


def _dates(split: str, text: str, hour_resolution: int) -> Any:
    from tml.projects.light_ranker.data.files import DateRange

    start, dots, end = text.partition("..")
    if not dots:
        raise ConfigError("dates cannot be read", where=f"--{split}-dates", value=text, limit="START..END")
    return DateRange.parse(start, end, hour_resolution)


def _show(out: Path, meta: dict[str, Any]) -> None:
    for split, found in meta["splits"].items():
        if found["rows"]:
            labels = ", ".join(f"mean {name} {mean:.4f}" for name, mean in found["mean_label"].items())
            typer.echo(f"{split}: {found['rows']:,} rows; {labels}")
            _show_features(found["features"])
    for name, vocabulary in meta["vocabularies"].items():
        left_out = f", {vocabulary['left_out']:,} left out" if vocabulary.get("left_out") else ""
        typer.echo(f"vocabulary {name}: {vocabulary['size']:,} values{left_out}")
    for name, table in meta["target_tables"].items():
        left_out = f", {table['left_out']:,} left out" if table["left_out"] else ""
        typer.echo(f"target table {name}: {table['size']:,} keys{left_out}")
    for reason, count in meta["left_out"].items():
        typer.echo(
            f"rows {reason}: {count:,}" if reason.startswith("left out") else f"rows skipped, {reason}: {count:,}"
        )
    typer.echo(f"starter config: {out / 'config.yaml'}")


def _show_features(features: dict[str, dict[str, float]]) -> None:
    unknown = {name: found["unknown_share"] for name, found in features.items() if found.get("unknown_share")}
    if unknown:
        worst = sorted(unknown, key=unknown.__getitem__, reverse=True)[:5]
        typer.echo("  unknown ids: " + ", ".join(f"{name} {unknown[name]:.2%}" for name in worst))
    cut = {name: found["truncated_lists"] for name, found in features.items() if found.get("truncated_lists")}
    if cut:
        typer.echo("  lists cut off: " + ", ".join(f"{name} {count:,}" for name, count in cut.items()))
