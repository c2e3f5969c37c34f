"""Train or evaluate TwHIN: the door that torchrun opens.

    torchrun projects/twhin/run.py --config projects/twhin/configs/local.yaml training.num_epochs=3
    python -m tml.projects.twhin.run --config my.yaml --task evaluate

Tasks: `train` continues by itself from the checkpoints of `training.save_dir`; `evaluate` ranks the test edges (else
the validation edges) under the best or latest checkpoint; `only_evaluate` follows a folder that another job writes and
evaluates every new checkpoint; `check` looks at config, files, ids and memory and trains nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import record

from tml.common.device import rank, world_size
from tml.core.command_line import parse_arguments, run_arguments
from tml.core.custom_training_loop import TrainLoop, TrainState, open_checkpoints, train
from tml.core.held_out import failures_recorded, follow_checkpoints, held_out_section, report_metrics, restore_model
from tml.core.optimizers.optimizers import Optimizers
from tml.core.session import run_main, runtime_session
from tml.projects.twhin.check import check_run
from tml.projects.twhin.config import EdgesConfig, TwhinConfig
from tml.projects.twhin.data.dataset import EdgesDataset
from tml.projects.twhin.data.edges import EdgeSchema
from tml.projects.twhin.metrics import SHOWN, LinkPrediction
from tml.projects.twhin.models.build import build_model, edge_schema
from tml.projects.twhin.optimizer import build_optimizers
from tml.projects.twhin.tables import table_layout, vocab_fingerprint, vocab_hashes

TASKS = ("train", "evaluate", "only_evaluate", "check")


@dataclass
class TwhinRun:
    """The parts of a run on this rank."""

    config: TwhinConfig
    device: torch.device
    schema: EdgeSchema
    data: EdgesDataset
    model: nn.Module
    optimizers: Optimizers

    def evaluator(self, section: EdgesConfig, max_edges: int | None = None) -> Callable[..., dict[str, float]]:
        """Ranks the edges of a section under the live model; arguments of the call are ignored."""
        metric = LinkPrediction(self.config, section, self.schema, max_edges)
        return lambda *_: metric.evaluate(self.model, self.device)


def build_run(config: TwhinConfig, device: torch.device) -> TwhinRun:
    """Data first: a wrong path or id should be found before a table is filled."""
    seed = config.runtime.seed
    layout, schema = table_layout(config.model, device.type), edge_schema(config.model)
    data = EdgesDataset(
        config.train_data,
        schema,
        layout,
        weights={relation.name: relation.weight for relation in config.model.relations},
        seed=seed,
        rank=rank(),
        num_ranks=world_size(),
        num_epochs=config.training.num_epochs,
    )
    model = build_model(config.model, config.train_data, layout, device, seed)
    return TwhinRun(config, device, schema, data, model, build_optimizers(config.model, model))


def run_training(config: TwhinConfig, device: torch.device) -> TrainState:
    """Train; evaluate the validation edges along the way, and the test edges once at the end, if there was a step."""
    run = build_run(config, device)
    evaluate = None
    if config.validation_data is not None:
        evaluate = run.evaluator(config.validation_data, config.evaluation.max_edges)
    with open_checkpoints(config.training) as checkpoints:
        state = train(
            TrainLoop(
                run.model,
                run.optimizers,
                run.data,
                config.training,
                config.runtime,
                device,
                checkpoints,
                evaluate=evaluate,
                run_config=config,
                fingerprints={vocab_fingerprint(name): value for name, value in vocab_hashes(config).items()},
            )
        )
    is_over = state.exit_code == 0 and state.has_trained
    if is_over and config.test_data is not None and config.training.num_eval_steps != 0:
        with failures_recorded(config.training.save_dir):
            metrics = run.evaluator(config.test_data)()
            report_metrics(config.training, "test", state.model_step, metrics, SHOWN)
    return state


def run_evaluation(config: TwhinConfig, device: torch.device, step: int | None = None) -> dict[str, float]:
    """Rank the test edges, or without any the validation edges.

    Args:
        config: the whole config.
        device: of this rank.
        step: a committed step; the best one, or else the latest, if None.
    """
    section, split = held_out_section(config)
    run = build_run(config, device)
    step = restore_model(run.model, config.training.save_dir, step)
    metrics = run.evaluator(section)()
    report_metrics(config.training, split, step, metrics, SHOWN)
    return metrics


def follow_training(config: TwhinConfig, device: torch.device) -> dict[int, dict[str, float | None]]:
    """Evaluate each checkpoint that another job writes, until its last one or a timeout."""
    section, _ = held_out_section(config)
    run = build_run(config, device)
    return follow_checkpoints(run.model, run.evaluator(section, config.evaluation.max_edges), config.training)


def run_task(config: TwhinConfig, task: str) -> int:
    """Run a task of `TASKS` on this rank and return the process's exit code."""
    with runtime_session(config.runtime, config.training.save_dir) as device:
        if task == "check":
            check_run(config, edge_schema(config.model), device.type, world_size())
        elif task == "evaluate":
            run_evaluation(config, device)
        elif task == "only_evaluate":
            follow_training(config, device)
        else:
            return run_training(config, device).exit_code
    return 0


@record
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of torchrun and of `tml twhin train`."""
    words = sys.argv[1:] if argv is None else argv
    arguments = parse_arguments(words, "Train or evaluate TwHIN embeddings.", TASKS, default="train")
    run_main(lambda: run_arguments(arguments, TwhinConfig, run_task))


if __name__ == "__main__":
    main()
