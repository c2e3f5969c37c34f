"""The commands `tml light-ranker ...`, from a table of engagements to a served model.

sample-clicks, inspect, prepare     data        table-to-records, records-to-table     the original's files
train, calibrate, isotonic, evaluate, check     a run
export, score, serve, importance                a trained model
lolly-score, lolly-export                       text models
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from tml.common.lazy_commands import LazyCommand, attribute, lazy_app

_PROJECT = "tml.projects.light_ranker"
_FEATURES, _RECORDS, _SERVING = (f"{_PROJECT}.{room}.cli" for room in ("features", "records", "serving"))

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}


def _run_command(task: str, help: str) -> LazyCommand:
    return LazyCommand(help, lambda: _task_command(task, help), settings=CONTEXT)


def _task_command(task: str, help: str) -> Callable[..., None]:
    def command(
        context: typer.Context,
        config: Annotated[Path, typer.Option(help="YAML file, such as `prepare` writes.")],
    ) -> None:
        from tml.projects.light_ranker.run import main

        main(["--config", str(config), "--task", task, *context.args])

    command.__doc__ = (
        f"{help} One process; torchrun or `tml launch` start more. Overrides follow: training.num_epochs=3."
    )
    return command


COMMANDS = {
    "sample-clicks": LazyCommand(
        "Write made-up clicks and watch times with a known best AUC.", attribute(_FEATURES, "sample_clicks_command")
    ),
    "inspect": LazyCommand("Look at a table and propose its features.yaml.", attribute(_FEATURES, "inspect_command")),
    "prepare": LazyCommand(
        "Encode a table for training: vocabularies, ids, weights, a config.", attribute(_FEATURES, "prepare_command")
    ),
    "records-to-table": LazyCommand(
        "Turn block files of DataRecords into parquet.", attribute(_RECORDS, "records_to_table_command")
    ),
    "table-to-records": LazyCommand(
        "Turn a table into block files of DataRecords.", attribute(_RECORDS, "table_to_records_command")
    ),
    "train": _run_command("all", "Calibrate, train, calibrate probabilities and export; goes on where it stopped."),
    "calibrate": _run_command("calibrate", "Fit scales and bins alone."),
    "isotonic": _run_command("isotonic", "Calibrate a trained model's probabilities alone."),
    "evaluate": _run_command("evaluate", "Measure the test rows (else the validation rows)."),
    "check": _run_command("check", "Look at config, files, every row and memory; train nothing."),
    "export": LazyCommand(
        "Write a trained model's files for serving.", attribute(f"{_PROJECT}.export.cli", "export_command")
    ),
    "score": LazyCommand("Score candidates with an exported model.", attribute(_SERVING, "score_command")),
    "serve": LazyCommand("Serve an exported model over HTTP.", attribute(_SERVING, "serve_command")),
    "importance": LazyCommand(
        "How much a trained model loses without each feature.",
        attribute(f"{_PROJECT}.importance_command", "importance_command"),
    ),
    "lolly-score": LazyCommand(
        "Score a table or debug lines with a lolly text model.", attribute(f"{_PROJECT}.lolly.cli", "score_command")
    ),
    "lolly-export": LazyCommand(
        "Write a trained lolly_lr as a lolly text model.", attribute(f"{_PROJECT}.lolly.cli", "export_command")
    ),
}

app = lazy_app(COMMANDS, help="Rankers of clicks and watch time: prepare, train, export, score, serve.")


@app.callback()
def group() -> None:
    """Rankers of clicks and watch time: prepare, train, export, score, serve."""
