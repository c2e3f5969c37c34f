"""Train, calibrate, evaluate or export a light ranker: the door that torchrun opens.

    torchrun projects/light_ranker/run.py --config projects/light_ranker/configs/local.yaml training.num_epochs=3
    python -m tml.projects.light_ranker.run --config my.yaml --task evaluate

Tasks: `all` goes through the phases calibrate, train, isotonic and export, and goes on where an earlier run stopped;
`calibrate`, `train`, `isotonic` and `export` are one phase each; `evaluate` measures the test rows (else the validation
rows) under the best or latest checkpoint; `only_evaluate` follows a folder that another job writes; `check` looks at
config, files and every row, and trains nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from tml.common.checkpointing import CheckpointManager, lock_of_whole_run
from tml.common.device import gather_objects, rank
from tml.common.errors import ConfigError
from tml.common.modules.calibrators import Isotonic
from tml.common.tracking.record import ExperimentRecord
from tml.core.command_line import parse_arguments, run_arguments
from tml.core.config import config_hash
from tml.core.held_out import (
    failures_recorded,
    follow_checkpoints,
    held_out_section,
    is_reported,
    report_metrics,
    restore_model,
)
from tml.core.session import run_main, runtime_session
from tml.ml_logging import get_logger
from tml.projects.light_ranker.check import check_run
from tml.projects.light_ranker.config import LightRankerConfig
from tml.projects.light_ranker.metrics import SHOWN
from tml.projects.light_ranker.phases import (
    EXPORT,
    RankerRun,
    build_run,
    calibrate,
    export_identity,
    fit_isotonic_phase,
    load_isotonic,
    load_trained,
    require_trained,
    run_training,
)

logger = get_logger(__name__)

TASKS = ("all", "calibrate", "train", "isotonic", "export", "evaluate", "only_evaluate", "check")


def run_all(config: LightRankerConfig, device: torch.device) -> int:
    """Every phase that has not been done yet; none after a training without a step."""
    calibrate(config)
    run, state = run_training(config, device)
    if state.exit_code or not state.has_trained:
        return state.exit_code
    step = state.model_step
    with failures_recorded(config.training.save_dir):
        isotonic = fit_isotonic_phase(run, step)
        measure_test(run, step, isotonic)
        export(config)
    return 0


def train_alone(config: LightRankerConfig, device: torch.device) -> int:
    """Train on a calibration that is there, and measure the test rows once at the end, if there was a step."""
    run, state = run_training(config, device)
    if state.exit_code == 0 and state.has_trained:
        with failures_recorded(config.training.save_dir):
            measure_test(run, state.model_step, None)
    return state.exit_code


def measure_test(run: RankerRun, step: int, isotonic: Isotonic | None) -> None:
    """Measure the test rows, if there are any and these are not measured yet."""
    config = run.config
    if config.test_data is None or config.training.num_eval_steps == 0:
        return
    measured = {
        "step": step,
        "data": run.dataset(config.test_data).fingerprint(),
        "isotonic": None if isotonic is None else isotonic.to_dict(),
        "evaluation": config.evaluation.model_dump(mode="json"),
    }
    identity = config_hash(measured)
    if all(gather_objects(is_reported(config.training.save_dir, "test", identity))):
        logger.info("the test rows are measured already")
        return
    metrics = run.evaluator(config.test_data, isotonic)()
    report_metrics(config.training, "test", step, metrics, SHOWN, identity)


def fit_isotonic_alone(config: LightRankerConfig, device: torch.device) -> None:
    """Fit the isotonic calibration of the best or latest checkpoint.

    Raises:
        ConfigError: there are no validation rows, the config asks for none, or the model had no step of training.
    """
    if config.isotonic is None or config.validation_data is None:
        raise ConfigError(
            "there is nothing to fit an isotonic calibration with", where="isotonic, validation_data",
            fix="set both sections",
        )  # fmt: skip
    run = build_run(config, device)
    step = restore_model(run.model, config.training.save_dir)
    require_trained(config.training.save_dir, step)
    fit_isotonic_phase(run, step)


def run_evaluation(config: LightRankerConfig, device: torch.device, step: int | None = None) -> dict[str, float]:
    """Measure the test rows, or without any the validation rows, calibrated too if there is a calibration.

    Args:
        config: the whole config.
        device: of this rank.
        step: a committed step; the best one, or else the latest, if None.
    """
    section, split = held_out_section(config)
    run = build_run(config, device)
    step = restore_model(run.model, config.training.save_dir, step)
    metrics = run.evaluator(section, load_isotonic(config.training.save_dir, {"step": step}))()
    report_metrics(config.training, split, step, metrics, SHOWN)
    return metrics


def follow_training(config: LightRankerConfig, device: torch.device) -> dict[int, dict[str, float | None]]:
    """Evaluate each checkpoint that another job writes, until its last one or a timeout."""
    section, _ = held_out_section(config)
    run = build_run(config, device)
    evaluate = run.evaluator(section, num_steps=config.training.num_eval_steps)
    return follow_checkpoints(run.model, evaluate, config.training)


def export(config: LightRankerConfig) -> Path:
    """Write the files for serving to `save_dir/export`, unless they are there, on rank 0; the others wait."""
    # Only this task needs the libraries of the export.
    from tml.projects.light_ranker.export import export_ranker

    folder = Path(config.training.save_dir) / EXPORT
    if rank() == 0 and not _is_exported(config, folder):
        trained = load_trained(config.training.save_dir, config=config)
        require_trained(config.training.save_dir, trained.step)
        export_ranker(
            trained.model,
            folder,
            features_dir=trained.features_dir,
            isotonic=trained.isotonic,
            settings=config.export,
            facts=trained.facts,
            evaluation_files=trained.evaluation_files,
        )
        ExperimentRecord(config.training.save_dir).artifact("export", folder)
    gather_objects(None)
    return folder


def _is_exported(config: LightRankerConfig, folder: Path) -> bool:
    try:
        facts = json.loads((folder / "signature.json").read_text(encoding="utf-8"))["facts"]
        known = (facts["identity"], facts["step"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    checkpoints = CheckpointManager(config.training.save_dir, max_to_keep=None, lock=False, alone=True)
    step = checkpoints.best() or checkpoints.latest()
    if step is None or known != (export_identity(config, step), step):
        return False
    logger.info("the export of step %d is in %s already", step, folder)
    return True


def _run_writer(config: LightRankerConfig, task: str, device: torch.device) -> int:
    if task == "calibrate":
        calibrate(config)
        return 0
    return run_all(config, device) if task == "all" else train_alone(config, device)


def run_task(config: LightRankerConfig, task: str) -> int:
    """Run a task of `TASKS` on this rank and return the process's exit code."""
    with runtime_session(config.runtime, config.training.save_dir) as device:
        if task in ("all", "train", "calibrate"):
            with lock_of_whole_run(config.training.save_dir):
                return _run_writer(config, task, device)
        if task == "isotonic":
            fit_isotonic_alone(config, device)
        elif task == "export":
            export(config)
        elif task == "evaluate":
            run_evaluation(config, device)
        elif task == "only_evaluate":
            follow_training(config, device)
        else:
            check_run(config, device.type)
    return 0


@record
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of torchrun and of `tml light-ranker train`."""
    words = sys.argv[1:] if argv is None else argv
    arguments = parse_arguments(words, "Train, evaluate or export a light ranker.", TASKS, default="all")
    run_main(lambda: run_arguments(arguments, LightRankerConfig, run_task))


if __name__ == "__main__":
    main()
