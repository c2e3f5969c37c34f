"""Where tensors live and how ranks meet: the only file that names a vendor's device.

    device = setup_device("auto")
    with process_group(device, timeout_in_s=600):
        seed_everything(seed, rank())
        ...

Works under torchrun (or anything else that sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT) and as a
plain single process, which becomes a group of one.
"""

from __future__ import annotations

import base64
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from tml.common.errors import LaunchError

# `torch.device.type` of an accelerator, for those who plan for one that is not here.
ACCELERATOR_TYPE = "cuda"

_cpu_group: dist.ProcessGroup | None = None
_cpu_group_of: dist.ProcessGroup | None = None  # the default group for which _cpu_group was made
_rendezvous_dir: str | None = None


def num_accelerators() -> int:
    """The number of GPUs this process can see."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def setup_device(device: str = "auto") -> torch.device:
    """Choose this rank's device and make it the current one.

    Args:
        device: 'cpu', 'gpu', or 'auto' for a GPU if there is one.

    Raises:
        LaunchError: no GPU although one was asked for, more ranks on this machine than GPUs, or LOCAL_RANK is missing.
    """
    if device not in ("auto", "cpu", "gpu"):
        raise LaunchError("unknown device", where="runtime.device", value=device, limit="auto, cpu or gpu")
    available = num_accelerators()
    if device == "cpu" or (device == "auto" and available == 0):
        return torch.device("cpu")
    if available == 0:
        raise LaunchError(
            "no GPU to be seen", where="runtime.device", value=device, limit="at least 1 GPU",
            fix="set runtime.device to auto or cpu, or install the driver and the matching torch build",
        )  # fmt: skip
    local_rank, local_world_size = _local_rank(), _env_int("LOCAL_WORLD_SIZE", 1)
    if max(local_rank + 1, local_world_size) > available:
        raise LaunchError(
            "more ranks than GPUs", where=f"this machine, LOCAL_RANK={local_rank}",
            value=f"{max(local_rank + 1, local_world_size)} ranks", limit=f"{available} GPUs",
            fix=f"start {available} ranks (torchrun --nproc_per_node={available}) or set runtime.device to cpu",
        )  # fmt: skip
    chosen = torch.device("cuda", local_rank)
    torch.cuda.set_device(chosen)
    return chosen


def init_process_group(device: torch.device, timeout_in_s: float = 600.0) -> None:
    """Join the group of all ranks: gloo for CPU tensors, and NCCL for GPU tensors if `device` is one.

    Without the variables of a launcher the process becomes a group of one. Does nothing if a group exists already.

    Raises:
        LaunchError: the launcher's variables are incomplete or the meeting point cannot be reached.
    """
    if dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    options: dict[str, Any] = {"backend": backend, "timeout": timedelta(seconds=timeout_in_s)}
    if device.type == "cuda":
        options["device_id"] = device
    try:
        dist.init_process_group(**options, **_rendezvous())
    except (RuntimeError, ValueError) as error:
        address = f"MASTER_ADDR={os.environ.get('MASTER_ADDR')}, MASTER_PORT={os.environ.get('MASTER_PORT')}"
        raise LaunchError(
            "the process group cannot be made", where=address, value=str(error).splitlines()[0],
            fix="choose a free MASTER_PORT (torchrun --master_port) and see that all ranks run",
        ) from error  # fmt: skip
    cpu_group()


def cpu_group() -> dist.ProcessGroup:
    """A gloo group of all ranks for small decisions; all ranks must ask for it the first time together."""
    global _cpu_group, _cpu_group_of
    if _cpu_group is None or _cpu_group_of is not dist.group.WORLD:
        _cpu_group = dist.new_group(backend="gloo")
        _cpu_group_of = dist.group.WORLD
    return _cpu_group


def shutdown() -> None:
    """Leave the process group, if there is one, and remove what `init_process_group` made."""
    global _cpu_group, _cpu_group_of, _rendezvous_dir
    _cpu_group = _cpu_group_of = None
    if dist.is_initialized():
        dist.destroy_process_group()
    if _rendezvous_dir is not None:
        shutil.rmtree(_rendezvous_dir, ignore_errors=True)
        _rendezvous_dir = None


@contextmanager
def process_group(device: torch.device, timeout_in_s: float = 600.0) -> Iterator[None]:
    """`init_process_group`, and `shutdown` at the end also of a failed run."""
    init_process_group(device, timeout_in_s)
    try:
        yield
    finally:
        shutdown()


def rank() -> int:
    """This process' rank, 0 without a group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of ranks, 1 without a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather_numbers(values: Sequence[float]) -> list[list[float]]:
    """What every rank says, on every rank.

    Args:
        values: n numbers, the same n on all ranks.

    Returns:
        The n numbers of each rank, as float64.
    """
    numbers = [float(value) for value in values]
    if world_size() == 1:
        return [numbers]
    mine = torch.tensor(numbers, dtype=torch.float64)
    gathered = torch.empty(world_size() * len(mine), dtype=torch.float64)
    dist.all_gather(list(gathered.split(len(mine))), mine, group=cpu_group())
    return gathered.view(world_size(), len(mine)).tolist()


