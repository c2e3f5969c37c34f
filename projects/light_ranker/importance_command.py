"""`tml light-ranker importance`: what a trained model loses without each feature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def importance_command(
    save_dir: Annotated[Path, typer.Argument(metavar="SAVE_DIR", help="Checkpoint folder of a run.")],
    algorithm: Annotated[
        Literal["tree", "serial"], typer.Option(help="tree: groups by prefix first; serial: every feature.")
    ] = "tree",
    sensitivity: Annotated[
        float, typer.Option(help="tree: look into groups that lose more than this fraction of the metric.")
    ] = 0.03,
    split_on_period: Annotated[bool, typer.Option("--split-on-period", help="tree: prefixes end at periods.")] = False,
    example_count: Annotated[int, typer.Option(min=2, help="Rows, which are held in memory.")] = 10_000,
    metric: Annotated[str, typer.Option(help="Metric of the evaluation to watch.")] = "roc_auc",
    larger_is_better: Annotated[
        bool | None, typer.Option("--larger-is-better/--smaller-is-better", help="By default its name tells.")
    ] = None,
    extra_group: Annotated[
        list[str] | None, typer.Option(help="NAME=REGEX, features to permute together as well; may be repeated.")
    ] = None,
    split: Annotated[Literal["validation", "test"], typer.Option(help="Rows to take.")] = "validation",
    step: Annotated[int | None, typer.Option(min=0, help="Step; the best, else the latest by default.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the rows and of the donors.")] = 0,
    out: Annotated[Path | None, typer.Option(help="File to write; SAVE_DIR/feature_importances.tsv.")] = None,
) -> None:
    """Permute features of held-out rows, and write how much worse the model gets (TSV, and JSON beside it)."""
    from tml.common.tracking.record import ExperimentRecord
    from tml.projects.light_ranker.importance import (
        ImportanceOptions,
        permutation_importances,
        write_importances,
    )
    from tml.projects.light_ranker.importance import larger_is_better as direction_of
    from tml.projects.light_ranker.importance_rows import HeldOutRows
    from tml.projects.light_ranker.phases import load_trained

    trained = load_trained(save_dir, step)
    rows = HeldOutRows(trained, split, example_count, seed)
    larger = direction_of(metric) if larger_is_better is None else larger_is_better
    options = ImportanceOptions(algorithm, sensitivity, split_on_period, larger, seed, _groups(extra_group or []))
    found = permutation_importances(rows.columns, rows.features, rows.measure(metric), options)
    path = out or save_dir / "feature_importances.tsv"
    write_importances(found, path)
    ExperimentRecord(save_dir).artifact("feature_importances", path)
    width = max(len(one.name) for one in found)
    for one in found:
        typer.echo(f"{one.name:<{width}}  {one.drop:+.6f}  {one.percent:+8.2f} %  {metric} {one.performance:.6f}")
    typer.echo(f"written to {path}")


def _groups(texts: list[str]) -> dict[str, list[str]]:
    from tml.common.errors import ConfigError

    groups: dict[str, list[str]] = {}
    for text in texts:
        name, equals, pattern = text.partition("=")
        if not (name and equals and pattern):
            raise ConfigError("extra group cannot be read", where="--extra-group", value=text, limit="NAME=REGEX")
        groups.setdefault(name, []).append(pattern)
    return groups
