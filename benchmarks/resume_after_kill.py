"""Kills a run over and over and starts it again: is the end, bit by bit, that of a run that was never disturbed?

    python benchmarks/resume_after_kill.py              # 20 kills with saves in step, 20 with saves in the background

A small TwHIN run on one CPU rank saves every third step. It is killed (SIGKILL, the whole process group) at random
moments after random steps, every third time while a checkpoint is being written, and started again by the very same
command until it is done. Then all tensors of the final checkpoint (tables, their optimizer state, relations, theirs),
the loss of every step and the place in the data must equal those of the same run left alone. Exits with 1 if they do
not.

Processes come from a server that has imported everything once: what is tested is the run, and Python takes longer to
import torch than this run takes to end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tml.benchmarks.harness import RUNS, argument_parser, circumstances, markdown_table, write_record

NUM_USERS, NUM_TWEETS, BATCH_SIZE, STEPS_PER_EPOCH = 20_000, 8_000, 2_000, 25
POLL_S, LONGEST_WAIT_S = 0.0005, 120.0


@dataclass(frozen=True)
class Kill:
    """What a kill met.

    Args:
        saves: "in step" or "background".
        at_step: the last step that had been logged.
        during_save: a checkpoint was left unfinished.
        resumed_from: the step the next start goes on from, 0 for the beginning.
    """

    saves: str
    at_step: int
    during_save: bool
    resumed_from: int


def main() -> None:
    arguments = _parse_arguments()
    folder = RUNS / "resume_after_kill"
    shutil.rmtree(folder, ignore_errors=True)
    record: dict[str, Any] = {"circumstances": circumstances(), "seed": arguments.seed, "threads": arguments.threads}
    num_epochs = 2 + arguments.kills // 5
    config = _write_config(folder, num_epochs, arguments.threads)
    whole = folder / "undisturbed"
    _finish(_start(config, whole, background=False))
    kills: list[Kill] = []
    faults: list[str] = []
    for background in (False, True):
        torn = folder / ("background" if background else "in_step")
        generator = random.Random(arguments.seed + background)
        kills += _torture(config, torn, background, arguments.kills, num_epochs * STEPS_PER_EPOCH, generator)
        faults += [f"{torn.name}: {fault}" for fault in _differences(torn, whole)]
    record |= {"kills": [asdict(kill) for kill in kills], "faults": faults}
    write_record(arguments.results, arguments.record, record, _report(kills, faults, num_epochs * STEPS_PER_EPOCH))
    sys.exit(1 if faults else 0)


def _torture(
    config: Path, save_dir: Path, background: bool, num_kills: int, num_steps: int, generator: random.Random
) -> list[Kill]:
    """Kill a run at random moments after random steps; then let it end."""
    kills = []
    for number, step in enumerate(sorted(generator.sample(range(1, num_steps - 25), num_kills))):
        started = time.time()
        process = _start(config, save_dir, background)
        assert process.pid is not None
        _wait_until(lambda step=step, at=started: _has_reached(step, save_dir, at), process)  # type: ignore[misc]
        if number % 3 == 2:
            _wait_until(lambda at=started: _is_saving(save_dir, at), process)  # type: ignore[misc]
            time.sleep(generator.uniform(0, 0.005))
        else:
            time.sleep(generator.uniform(0, 0.1))
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        unfinished = any(save_dir.glob("step-*.tmp"))
        kills.append(
            Kill("background" if background else "in step", _logged_step(save_dir), unfinished, _saved_step(save_dir))
        )
        print(f"kill {number + 1} of {num_kills}: {kills[-1]}", flush=True)
    _finish(_start(config, save_dir, background))
    return kills


def _start(config: Path, save_dir: Path, background: bool) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tml.projects.twhin.run"])
    overrides = [f"training.save_dir={save_dir}", f"training.checkpoint_async={str(background).lower()}"]
    process = context.Process(target=_run, args=(str(config), overrides, str(save_dir) + ".log"))
    process.start()
    return process


def _run(config: str, overrides: list[str], log: str) -> None:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from tml.projects.twhin.run import main as run_twhin

    run_twhin(["--config", config, *overrides])


def _finish(process: BaseProcess) -> None:
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"a run failed with exit code {process.exitcode}; its log is below {RUNS}")


def _wait_until(met: Any, process: BaseProcess) -> None:
    deadline = time.monotonic() + LONGEST_WAIT_S
    while not met():
        if not process.is_alive() or time.monotonic() > deadline:
            raise SystemExit(f"the run did not come to the point where it was to be killed; its log is below {RUNS}")
        time.sleep(POLL_S)


def _has_reached(step: int, save_dir: Path, started: float) -> bool:
    """Whether a step has been logged, by the process that was started then and not by one before it."""
    log = save_dir / "metrics.jsonl"
    return log.exists() and log.stat().st_mtime > started and _logged_step(save_dir) >= step


def _is_saving(save_dir: Path, started: float) -> bool:
    with suppress(FileNotFoundError):
        return any(folder.stat().st_ctime > started for folder in save_dir.glob("step-*.tmp"))
    return False


def _differences(torn: Path, whole: Path) -> list[str]:
    """What the end of one run has that the other's has not."""
    import torch

    from tml.common.checkpointing import load_tensors, read_extra

    found, expected = load_tensors(torn), load_tensors(whole)
    faults = [f"tensors {sorted(found)} instead of {sorted(expected)}"] if set(found) != set(expected) else []
    for name in sorted(set(found) & set(expected)):
        if not torch.equal(found[name], expected[name]):
            number = int((found[name] != expected[name]).sum())
            faults.append(f"{name}: {number} of {expected[name].numel()} values differ")
    if _losses(torn) != _losses(whole):
        faults.append("the loss of a step differs, or a step was logged twice or never")
    for name in ("step", "cursor", "num_examples", "rng"):
        if read_extra(torn)[name] != read_extra(whole)[name]:
            faults.append(f"{name} differs")
    if any(torn.glob("*.tmp")):
        faults.append("unfinished checkpoints are left over")
    return faults