def gather_objects(value: Any) -> list[Any]:
    """One picklable object of every rank, in the order of ranks, on every rank."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value, group=cpu_group())
    return gathered


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed Python, NumPy and torch with `seed + rank`: each rank has its own stream, every run the same."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed + rank)


def rng_state(device: torch.device) -> dict[str, Any]:
    """The state of every random stream of this rank, JSON-able; the inverse of `set_rng_state`."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, numbers, gauss_next = random.getstate()
    state = {
        "python": [version, list(numbers), gauss_next],
        "numpy": [name, np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)],
        "torch": _encode(torch.get_rng_state()),
    }
    if device.type == "cuda":
        state["accelerator"] = _encode(torch.cuda.get_rng_state(device))
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Put every random stream of this rank back to what `rng_state` gave."""
    version, numbers, gauss_next = state["python"]
    random.setstate((version, tuple(numbers), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(_decode(state["torch"]))
    if device.type == "cuda" and "accelerator" in state:
        torch.cuda.set_rng_state(_decode(state["accelerator"]), device)


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[Any]:
    """Matrix products in bfloat16 while the context is open; parameters keep their dtype, losses need no scaling."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def set_float32_matmul(device: torch.device, reduced: bool) -> None:
    """Let float32 matrix products use shorter mantissas: TF32 on a GPU, bfloat16 on a CPU that has it."""
    shorter = "high" if device.type == "cuda" else "medium"
    torch.set_float32_matmul_precision(shorter if reduced else "highest")


def set_deterministic(enabled: bool) -> None:
    """Refuse operations whose result may differ from run to run on the same machine (slower on a GPU)."""
    if enabled:
        # cuBLAS reads this when its handle is made, which is after this call.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(enabled)


def synchronize(device: torch.device) -> None:
    """Wait for all work queued on `device`; nothing to wait for on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_info(device: torch.device) -> dict[str, int]:
    """Bytes of memory: `total` and `free` of the device, and `peak` of this process (GPU only; 0 on a CPU)."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return {"total": total, "free": free, "peak": torch.cuda.max_memory_allocated(device)}
    page = os.sysconf("SC_PAGE_SIZE")
    return {"total": page * os.sysconf("SC_PHYS_PAGES"), "free": page * os.sysconf("SC_AVPHYS_PAGES"), "peak": 0}


def _rendezvous() -> dict[str, Any]:
    global _rendezvous_dir
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        _rendezvous_dir = tempfile.mkdtemp(prefix="tml-group-")
        store = dist.FileStore(os.path.join(_rendezvous_dir, "store"), 1)
        return {"store": store, "rank": 0, "world_size": 1}
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise LaunchError(
                f"{name} is not set although other variables of a launcher are", where="environment",
                fix="start with torchrun, or unset RANK and WORLD_SIZE to run a single process",
            )  # fmt: skip
    size = _env_int("WORLD_SIZE", 1)
    if not 0 <= _env_int("RANK", 0) < size:
        raise LaunchError("rank out of range", where="RANK", value=os.environ["RANK"], limit=f"0 <= RANK < {size}")
    return {"init_method": "env://"}


def _local_rank() -> int:
    if "LOCAL_RANK" not in os.environ and _env_int("WORLD_SIZE", 1) > 1:
        raise LaunchError(
            "LOCAL_RANK is not set", where="environment", value=f"WORLD_SIZE={os.environ['WORLD_SIZE']}",
            limit="the index of this rank on its machine", fix="start with torchrun, which sets it",
        )  # fmt: skip
    return _env_int("LOCAL_RANK", 0)


def _env_int(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise LaunchError(f"{name} is not a whole number", where="environment", value=text, limit="0 or more")
    return int(text)


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
