"""Trackers that need a package of their own: TensorBoard, Weights & Biases, MLflow. Imported only when configured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


class TensorBoardTracker:
    """Event files; points of steps after `step` that an earlier run wrote are hidden."""

    def __init__(self, folder: str, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(folder, purge_step=step + 1 if step else None)  # type: ignore[no-untyped-call]

    def track(self, step: int, values: Mapping[str, float]) -> None:
        """Write one point per value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, status: str, message: str | None = None) -> None:
        """Close the files."""
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run; a resumed training goes on in the same run, whose id is kept in `save_dir`."""

    def __init__(self, save_dir: str, run_config: Mapping[str, Any], **settings: Any) -> None:
        import wandb

        id_file = os.path.join(save_dir, "wandb_run_id")
        self._run: Any = wandb.init(
            dir=save_dir, config=dict(run_config), id=_read(id_file), resume="allow", **settings
        )
        _write(id_file, self._run.id)

    def track(self, step: int, values: Mapping[str, float]) -> None:
        """Send one step."""
        self._run.log(dict(values), step=step)

    def close(self, status: str, message: str | None = None) -> None:
        """Finish the run; anything but 'finished' counts as a failure there."""
        self._run.finish(exit_code=0 if status == "finished" else 1)


class MlflowTracker:
    """An MLflow run; a resumed training goes on in the same run, whose id is kept in `save_dir`."""

    def __init__(
        self, save_dir: str, run_config: Mapping[str, Any], *, uri: str, experiment: str, name: str | None = None
    ) -> None:
        import mlflow

        self._mlflow: Any = mlflow
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment(experiment)
        id_file = os.path.join(save_dir, "mlflow_run_id")
        known = _read(id_file)
        run = mlflow.start_run(run_id=known) if known else mlflow.start_run(run_name=name)
        if not known:
            mlflow.log_dict(dict(run_config), "config.json")
        _write(id_file, run.info.run_id)

    def track(self, step: int, values: Mapping[str, float]) -> None:
        """Send one step."""
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self, status: str, message: str | None = None) -> None:
        """End the run."""
        self._mlflow.end_run({"finished": "FINISHED", "preempted": "KILLED"}.get(status, "FAILED"))


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip() or None
    except FileNotFoundError:
        return None


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
