"""Run a function on several gloo ranks on this CPU.

    from tests.distributed import run_ranks

    def _sum_of_ranks(start: int) -> int:          # at the top level of the test module, so that a child can import it
        total = torch.tensor([start + dist.get_rank()])
        dist.all_reduce(total)
        return int(total)

    def test_sum() -> None:
        assert run_ranks(_sum_of_ranks, 2, 10) == [21, 21]

Children come from a fork server that has imported torch, torchrec and the loop once, so a call costs tenths of a
second, not seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

_PRELOAD = [
    "pytest",
    "torchmetrics",
    "torchrec",
    "torch.distributed.optim",
    "tml.common.checkpointing.manager",
    "tml.core.custom_training_loop",
    "tml.projects.twhin.run",
]


class RankFailure(AssertionError):
    """Some ranks failed: `errors` maps rank to exception (None if it died or hung), the message has the tracebacks."""

    def __init__(self, message: str, errors: dict[int, BaseException | None]) -> None:
        super().__init__(message)
        self.errors = errors


def run_ranks(
    fn: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout: float = 120.0,
    collective_timeout: float = 60.0,
    env: dict[str, str] | None = None,
) -> list[Any]:
    """Call `fn(*args)` in `world_size` fresh processes that form a gloo group.

    Args:
        fn: a top-level function of an importable module; its result must pickle.
        timeout: seconds after which ranks that have not finished are killed and reported.
        collective_timeout: seconds for the process group.
        env: more environment variables for the ranks.

    Returns:
        The result of every rank, in the order of ranks.

    Raises:
        RankFailure: at least one rank raised, died or did not end in time.
    """
    context = _context()
    with tempfile.TemporaryDirectory(prefix="tml-ranks-") as folder:
        processes, pipes = [], []
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            options = (rank, world_size, os.path.join(folder, "store"), collective_timeout, dict(env or {}))
            process = context.Process(target=_child, args=(sender, options, fn, args), daemon=True)
            process.start()
            sender.close()
            processes.append(process)
            pipes.append(receiver)
        try:
            answers = _collect(pipes, time.monotonic() + timeout)
        finally:
            _end(processes)
    return _results(answers, world_size, timeout)


def exit_code_of(fn: Callable[..., Any], *args: Any, timeout: float = 60.0) -> int | None:
    """Call `fn(*args)` in a fresh process without a group; its exit code, or None if it had to be killed."""
    process = _context().Process(target=fn, args=args, daemon=True)
    process.start()
    process.join(timeout)
    code = process.exitcode
    _end([process])
    return code


def _context() -> Any:
    # The first process decides what the server imports, so every process of the tests has to come through here.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    return context


def _child(sender: Connection, options: tuple[Any, ...], fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    rank, world_size, store, collective_timeout, env = options
    os.environ.update(
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
        | env
    )
    import numpy as np
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=collective_timeout),
        )
        answer: Any = ("ok", fn(*args), "")
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
    except BaseException as error:
        answer = ("error", error, traceback.format_exc())
    try:
        sender.send_bytes(pickle.dumps(answer))
    except Exception as error:
        sender.send_bytes(pickle.dumps(("error", None, f"{answer[2]}\nthe answer does not pickle: {error!r}")))
    sender.close()
    # A failed rank goes at once, as it would under torchrun: its peers then see a closed connection instead of a hang.
    os._exit(0 if answer[0] == "ok" else 1)


def _collect(pipes: list[Connection], deadline: float) -> dict[int, tuple[str, Any, str]]:
    answers: dict[int, tuple[str, Any, str]] = {}
    open_pipes = {pipe: rank for rank, pipe in enumerate(pipes)}
    while open_pipes and (left := deadline - time.monotonic()) > 0:
        for pipe in wait(list(open_pipes), timeout=left):
            rank = open_pipes.pop(pipe)  # type: ignore[call-overload]
            try:
                answers[rank] = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]
            except EOFError:
                answers[rank] = ("error", None, "the process died without an answer")
    return answers


def _end(processes: list[Any]) -> None:
    for process in processes:
        process.join(timeout=2.0)
        if process.is_alive():
            process.kill()
            process.join()


def _results(answers: dict[int, tuple[str, Any, str]], world_size: int, timeout: float) -> list[Any]:
    for rank in range(world_size):
        answers.setdefault(rank, ("error", None, f"not finished after {timeout} s"))
    failed = {rank: answer for rank, answer in sorted(answers.items()) if answer[0] != "ok"}
    if failed:
        report = "\n".join(f"---- rank {rank} of {world_size}\n{answer[2]}" for rank, answer in failed.items())
        raise RankFailure(report, {rank: answer[1] for rank, answer in failed.items()})
    return [answers[rank][1] for rank in range(world_size)]
