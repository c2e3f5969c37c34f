"""Everything in `RuntimeConfig` that a process does once, before it builds a model.

with runtime_session(config.runtime, config.training.save_dir) as device:
    model = build(config.model, device)
"""

from __future__ import annotations

import faulthandler
import hashlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from tml.common.allocator import keep_freed_memory
from tml.common.device import (
    process_group,
    rank,
    seed_everything,
    set_deterministic,
    set_float32_matmul,
    setup_device,
)
from tml.common.errors import TmlError
from tml.core.config.runtime import RuntimeConfig
from tml.machines.exit_codes import record_exit_code
from tml.ml_logging import configure_logging, get_logger
from tml.ml_logging.rank_logging import rank as rank_of_launcher

logger = get_logger(__name__)

USERS_FAULT_EXIT_CODE = 2
_RANK_0_MAY_TAKE_S = 2.0


def run_main(program: Callable[[], int]) -> None:
    """Run a program on this rank and leave the process with its exit code, of which `tml launch` is told too.

    A fault that the user can mend is one message and exit code 2; a traceback of ours would hide it. Where several
    ranks of a launch meet the same fault it is printed once, by rank 0 if that is one of them.

    Args:
        program: the whole run, from reading the config on; returns the exit code.
    """
    fault = None
    try:
        exit_code = program()
    except TmlError as error:
        exit_code, fault = USERS_FAULT_EXIT_CODE, str(error)
    if exit_code:
        record_exit_code(exit_code)
    if fault is not None:
        _print_once(f"error: {fault}")
    if exit_code:
        sys.exit(exit_code)


def _print_once(message: str) -> None:
    store = _launchers_store()
    key = hashlib.sha256(message.encode()).hexdigest()
    if store is not None and rank_of_launcher() != 0 and _is_said(store, key):
        return
    print(message, file=sys.stderr, flush=True)
    if store is not None:
        store.set(key, "said")


def _is_said(store: dist.Store, key: str) -> bool:
    deadline = time.monotonic() + _RANK_0_MAY_TAKE_S
    while time.monotonic() < deadline:  # the store's own wait would print a warning
        if store.check([key]):
            return True
        time.sleep(0.05)
    # Rank 0 has no such fault, or is stuck: the first of the others speaks.
    return store.add(f"{key}/first", 1) > 1


def _launchers_store() -> dist.Store | None:
    """What torchrun's agent keeps for its ranks, whether or not they have a process group; None without an agent."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
    except (KeyError, ValueError, RuntimeError):
        return None
    return dist.PrefixStore(f"tml/faults/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


@contextmanager
def runtime_session(runtime: RuntimeConfig, save_dir: str) -> Iterator[torch.device]:
    """Set up logging, device, threads, precision, the process group and seeds; leave the group at the end.

    The random streams of ranks differ; a model that has to start equal on all ranks draws from generators of its own.

    Yields:
        This rank's device.

    Raises:
        LaunchError: the device or the group cannot be had.
    """
    keep_freed_memory()
    # The thread that makes batches may hold the interpreter for this long while the step waits for it; 5 ms is usual.
    sys.setswitchinterval(1e-4)
    path = os.path.join(save_dir, "log.jsonl") if runtime.log.json_lines else None
    configure_logging(runtime.log.level, path, runtime.log.all_ranks)
    hush_libraries()
    with suppress(ValueError, OSError):  # a notebook's stderr is no file that a dying process could write to
        faulthandler.enable()
    device = setup_device(runtime.device)
    if runtime.num_threads is not None:
        torch.set_num_threads(runtime.num_threads)
    set_float32_matmul(device, runtime.enable_tensorfloat32)
    set_deterministic(runtime.deterministic)
    with process_group(device, runtime.collective_timeout_in_s):
        seed_everything(runtime.seed, rank())
        try:
            yield device
        except TmlError:
            # What the user can mend is said once, by whoever started the run, without our call stack.
            logger.debug("rank %d failed", rank(), exc_info=True)
            raise
        except Exception:
            logger.exception("rank %d failed", rank())
            raise


def hush_libraries() -> None:
    """Silence what torch and torchrec say at import and set-up."""
    # What the libraries say at import and set-up is nothing a user can act on, and it comes once per rank.
    for name in ("torch.fx._symbolic_trace", "torchrec", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    _take_root_handler()
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="fbgemm_gpu")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torchrec")


def _take_root_handler() -> None:
    """Libraries call `logging.basicConfig` by accident; its handler would print each of our lines a second time."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if type(handler) is logging.StreamHandler and getattr(handler.formatter, "_fmt", "") == logging.BASIC_FORMAT:
            root.removeHandler(handler)
    if not root.handlers:
        # With a handler in place, a later basicConfig does nothing; warnings of libraries still come through.
        handler = logging.StreamHandler()
        handler.setLevel(logging.WARNING)
        handler.addFilter(lambda record: not record.name.startswith("tml."))
        root.addHandler(handler)
