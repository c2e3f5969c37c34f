"""The light ranker in Python: a trainer that is given parameters and data, and the model it returns.

    trainer = DataRecordTrainer(TrainerParams(model_dir="runs/clicks", num_epochs=3))
    model = trainer.train("data/train.parquet", "data/eval.parquet")
    model.evaluate()["rce"]
    model.predict({"user_id": [1, 1], "tweet_id": [7, 8]})["click"]
    model.export_for_serving()

It goes the way of `run.py`: the same config, folder, phases and resume. Under torchrun every rank trains, on prepared
data; the model that is returned lives on each rank by itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch

from tml.common.checkpointing import lock_of_whole_run
from tml.common.errors import ConfigError, DataError, LaunchError
from tml.common.modules.calibrators import Isotonic
from tml.common.tracking.record import ExperimentRecord
from tml.core.config import parse_config
from tml.core.config.base_config import did_you_mean
from tml.core.custom_training_loop import evaluate
from tml.core.held_out import report_metrics
from tml.core.session import runtime_session
from tml.machines.environment import task_environment
from tml.projects.light_ranker.config import LightRankerConfig, TrainDataConfig
from tml.projects.light_ranker.data.dataset import RankerDataset, Share, open_reader
from tml.projects.light_ranker.features.encoder import Encoder
from tml.projects.light_ranker.features.spec import FeatureSpec
from tml.projects.light_ranker.in_memory import batch_in_memory
from tml.projects.light_ranker.metrics import SHOWN, RankerMetrics
from tml.projects.light_ranker.phases import (
    EXPORT,
    TrainedRanker,
    calibrate,
    fit_isotonic_phase,
    load_trained,
    run_training,
)
from tml.projects.light_ranker.training_data import DataSource, PreparedData, RawDataOptions, prepared_data

Data: TypeAlias = str | os.PathLike[str] | pa.Table | DataSource
Columns: TypeAlias = Mapping[str, Sequence[Any] | np.ndarray | pa.Array]


@dataclass(frozen=True)
class TrainerParams:
    """What a trainer is told; everything else of a run is at its default, or in `settings`.

    Args:
        model_dir: folder of the run; a run continues from what lies there.
        model: `mlp` or `lolly_lr`.
        num_epochs: passes over the training data.
        learning_rate: of the dense layers, or of lolly_lr's weights: a number or a schedule as in a config.
        optimizer: name in a config's optimizer section, and its settings but for the learning rate.
        hidden_sizes: units of the hidden layers.
        embedding_size: length of the embeddings.
        alpha, beta: factors of the losses of click and watch time.
        batch_size: examples of a step on all ranks together.
        steps_per_evaluation: None to evaluate, and save, after every epoch.
        feature_config: features.yaml of raw data; None for a proposal, which is printed.
        group: column of the request or user whose rows are ranked together, in raw data.
        record_config: of block files, which features become which columns.
        example_weights: engagement -> weight, for raw data.
        allow_overlap: evaluate on the rows that are trained on.
        settings: dotted path -> value, laid over the run's config last.
    """

    model_dir: str = "runs/light_ranker"
    model: str = "mlp"
    num_epochs: int | None = 10
    learning_rate: float | Mapping[str, Any] = 0.001
    optimizer: tuple[str, Mapping[str, Any]] | None = None
    hidden_sizes: Sequence[int] = (256, 128)
    embedding_size: int = 16
    alpha: float = 1.0
    beta: float = 1.0
    batch_size: int = 1024
    steps_per_evaluation: int | None = None
    feature_config: str | None = None
    group: str | None = None
    record_config: str | None = None
    example_weights: Mapping[str, float] = field(default_factory=dict)
    allow_overlap: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.model not in ("mlp", "lolly_lr"):
            raise ConfigError("unknown model", where="params.model", value=self.model, limit="mlp or lolly_lr")

    @classmethod
    def of(cls, values: TrainerParams | Mapping[str, Any]) -> TrainerParams:
        """Parameters from a mapping.

        Raises:
            ConfigError: a name is unknown.
        """
        if isinstance(values, TrainerParams):
            return values
        known = [one.name for one in fields(cls)]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ConfigError(f"unknown parameter{did_you_mean(unknown[0], known)}", where="params", value=unknown[0])
        return cls(**values)


class DataRecordTrainer:
    """Trains a light ranker.

    Args:
        params: `TrainerParams`, or a mapping of its fields.
    """

    def __init__(self, params: TrainerParams | Mapping[str, Any]) -> None:
        self.params = TrainerParams.of(params)

    def train(self, train_data: Data, eval_data: Data | None = None) -> LightRanker:
        """Calibrate, train, and calibrate the probabilities on the evaluation rows.

        Args:
            train_data: a prepared folder, files of a table (parquet, CSV, TSV) or of DataRecords, or a table in memory;
                a `DataSource` says more.
            eval_data: the same, to evaluate on after every epoch; None for no evaluation.

        Returns:
            The model of the best step, or else of the last one.

        Raises:
            ConfigError, DataError: parameters or data cannot be used.
            LaunchError: training was interrupted by a signal; it continues when it is called again. Or it was stopped
                before its first step.
        """
        config = self.config(_source(train_data), None if eval_data is None else _source(eval_data))
        save_dir = config.training.save_dir
        with runtime_session(config.runtime, save_dir) as device, lock_of_whole_run(save_dir):
            calibrate(config)
            run, state = run_training(config, device)
            if state.exit_code:
                raise LaunchError(
                    "training was interrupted", where=config.training.save_dir, value=state.stop_reason,
                    fix="call train again: it continues",
                )  # fmt: skip
            if not state.has_trained:
                raise LaunchError(
                    "nothing was trained", where=config.training.save_dir, value=state.stop_reason,
                    limit="at least one step", fix="take away what stopped it, and call train again",
                )  # fmt: skip
            step = state.model_step
            isotonic = fit_isotonic_phase(run, step)
            metrics = {}
            if config.validation_data is not None:
                metrics = run.evaluator(config.validation_data, isotonic)()
                report_metrics(config.training, "validation", step, metrics, SHOWN)
        return LightRanker(config, metrics)

    def config(self, train_data: DataSource, eval_data: DataSource | None) -> LightRankerConfig:
        """The run's config; prepares the data if it is raw."""
        params = self.params
        raw = RawDataOptions(
            params.feature_config, params.group, params.record_config, params.example_weights, params.allow_overlap,
            int(params.settings.get("runtime.seed", 0)),
        )  # fmt: skip
        return run_config(params, prepared_data(train_data, eval_data, Path(params.model_dir) / "data", raw))


