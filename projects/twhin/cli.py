"""The commands `tml twhin ...` around a finished run: export it, and ask the exported model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tml.common.errors import ConfigError

if TYPE_CHECKING:
    from tml.projects.twhin.serving_table import Neighbor

app = typer.Typer(
    help="Graph embeddings: train, evaluate, export, look up.", no_args_is_help=True, add_completion=False
)

ModelDir = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of an exported model.")]
Table = Annotated[str, typer.Option(help="Table of the node that is asked about.")]
NodeId = Annotated[list[str], typer.Option("--id", help="Id of the node; repeat it to ask about several.")]
NumNeighbors = Annotated[int, typer.Option("-k", min=1, help="How many.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one line per node asked about.")]


CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=CONTEXT)
def train(
    context: typer.Context,
    config: Annotated[Path, typer.Option(help="YAML file; see projects/twhin/configs.")],
) -> None:
    """Train with one process (torchrun or `tml launch` start more). Overrides follow: training.num_epochs=3."""
    _run(config, "train", context.args)


@app.command(context_settings=CONTEXT)
def evaluate(
    context: typer.Context,
    config: Annotated[Path, typer.Option(help="The run's YAML file.")],
) -> None:
    """Rank the test edges (else the validation edges) under the best or latest checkpoint."""
    _run(config, "evaluate", context.args)


@app.command(context_settings=CONTEXT)
def check(
    context: typer.Context,
    config: Annotated[Path, typer.Option(help="YAML file.")],
) -> None:
    """Look at config, files, ids, vocabularies and memory before a long run; train nothing."""
    _run(config, "check", context.args)


@app.command()
def export(
    save_dir: Annotated[Path | None, typer.Argument(help="Checkpoint folder of a run (training.save_dir).")] = None,
    out: Annotated[Path, typer.Option(help="Folder to make.")] = ...,  # type: ignore[assignment]
    config: Annotated[Path | None, typer.Option(help="Config of the run, instead of SAVE_DIR.")] = None,
    step: Annotated[
        str, typer.Option(help="A number, best or latest. Default: best if a step is marked as such, else latest.")
    ] = "auto",
    vocab_dir: Annotated[Path | None, typer.Option(help="Vocabularies; default: those of the run's config.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a model that lies there.")] = False,
    memory_map: Annotated[
        bool, typer.Option(help="Also write .npy files: tables are then mapped, not read; twice the space.")
    ] = False,
) -> None:
    """Write embeddings by original id, relations and model card of a checkpoint."""
    from tml.projects.twhin.export import export_from_checkpoint

    folder = export_from_checkpoint(
        _save_dir(save_dir, config),
        out,
        step=_step(step),
        vocab_dir=vocab_dir,
        overwrite=overwrite,
        memory_map=memory_map,
    )
    typer.echo(f"exported to {folder}; see {folder / 'MODEL_CARD.md'}")


@app.command()
def neighbors(
    model_dir: ModelDir,
    table: Table,
    id: NodeId,
    relation: Annotated[str, typer.Option(help="Relation to rank the other end of.")],
    k: NumNeighbors = 10,
    side: Annotated[
        str | None, typer.Option(help="lhs or rhs: which end the node is, where both ends have one table.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Id not to return, repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Rank the other end of a relation for a node, by the model's own score over all candidates."""
    from tml.projects.twhin.serving import load_model

    if side not in (None, "lhs", "rhs"):
        raise ConfigError("unknown side", where="--side", value=side, limit="lhs or rhs")
    model = load_model(model_dir)
    found = model.neighbors_batch(table, id, relation, k, side=side, exclude=exclude or ())  # type: ignore[arg-type]
    _print_neighbors(list(zip(id, found, strict=True)), model.ranking(table, relation, side)[0], as_json)  # type: ignore[arg-type]


@app.command()
def similar(model_dir: ModelDir, table: Table, id: NodeId, k: NumNeighbors = 10, as_json: Json = False) -> None:
    """Find the nodes of a table whose embeddings are most alike."""
    from tml.projects.twhin.serving import load_model

    found = load_model(model_dir).neighbors_batch(table, id, None, k)
    _print_neighbors(list(zip(id, found, strict=True)), table, as_json)


@app.command()
def predict(
    model_dir: ModelDir,
    lhs: Annotated[str, typer.Option(help="Id of the left-hand side.")],
    rhs: Annotated[str, typer.Option(help="Id of the right-hand side.")],
    relation: Annotated[str | None, typer.Option(help="Relation; may be left out if there is only one.")] = None,
    probability: Annotated[bool, typer.Option(help="Print sigmoid(score).")] = False,
) -> None:
    """Score one edge."""
    from tml.projects.twhin.serving import load_model

    typer.echo(f"{load_model(model_dir).predict_relation(lhs, rhs, relation, probability=probability):.6g}")


@app.command("evaluate-popularity")
def evaluate_popularity(
    config: Annotated[Path, typer.Option(help="Config of a run.")],
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    max_edges: Annotated[int | None, typer.Option(min=1, help="Rank a random subset of so many edges.")] = None,
) -> None:
    """Rank the edges of a split by training degree, and by chance: what a model has to beat. Prints JSON."""
    from tml.projects.twhin.popularity import baselines_of_config

    typer.echo(json.dumps(baselines_of_config(_load(config), split, max_edges), indent=1))


def _run(config: Path, task: str, arguments: list[str]) -> None:
    from tml.projects.twhin.run import main

    main(["--config", str(config), "--task", task, *arguments])


def _load(config: Path) -> Any:
    from tml.core.config import load_config
    from tml.projects.twhin.config import TwhinConfig

    return load_config(TwhinConfig, str(config))


def _save_dir(save_dir: Path | None, config: Path | None) -> Path:
    if (save_dir is None) == (config is None):
        raise ConfigError("give either SAVE_DIR or --config", value=f"SAVE_DIR {save_dir}, --config {config}")
    return save_dir if save_dir is not None else Path(_load(config).training.save_dir)  # type: ignore[arg-type]


def _step(step: str) -> Any:
    if step in ("best", "latest") or step.isdigit():
        return int(step) if step.isdigit() else step
    if step != "auto":
        raise ConfigError("unknown step", where="--step", value=step, limit="a number, best or latest")
    return None


def _print_neighbors(found: list[tuple[str, list[Neighbor]]], table: str, as_json: bool) -> None:
    for query, answers in found:
        if as_json:
            shown = [{"id": node, "score": score} for node, score in answers]
            typer.echo(json.dumps({"query": query, "table": table, "neighbors": shown}, ensure_ascii=False))
        elif sys.stdout.isatty():
            _print_table(query, answers, table)
        else:
            for node, score in answers:
                typer.echo(f"{query}\t{node}\t{score:.6g}" if len(found) > 1 else f"{node}\t{score:.6g}")


def _print_table(query: str, answers: list[Neighbor], table: str) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable("", table, "score", title=Text(query))
    for position, (node, score) in enumerate(answers, start=1):
        shown.add_row(str(position), Text(str(node)), f"{score:.4f}")
    Console().print(shown)
