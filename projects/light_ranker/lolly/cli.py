"""The commands `tml light-ranker lolly-score` and `lolly-export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelFile = Annotated[str, typer.Argument(metavar="MODEL", help="Lolly text model, local or remote.")]
Name = Annotated[str | None, typer.Option(help="Name of the model, where the file holds several.")]


def score_command(
    model: ModelFile,
    inputs: Annotated[list[str], typer.Argument(metavar="FILE...", help="Parquet, CSV, TSV; patterns; folders.")],
    name: Name = None,
    debug: Annotated[
        bool, typer.Option("--debug", help="Files hold debug lines, [[logit]][[lolly logit]][[ids]][[values]].")
    ] = False,
    probability: Annotated[bool, typer.Option("--probability", help="Print sigmoid(logit).")] = False,
) -> None:
    """Print the logit of every row; of debug lines also the two logits they hold, tab-separated."""
    from scipy.special import expit

    from tml.projects.light_ranker.data.files import find_files
    from tml.projects.light_ranker.lolly.scoring import score_debug_lines, score_table
    from tml.projects.light_ranker.lolly.text import read_lolly

    lolly = read_lolly(model, name)
    for path in find_files(inputs):
        if debug:
            for line, logit in score_debug_lines(lolly, path):
                shown = (expit(value) if probability else value for value in (logit, line.logit, line.lolly_logit))
                typer.echo("\t".join(repr(float(value)) for value in shown))
        else:
            for logits in score_table(lolly, path):
                scores = expit(logits) if probability else logits
                typer.echo("\n".join(map(repr, scores.tolist())))


def export_command(
    save_dir: Annotated[Path, typer.Argument(metavar="SAVE_DIR", help="Checkpoint folder of a lolly_lr run.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    name: Annotated[str, typer.Option(help="Name of the model, the first field of every line.")] = "light_ranker",
    step: Annotated[int | None, typer.Option(min=0, help="Step; the best, else the latest by default.")] = None,
) -> None:
    """Write bias, weights and bins as text; it scores as the trained model does."""
    from tml.common.tracking.record import ExperimentRecord
    from tml.projects.light_ranker.lolly.export import lolly_of_ranker
    from tml.projects.light_ranker.lolly.text import write_lolly
    from tml.projects.light_ranker.phases import load_trained

    model = lolly_of_ranker(load_trained(save_dir, step), name)
    write_lolly(model, out)
    ExperimentRecord(save_dir).artifact("lolly_model", out)
    typer.echo(f"wrote {len(model.binary)} binary and {len(model.discretized)} discretised features to {out}")
