"""The commands `tml convert` and `tml sample-graph`; also `python -m tml.projects.twhin.data.cli`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tml.common.errors import ConfigError, TmlError
from tml.common.split_fractions import parse_split_fractions

_INPUT = "Input"
_MEANING = "What a row means (one of these)"
_SPLIT = "Split (one of these)"
_FILTER = "Filters"
_OUTPUT = "Output"


# The options of `tml convert`.
OutOption = Annotated[Path, typer.Option(help="Folder to make.")]
InputsOption = Annotated[
    list[str] | None,
    typer.Argument(metavar="INPUT...", help="TSV, CSV (.gz too) or parquet files, or folders of them."),
]
RelationInputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="RELATION=PATH: a file that holds one relation, without a relation column.",
        rich_help_panel=_INPUT,
    ),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        help="lhs,relation,rhs (or lhs,rhs) by name or position from 0. Default: lhs,rel,rhs or the first.",
        rich_help_panel=_INPUT,
    ),
]
HeaderOption = Annotated[
    bool | None, typer.Option("--header/--no-header", help="Default: look.", rich_help_panel=_INPUT)
]
DelimiterOption = Annotated[
    str | None, typer.Option(help="Default: a comma in .csv files, else a tab.", rich_help_panel=_INPUT)
]
QuotingOption = Annotated[
    bool | None, typer.Option("--quoting/--no-quoting", help="Default: in .csv files only.", rich_help_panel=_INPUT)
]
IdTypeOption = Annotated[
    str, typer.Option(help="auto (text gives strings, parquet as it is), string or int.", rich_help_panel=_INPUT)
]
OnErrorOption = Annotated[
    str, typer.Option(help="fail at the first bad row, or skip bad rows and count them.", rich_help_panel=_INPUT)
]
RelationOption = Annotated[
    list[str] | None, typer.Option(help="NAME=LHS_TABLE:RHS_TABLE, repeated.", rich_help_panel=_MEANING)
]
TypedIdsOption = Annotated[
    str | None,
    typer.Option(help="Separator of ids like user:17, which name their table.", rich_help_panel=_MEANING),
]
SingleTableOption = Annotated[
    str | None, typer.Option(help="All ids belong to this one table (knowledge graphs).", rich_help_panel=_MEANING)
]
PresetOption = Annotated[
    str | None, typer.Option(help="twitter-follow or twitter-fave: the public graphs.", rich_help_panel=_MEANING)
]
SplitFractionsOption = Annotated[
    str | None, typer.Option(help="Shares of train,valid,test. Default: 0.9,0.05,0.05.", rich_help_panel=_SPLIT)
]
ValidOption = Annotated[list[str] | None, typer.Option(help="Given validation file.", rich_help_panel=_SPLIT)]
TestOption = Annotated[list[str] | None, typer.Option(help="Given test file.", rich_help_panel=_SPLIT)]
TimeColumnOption = Annotated[str | None, typer.Option(help="Split by this column.", rich_help_panel=_SPLIT)]
ValidFromOption = Annotated[
    str | None, typer.Option(help="First time of validation, with --time-column.", rich_help_panel=_SPLIT)
]
TestFromOption = Annotated[
    str | None, typer.Option(help="First time of test, with --time-column.", rich_help_panel=_SPLIT)
]
SeedOption = Annotated[int, typer.Option(help="Of the split and the shuffle.", rich_help_panel=_SPLIT)]
VocabFromOption = Annotated[
    str, typer.Option(help="all, or train: held-out edges with other ids are dropped.", rich_help_panel=_OUTPUT)
]
VocabOrderOption = Annotated[
    str,
    typer.Option(help="count (descending), or random, which evens out row-wise shards.", rich_help_panel=_OUTPUT),
]
MinDegreeOption = Annotated[
    int, typer.Option(help="Drop nodes with fewer edges, until none is left.", rich_help_panel=_FILTER)
]
DropDuplicatesOption = Annotated[
    bool, typer.Option("--drop-duplicates", help="Keep the first of equal edges.", rich_help_panel=_FILTER)
]
DropSelfLoopsOption = Annotated[
    bool, typer.Option("--drop-self-loops", help="Drop edges from a node to itself.", rich_help_panel=_FILTER)
]
RowGroupSizeOption = Annotated[int, typer.Option(help="Rows.", rich_help_panel=_OUTPUT)]
RowsPerFileOption = Annotated[int, typer.Option(help="Rows.", rich_help_panel=_OUTPUT)]
CompressionOption = Annotated[str, typer.Option(help="zstd or none.", rich_help_panel=_OUTPUT)]
MemoryLimitOption = Annotated[
    str, typer.Option(help="Of the database; beyond it, the disk is used.", rich_help_panel=_OUTPUT)
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier conversion.")]


def convert_command(
    out: OutOption,
    inputs: InputsOption = None,
    relation_input: RelationInputOption = None,
    columns: ColumnsOption = None,
    header: HeaderOption = None,
    delimiter: DelimiterOption = None,
    quoting: QuotingOption = None,
    id_type: IdTypeOption = "auto",
    on_error: OnErrorOption = "fail",
    relation: RelationOption = None,
    typed_ids: TypedIdsOption = None,
    single_table: SingleTableOption = None,
    preset: PresetOption = None,
    split_fractions: SplitFractionsOption = None,
    valid: ValidOption = None,
    test: TestOption = None,
    time_column: TimeColumnOption = None,
    valid_from: ValidFromOption = None,
    test_from: TestFromOption = None,
    seed: SeedOption = 0,
    vocab_from: VocabFromOption = "all",
    vocab_order: VocabOrderOption = "count",
    min_degree: MinDegreeOption = 1,
    drop_duplicates: DropDuplicatesOption = False,
    drop_self_loops: DropSelfLoopsOption = False,
    row_group_size: RowGroupSizeOption = 200_000,
    rows_per_file: RowsPerFileOption = 16_000_000,
    compression: CompressionOption = "zstd",
    memory_limit: MemoryLimitOption = "4GB",
    overwrite: OverwriteOption = False,
) -> None:
    """Turn edges with ids of your own into vocabularies, shuffled edges and a starter config.

    tml convert edges.tsv --out data/graph --typed-ids :

    tml convert edges.csv --out data/graph --columns who,what,whom --relation follow=user:user --relation fav=user:tweet

    tml convert train.tsv --valid valid.tsv --test test.tsv --out data/kg --single-table entity
    """
    given = {key: value for key, value in locals().items() if key not in ("out", "preset", "overwrite")}
    from tml.projects.twhin.data.convert.pipeline import convert

    meta = convert(_options(given, preset), out, overwrite=overwrite)
    _show_conversion(out, meta)


def _options(given: dict[str, Any], preset: str | None) -> Any:
    from tml.projects.twhin.data.convert.options import ConvertOptions, RelationType, with_preset

    settings: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    settings = {key: value for key, value in settings.items() if value is not None}
    settings["relations"] = tuple(RelationType.parse(text) for text in settings.pop("relation", ()))
    settings["relation_inputs"] = tuple(_relation_input(text) for text in settings.pop("relation_input", ()))
    if "columns" in settings:
        settings["columns"] = tuple(name.strip() for name in settings["columns"].split(","))
    if "split_fractions" in settings:
        settings["split_fractions"] = parse_split_fractions(settings["split_fractions"])
    if preset is not None:
        if settings["id_type"] == "auto":
            del settings["id_type"]
        settings = with_preset(preset, settings)
    return ConvertOptions(**settings)


def _relation_input(text: str) -> tuple[str, str]:
    relation, equals, path = text.partition("=")
    if not (relation and equals and path):
        raise ConfigError("an input cannot be read", where="--input", value=text, limit="RELATION=PATH")
    return relation, path


def _show_conversion(out: Path, meta: dict[str, Any]) -> None:
    for name, table in meta["tables"].items():
        unseen = f", {table['not_in_train']:,} of them not in train" if table["not_in_train"] else ""
        typer.echo(f"table {name}: {table['size']:,} ids{unseen}")
    edges = ", ".join(f"{count:,} {split}" for split, count in meta["edges"].items())
    typer.echo(f"{meta['num_relations']:,} relations; edges: {edges}")
    left_out = {**meta["rows_rejected"], **meta["rows_dropped"]}
    shown = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in left_out.items() if count)
    if shown:
        more = f" (see {out / 'rejected.jsonl'})" if meta["rows_rejected"] else ""
        typer.echo(f"rows left out: {shown}{more}")
    typer.echo(f"starter config: {out / 'config.yaml'}")


def sample_graph_command(
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    edges: Annotated[int, typer.Option(help="Edges over all relations.")] = 200_000,
    users: Annotated[int, typer.Option(help="0: a twentieth of the edges.")] = 0,
    tweets: Annotated[int, typer.Option(help="0: 15 in a thousand edges.")] = 0,
    communities: Annotated[int, typer.Option(help="0: by the number of users.")] = 0,
    inside: Annotated[float, typer.Option(help="Share of edges within a community.")] = 0.8,
    exponent: Annotated[float, typer.Option(help="Of the power law of activity and popularity.")] = 0.7,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    file_format: Annotated[str, typer.Option("--format", help="tsv, tsv.gz or parquet.")] = "tsv",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier graph.")] = False,
) -> None:
    """Write a made-up graph of users and tweets with planted communities, for a first run and for tests.

    tml sample-graph --out data/sample && tml convert data/sample/edges.tsv --out data/graph --typed-ids :
    """
    from tml.projects.twhin.data.sample_graph import GraphParameters, sample_graph

    parameters = GraphParameters(edges, users, tweets, communities, inside, exponent, seed)
    meta = sample_graph(parameters, out, file_format, overwrite=overwrite)
    made = meta["plan"]["parameters"]
    typer.echo(f"{meta['edges']:,} edges between {made['num_users']:,} users and {made['num_tweets']:,} tweets")
    typer.echo(f"edges: {out / f'edges.{file_format}'}")


def main() -> None:
    """Runs one of the two commands, and shows a user's errors without a traceback."""
    app = typer.Typer(no_args_is_help=True, add_completion=False)
    app.command("convert")(convert_command)
    app.command("sample-graph")(sample_graph_command)
    try:
        app()
    except TmlError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
