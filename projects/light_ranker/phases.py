"""The phases of a run: calibrate -> train -> isotonic -> export, each alone or together.

    save_dir/calibration/        scales and bins, fitted on a sample of the training rows
    save_dir/initial_model.tsv   the lolly text that the model started from, if it did
    save_dir/<step>/, best       checkpoints
    save_dir/isotonic.json       {"step": ..., "data": ..., "click": {"x": [...], "y": [...]}}
    save_dir/test_metrics.json   of the last evaluation
    save_dir/export/             what is served

A phase whose result is there already, of the same inputs, is not done again: a run that was killed goes on where it
was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tml.common.checkpointing import CheckpointManager, read_extra
from tml.common.device import gather_objects, rank, world_size
from tml.common.errors import ConfigError, DataError
from tml.common.filesystem.atomic import write_json
from tml.common.modules.calibrators import Isotonic, choose_num_bins, fit_isotonic
from tml.core.batch_stream import StopRequest
from tml.core.config import parse_config
from tml.core.custom_training_loop import TrainLoop, TrainState, evaluate, open_checkpoints, train
from tml.core.held_out import restore_model
from tml.ml_logging import get_logger
from tml.projects.light_ranker.calibration import Calibration, Sample, load_calibration, require_fresh
from tml.projects.light_ranker.config import DataConfig, LightRankerConfig
from tml.projects.light_ranker.data.dataset import RankerDataset, Share, data_files
from tml.projects.light_ranker.data.groups import require_groups_together
from tml.projects.light_ranker.features.spec import FeatureSpec
from tml.projects.light_ranker.lolly.initial import keep_initial_model
from tml.projects.light_ranker.metrics import KeptPredictions, RankerMetrics
from tml.projects.light_ranker.models.build import AnySlots, Ranker, build_model, build_slots, unwrapped
from tml.projects.light_ranker.optimizer import build_optimizers

logger = get_logger(__name__)

ISOTONIC = "isotonic.json"
CALIBRATION = "calibration"
EXPORT = "export"


@dataclass
class RankerRun:
    """The parts of a run on this rank."""

    config: LightRankerConfig
    device: torch.device
    spec: FeatureSpec
    calibration: Calibration
    slots: AnySlots
    model: nn.Module

    def dataset(self, section: DataConfig) -> RankerDataset:
        """The batches of a validation or test section on this rank."""
        num_ranks = world_size()
        size = -(-self.config.evaluation.batch_size // num_ranks) * num_ranks
        return RankerDataset(section, self.spec, self.slots, Share(size, 0, rank(), num_ranks))

    def evaluator(
        self, section: DataConfig, isotonic: Isotonic | None = None, num_steps: int = -1
    ) -> Callable[..., dict[str, float]]:
        """Measures the live model on a section; its argument is a stop request to poll."""
        data = self.dataset(section)
        metrics = RankerMetrics(self.config.evaluation, self.config.loss, self.spec, isotonic)

        def measure(stop: StopRequest | None = None) -> dict[str, float]:
            return evaluate(self.model, data, metrics, self.device, num_steps=num_steps, stop=stop)

        return measure


def read_spec(config: LightRankerConfig) -> FeatureSpec:
    """The features of the prepared folder."""
    return FeatureSpec.load(config.features_dir)


def calibrate(config: LightRankerConfig) -> Calibration:
    """The calibration of a run: the one of `save_dir` if it is fresh, else loaded or fitted, by rank 0.

    Raises:
        ConfigError: there is a stale one that checkpoints of this folder were trained with, or the one to load does not
            fit the features.
    """
    spec = read_spec(config)
    failure: Exception | None = None
    if rank() == 0:
        try:
            _calibrate_here(config, spec)
        except Exception as error:  # the others are told before it is raised
            failure = error
    failed = gather_objects(None if failure is None else str(failure))[0]
    if failure is not None:
        raise failure
    if failed:
        raise DataError("rank 0 could not calibrate", where="rank 0", value=failed)
    return fitted_calibration(config, spec)


def fitted_calibration(config: LightRankerConfig, spec: FeatureSpec) -> Calibration:
    """The calibration of `save_dir`, checked.

    Raises:
        ConfigError: there is none, or it is stale.
    """
    folder = Path(config.training.save_dir) / CALIBRATION
    found = load_calibration(folder)
    if found is None:
        raise ConfigError("there is no calibration", where=str(folder), fix="run --task calibrate first, or --task all")
    require_fresh(found, _calibration_key(config, spec), folder)
    return found


def build_run(config: LightRankerConfig, device: torch.device, local: bool = False) -> RankerRun:
    """Everything but the training data: features, calibration, model."""
    spec = read_spec(config)
    calibration = fitted_calibration(config, spec)
    slots = build_slots(config, spec, calibration, device.type)
    model = build_model(config, slots, calibration, device, local)
    return RankerRun(config, device, spec, calibration, slots, model)


def run_training(config: LightRankerConfig, device: torch.device) -> tuple[RankerRun, TrainState]:
    """Train from where the run is; evaluate the validation rows along the way."""
    run = build_run(config, device)
    if config.loss.ranking is not None:
        require_groups_together(data_files(config.train_data.data_root))
    size = config.train_data.batch_size(world_size())
    data = RankerDataset(config.train_data, run.spec, run.slots, Share(size, config.runtime.seed, rank(), world_size()))
    measure = None
    if config.validation_data is not None:
        measure = run.evaluator(config.validation_data, num_steps=config.training.num_eval_steps)
    with open_checkpoints(config.training) as checkpoints:
        state = train(
            TrainLoop(
                run.model,
                build_optimizers(config.model, run.model),
                data,
                config.training,
                config.runtime,
                device,
                checkpoints,
                evaluate=measure,
                run_config=config,
                fingerprints={"features": run.spec.fingerprint(), "calibration": run.calibration.digest()},
            )
        )
    return run, state


def require_trained(save_dir: str | Path, step: int) -> None:
    """Refuse to go on with a model that had no step of training.

    Raises:
        ConfigError: the step is 0.
    """
    if step == 0:
        raise ConfigError(
            "the model had no step of training", where=save_dir, value=f"checkpoint of step {step}",
            limit="at least one step", fix="train first: run --task train, without a stop before its first step",
        )  # fmt: skip


def fit_isotonic_phase(run: RankerRun, step: int) -> Isotonic | None:
    """Fit the isotonic calibration on the validation rows and keep it beside the checkpoints.

    Args:
        run: its model is that of `step`.
        step: kept with the result, so that a calibration of another step is not taken for this one's.
    """
    config = run.config
    if config.isotonic is None or config.validation_data is None:
        return None
    data = run.dataset(config.validation_data)
    identity = {"step": step, "data": data.fingerprint()} | config.isotonic.model_dump(mode="json")
    known = load_isotonic(config.training.save_dir, identity)
    if all(gather_objects(known is not None)):
        return known
    kept = KeptPredictions()
    evaluate(run.model, data, kept, run.device)
    probabilities, labels, weights = (values.numpy() for values in kept.rows())
    wanted, anchored = config.isotonic.num_bins, config.isotonic.anchored
    if isinstance(wanted, list):
        wanted = choose_num_bins(probabilities, labels, weights, wanted, anchored)
    num_bins = min(wanted, int((weights > 0).sum()))
    fitted = fit_isotonic(probabilities, labels, weights, num_bins, anchored=anchored)
    if rank() == 0:
        write_json(isotonic_path(config.training.save_dir), identity | {"click": fitted.to_dict()})
        logger.info("isotonic calibration of step %d: %d points from %d rows", step, num_bins, len(labels))
    gather_objects(None)
    return fitted


def load_isotonic(save_dir: str, identity: dict[str, Any] | None = None) -> Isotonic | None:
    """The isotonic calibration of a run; None if there is none, or one of another identity.

    Raises:
        DataError: the file is damaged.
    """
    path = isotonic_path(save_dir)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if identity is not None and {name: found.get(name) for name in identity} != identity:
            return None
        return Isotonic.from_dict(found["click"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, AttributeError) as error:
        raise DataError(
            "an isotonic calibration cannot be read",
            where=str(path),
            value=str(error),
            fix="delete it and fit it again",
        ) from error


def isotonic_path(save_dir: str) -> Path:
    """Where the isotonic calibration lies."""
    return Path(save_dir) / ISOTONIC


@dataclass
class TrainedRanker:
    """A trained model on the CPU with all that an export needs.

    Args:
        model: with its whole tables in this process.
        spec: the features.
        features_dir: the prepared folder.
        isotonic: `{"click": {"x": [...], "y": [...]}}`, or None.
        facts: what a reader of the export may want to know: step, metrics, config.
        evaluation_files: encoded rows to check the export on.
        config: of the run.
    """

    model: Ranker
    spec: FeatureSpec
    features_dir: Path
    isotonic: dict[str, Any] | None
    facts: dict[str, Any]
    evaluation_files: list[str]
    config: LightRankerConfig
    step: int


def load_trained(
    save_dir: str | Path, step: int | None = None, config: LightRankerConfig | None = None
) -> TrainedRanker:
    """The model of a run's checkpoint, on this process alone.

    Args:
        save_dir: of the run.
        step: a committed step; the best one, or else the latest, if None.
        config: the run's; the one kept in the checkpoint if None.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    if config is None:
        config = parse_config(LightRankerConfig, read_extra(Path(save_dir))["config"])
        moved = config.training.model_copy(update={"save_dir": str(save_dir)})
        config = config.model_copy(update={"training": moved})
    run = build_run(config, torch.device("cpu"), local=True)
    step = restore_model(run.model, config.training.save_dir, step, alone=True)
    run.model.eval()
    isotonic = load_isotonic(config.training.save_dir, {"step": step})
    held_out = config.validation_data or config.test_data
    return TrainedRanker(
        unwrapped(run.model),
        run.spec,
        Path(config.features_dir),
        None if isotonic is None else {"click": isotonic.to_dict()},
        {"identity": export_identity(config, step), "step": step, "config": config.model_dump(mode="json")},
        data_files(held_out.data_root) if held_out else [],
        config,
        step,
    )