class LightRanker:
    """A trained model.

    Args:
        config: of its run.
        metrics: of the evaluation rows at the end of training; empty without such rows.
    """

    def __init__(self, config: LightRankerConfig, metrics: Mapping[str, float] | None = None) -> None:
        self.config = config
        self.metrics = dict(metrics or {})
        self._trained: TrainedRanker | None = None
        self._encodes: Encoder | None = None

    @classmethod
    def load(cls, model_dir: str | os.PathLike[str]) -> LightRanker:
        """The model of an earlier run.

        Raises:
            CheckpointError: there is none.
        """
        return cls(load_trained(Path(model_dir)).config)

    def evaluate(self) -> dict[str, float]:
        """Metrics of the test rows, or else of the evaluation rows, on the CPU.

        Those of the click are of calibrated probabilities; the same without are called `uncalibrated_...`.

        Raises:
            ConfigError: the run has no such rows.
        """
        trained = self._load()
        section = self.config.test_data or self.config.validation_data
        if section is None:
            raise ConfigError("the run has no rows to evaluate", where=self.config.training.save_dir,
                              fix="train with eval_data")  # fmt: skip
        isotonic = None if trained.isotonic is None else Isotonic.from_dict(trained.isotonic["click"])
        metrics = RankerMetrics(self.config.evaluation, self.config.loss, trained.spec, isotonic)
        data = RankerDataset(section, trained.spec, trained.model.slots, Share(self.config.evaluation.batch_size))
        return evaluate(trained.model, data, metrics, torch.device("cpu"))

    def predict(self, table: Columns | pa.Table) -> dict[str, np.ndarray]:
        """Scores of raw rows.

        Args:
            table: raw columns, as the data the run was trained on; None or NaN where a value is missing.

        Returns:
            float32 [B] each: `click`, the calibrated probability; `click_raw`; and `watch_time` in seconds if it was
            learnt.

        Raises:
            DataError: a column is missing, or holds what it may not.
        """
        trained = self._load()
        columns = {name: table.column(name) for name in table.column_names} if isinstance(table, pa.Table) else table
        if not isinstance(columns, Mapping):
            raise DataError(
                "rows are not given as columns", where="predict", value=type(table).__name__,
                limit="an Arrow table, or one sequence of values for each column",
                fix="of a list of rows, pyarrow.Table.from_pylist makes a table",
            )  # fmt: skip
        rows = self._encoder().encode(columns)
        with torch.no_grad():
            outputs = trained.model.eval()(batch_in_memory(trained.spec, trained.model.slots, rows))[1]
        raw = outputs["probabilities"].float()
        isotonic = None if trained.isotonic is None else Isotonic.from_dict(trained.isotonic["click"])
        found = {"click": raw if isotonic is None else isotonic(raw), "click_raw": raw}
        if "watch_time_prediction" in outputs:
            found["watch_time"] = outputs["watch_time_prediction"].clamp_min(0.0).expm1()
        return {name: scores.float().numpy() for name, scores in found.items()}

    def export_for_serving(self, dir: str | os.PathLike[str] | None = None) -> Path:
        """Write the files that `Scorer` serves, and their hash into the run's experiment record.

        Args:
            dir: folder; `<model_dir>/export` if None.

        Returns:
            The folder.
        """
        # Only this method needs the libraries of the export.
        from tml.projects.light_ranker.export import export_ranker

        trained = self._load()
        save_dir = Path(self.config.training.save_dir)
        folder = export_ranker(
            trained.model,
            dir or save_dir / EXPORT,
            features_dir=trained.features_dir,
            isotonic=trained.isotonic,
            settings=self.config.export,
            facts=trained.facts,
            evaluation_files=trained.evaluation_files,
        )
        ExperimentRecord(save_dir).artifact("export", folder)
        return folder

    def _load(self) -> TrainedRanker:
        if self._trained is None:
            self._trained = load_trained(self.config.training.save_dir, config=self.config)
        return self._trained

    def _encoder(self) -> Encoder:
        if self._encodes is None:
            self._encodes = Encoder.load(self.config.features_dir)
        return self._encodes