def _losses(save_dir: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (save_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [(line["step"], line["train/loss"]) for line in lines]


def _logged_step(save_dir: Path) -> int:
    try:
        with open(save_dir / "metrics.jsonl", "rb") as file:
            file.seek(max(0, os.path.getsize(file.name) - 4096))
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return 0
    whole = [line for line in lines if line.endswith(b"}\n") and line.startswith(b"{")]
    return int(json.loads(whole[-1])["step"]) if whole else 0


def _saved_step(save_dir: Path) -> int:
    from tml.common.checkpointing import read_extra

    return int(read_extra(save_dir)["step"]) if any(save_dir.glob("step-????????/COMMIT.json")) else 0


def _write_config(folder: Path, num_epochs: int, num_threads: int) -> Path:
    """A random graph and its config; what is learnt does not matter here."""
    generator = np.random.default_rng(0)
    num_edges = BATCH_SIZE * STEPS_PER_EPOCH - 700
    edges = {
        "lhs": generator.integers(0, NUM_USERS, num_edges),
        "rel": generator.integers(0, 2, num_edges),
        "rhs": generator.integers(0, NUM_TWEETS, num_edges),
    }
    (folder / "train").mkdir(parents=True)
    for number in range(3):
        part = slice(number * num_edges // 3, (number + 1) * num_edges // 3)
        table = pa.table({name: column[part] for name, column in edges.items()})
        pq.write_table(table, folder / "train" / f"part-{number}.parquet", row_group_size=3_333)
    rate = {"rowwise_adagrad": {"learning_rate": 0.1}}
    tables = [("user", NUM_USERS, rate), ("tweet", NUM_TWEETS, {"adagrad": {"learning_rate": 0.05}})]
    config = {
        "runtime": {"device": "cpu", "num_threads": num_threads, "tracking": {"tensorboard": False}},
        "training": {
            "num_epochs": num_epochs, "checkpoint_every_n": 3, "checkpoint_max_to_keep": 2, "train_log_every_n": 1,
        },
        "model": {
            "embeddings": {
                "tables": [
                    {"name": name, "num_embeddings": rows, "embedding_dim": 32, "optimizer": optimizer}
                    for name, rows, optimizer in tables
                ]
            },
            "relations": [
                {"name": "fav", "lhs": "user", "rhs": "tweet"},
                {"name": "reply", "lhs": "user", "rhs": "tweet", "operator": "complex_diagonal"},
            ],
            "translation_optimizer": {"adam": {"learning_rate": 0.01}},
        },
        "train_data": {
            "data_root": str(folder / "train"), "global_batch_size": BATCH_SIZE, "shuffle_window_rows": 10_000,
        },
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")
    return path


def _report(kills: list[Kill], faults: list[str], num_steps: int) -> str:
    rows = [
        {
            "saves": saves,
            "kills": len(met),
            "during a save": sum(kill.during_save for kill in met),
            "steps done again": sum(kill.at_step - kill.resumed_from for kill in met),
            "steps of the run": num_steps,
        }
        for saves in ("in step", "background")
        if (met := [kill for kill in kills if kill.saves == saves])
    ]
    verdict = "PASS: every tensor, loss and cursor equals the undisturbed run's to the last bit."
    return f"{markdown_table(rows)}\n\n" + (verdict if not faults else "FAIL:\n" + "\n".join(f"- {f}" for f in faults))


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, "resume_after_kill")
    parser.add_argument("--kills", type=int, default=20, help="kills of each of the two runs (default: 20)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the run (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the steps and moments of the kills")
    return parser.parse_args()


if __name__ == "__main__":
    main()