def export_identity(config: LightRankerConfig, step: int) -> str:
    """A digest of everything that an export is made from."""
    spec, save_dir = read_spec(config), config.training.save_dir
    isotonic = load_isotonic(save_dir, {"step": step})
    parts = [
        step,
        read_extra(Path(save_dir), step).get("fingerprints"),
        spec.fingerprint(),
        fitted_calibration(config, spec).digest(),
        None if isotonic is None else isotonic.to_dict(),
        [section.model_dump(mode="json") for section in (config.model, config.loss, config.export)],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _calibrate_here(config: LightRankerConfig, spec: FeatureSpec) -> None:
    sample = Sample(config, spec)
    folder = Path(config.training.save_dir) / CALIBRATION
    expected = _calibration_key(config, spec)
    found = load_calibration(folder)
    checkpoints = CheckpointManager(config.training.save_dir, max_to_keep=None, lock=False, alone=True)
    has_begun = checkpoints.latest() is not None and not config.training.overwrite_save_dir
    keep_initial_model(config, has_begun)
    if found is not None and found.fingerprint == expected:
        logger.info("calibration is in %s already", folder)
        return
    if found is not None and has_begun:
        require_fresh(found, expected, folder)
    if config.calibration.load_dir is None:
        fitted = sample.fit()
    else:
        fitted = _loaded(Path(config.calibration.load_dir), expected)
    fitted.save(folder, sample.discretizers)
    logger.info("calibration is in %s", folder)


def _loaded(folder: Path, expected: str) -> Calibration:
    found = load_calibration(folder)
    if found is None:
        raise ConfigError("there is no calibration to load", where="calibration.load_dir", value=str(folder))
    return Calibration(found.normalizer, found.boundaries, expected)


def _calibration_key(config: LightRankerConfig, spec: FeatureSpec) -> str:
    if config.calibration.load_dir is not None:
        return f"loaded from {config.calibration.load_dir}"
    return Sample(config, spec).fingerprint()
