"""Where metrics go: JSON lines and the experiment's record always, TensorBoard, Weights & Biases and MLflow by config.

    trackers = open_trackers("runs/a", step=0, run_config={}, tensorboard=True)
    trackers.track(100, {"train/loss": 0.5})
    trackers.close("finished")

A tracker that fails is reported once and left out from then on: training is worth more than its plots.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tml.common.errors import ConfigError

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """One place that takes metrics."""

    def track(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of a step; steps never fall."""

    def close(self, status: str, message: str | None = None) -> None:
        """Flush and let go; `status` is 'finished', 'preempted' or 'failed', and `message` says why it failed."""


class Trackers:
    """Several trackers as one that does not fail.

    Args:
        factories: by name, what makes the tracker. One that cannot be made is left out with a warning.
    """

    def __init__(self, factories: Mapping[str, Callable[[], Tracker]]) -> None:
        self._trackers: dict[str, Tracker] = {}
        for name, make in factories.items():
            tracker = _attempt(name, "start", make)
            if tracker is not None:
                self._trackers[name] = tracker

    @property
    def names(self) -> list[str]:
        """Trackers that work."""
        return list(self._trackers)

    def track(self, step: int, values: Mapping[str, float]) -> None:
        """Hand the values of a step to every tracker."""
        for name, tracker in list(self._trackers.items()):
            if _attempt(name, "take metrics", lambda t=tracker: t.track(step, values) or True) is None:  # type: ignore[misc]
                del self._trackers[name]

    def close(self, status: str, message: str | None = None) -> None:
        """Close every tracker."""
        for name, tracker in self._trackers.items():
            _attempt(name, "close", lambda t=tracker: t.close(status, message))  # type: ignore[misc]
        self._trackers.clear()


def open_trackers(
    save_dir: str,
    *,
    step: int,
    run_config: Mapping[str, Any],
    tensorboard: bool = False,
    wandb: Mapping[str, Any] | None = None,
    mlflow: Mapping[str, Any] | None = None,
) -> Trackers:
    """The trackers of a run; call it on rank 0.

    Args:
        save_dir: local folder of the run.
        step: completed steps. What was tracked of later steps by an earlier run is forgotten.
        run_config: the whole config, JSON-able, for services that keep it.
        tensorboard: write event files to `save_dir/tensorboard`.
        wandb: project, name, entity, mode and tags, or None.
        mlflow: uri, experiment and name, or None.

    Raises:
        ConfigError: a tracker's package is not installed.
    """
    require_packages(tensorboard=tensorboard, wandb=wandb is not None, mlflow=mlflow is not None)

    def json_lines() -> Tracker:
        from tml.common.tracking.json_lines import JsonLinesTracker

        return JsonLinesTracker(os.path.join(save_dir, "metrics.jsonl"), step)

    def record() -> Tracker:
        from tml.common.tracking.record import RecordTracker

        return RecordTracker(save_dir, step, run_config)

    def event_files() -> Tracker:
        from tml.common.tracking.services import TensorBoardTracker

        return TensorBoardTracker(os.path.join(save_dir, "tensorboard"), step)

    def wandb_run() -> Tracker:
        from tml.common.tracking.services import WandbTracker

        return WandbTracker(save_dir, run_config, **(wandb or {}))

    def mlflow_run() -> Tracker:
        from tml.common.tracking.services import MlflowTracker

        return MlflowTracker(save_dir, run_config, **(mlflow or {}))

    factories: dict[str, Callable[[], Tracker]] = {"JSON lines": json_lines, "record": record}
    wanted = (("TensorBoard", tensorboard, event_files), ("W&B", wandb, wandb_run), ("MLflow", mlflow, mlflow_run))
    return Trackers(factories | {name: make for name, on, make in wanted if on})


def require_packages(**wanted: bool) -> None:
    """Refuse a tracker whose package is missing, before anything is trained; call it on every rank.

    Raises:
        ConfigError: names the package and the way to get it.
    """
    for name in (name for name, on in wanted.items() if on):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"the package {name} is not installed", where=f"runtime.tracking.{name}",
                fix=f"pip install {name}, or take runtime.tracking.{name} out of the config",
            )  # fmt: skip


def _attempt(name: str, what: str, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except Exception as error:
        logger.warning("tracker %s cannot %s and is left out, training goes on: %s", name, what, error)
        return None