def run_config(params: TrainerParams, data: PreparedData) -> LightRankerConfig:
    """The config of a run.

    Raises:
        ConfigError: a setting is unknown or does not fit, or the data has no binary label.
    """
    spec = FeatureSpec.load(data.features_dir)
    settings: dict[str, Any] = {
        "training": {"save_dir": params.model_dir, "num_epochs": params.num_epochs},
        "features_dir": data.features_dir,
        "model": {params.model: _model_section(params)},
        "loss": _loss_section(params, spec),
        "train_data": {"data_root": data.train_root, "global_batch_size": params.batch_size},
    }
    if data.eval_root is not None:
        settings["validation_data"] = {"data_root": data.eval_root}
    for path, value in params.settings.items():
        _lay(settings, path, value)
    # What is set goes before: an evaluation and a checkpoint after every epoch are defaults.
    steps = params.steps_per_evaluation or _steps_per_epoch(settings["train_data"], spec)
    defaults = {"checkpoint_every_n": steps} | ({"evaluate_every_n": steps} if "validation_data" in settings else {})
    settings["training"] = defaults | settings["training"]
    return parse_config(LightRankerConfig, settings, "trainer's parameters")


def _steps_per_epoch(section: dict[str, Any], spec: FeatureSpec) -> int:
    config = parse_config(TrainDataConfig, section, "train_data")
    # The process group is not there yet; the launcher knows.
    batch_size = config.batch_size(task_environment().world_size)
    return max(1, open_reader(config, spec, Share(batch_size)).steps_per_epoch)


def _model_section(params: TrainerParams) -> dict[str, Any]:
    default = "adam" if params.model == "mlp" else "sgd"
    kind, values = params.optimizer or (default, {})
    optimizer = {kind: {**values, "learning_rate": params.learning_rate}}
    if params.model == "lolly_lr":
        return {"optimizer": optimizer}
    return {
        "dense_optimizer": optimizer,
        "hidden_sizes": list(params.hidden_sizes),
        "embedding_dim": params.embedding_size,
    }


def _loss_section(params: TrainerParams, spec: FeatureSpec) -> dict[str, Any]:
    """The first binary label is the click, and for an mlp the first other one the watch time."""
    clicks, times = ([one.name for one in spec.labels if one.kind == kind] for kind in ("binary", "nonnegative"))
    if not clicks:
        raise ConfigError("the data has no binary label", where="features.yaml", fix="add one, such as click")
    section: dict[str, Any] = {"alpha": params.alpha, "beta": params.beta, "click_label": clicks[0]}
    return section | ({"watch_time_label": times[0]} if times and params.model == "mlp" else {})


def _lay(settings: dict[str, Any], path: str, value: Any) -> None:
    *sections, last = path.split(".")
    place = settings
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise ConfigError("setting lies within a value", where=path, value=place, limit="section.key")
    place[last] = value


def _source(data: Data) -> DataSource:
    return data if isinstance(data, DataSource) else DataSource(data)
