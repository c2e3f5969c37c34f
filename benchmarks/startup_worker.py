"""The process whose start startup_time.py measures: a TwHIN run that stops once its first step is complete.

startup_worker.py worker JOB.json       writes the time at which each part ended, in seconds since STARTED_VARIABLE's
"""

import time

FIRST_LINE = time.time()

# ruff: noqa: E402  the first line is the end of the first part
import json
import os
import sys
from pathlib import Path

STARTED_VARIABLE = "TML_BENCHMARK_STARTED"


def main() -> None:
    """The command line."""
    job = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    started = float(os.environ[STARTED_VARIABLE])
    ends = {"interpreter": FIRST_LINE - started}

    def ended(part: str) -> None:
        ends[part] = time.time() - started

    from tml.core.config import load_config
    from tml.core.hooks import Hook
    from tml.core.session import runtime_session
    from tml.projects.twhin import run
    from tml.projects.twhin.config import TwhinConfig

    ended("imports")

    class FirstStep(Hook):
        """Notes when the pipeline stands and when the first step is complete."""

        def on_train_start(self, loop: run.TrainLoop) -> None:
            ended("prepare")

        def after_step(self, loop: run.TrainLoop) -> None:
            ended("first step")
            loop.request_stop("the first step is complete", everywhere=True)

    train = run.train

    def train_one_step(loop: run.TrainLoop) -> run.TrainState:
        ended("build")
        # First in turn: what other hooks do after a step is not part of it.
        loop.hooks.insert(0, FirstStep())
        return train(loop)

    run.train = train_one_step
    config = load_config(TwhinConfig, job["config"], job["overrides"])
    ended("config")
    with runtime_session(config.runtime, config.training.save_dir) as device:
        ended("session")
        run.run_training(config, device)
    Path(job["out"]).write_text(json.dumps(ends), encoding="utf-8")


if __name__ == "__main__":
    main()
