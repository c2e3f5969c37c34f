"""`tml doctor`: can this machine train, and if not, what is wrong and what to do about it.

Every check returns a `Finding`; none raises. Heavy packages are imported inside the checks, because whether they can be
imported is one of the questions.
"""

from __future__ import annotations

import importlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata, resources
from typing import TYPE_CHECKING, Literal

import typer

if TYPE_CHECKING:
    import torch

GIB = 1 << 30
NEWEST_PYTHON = (3, 14)
REINSTALL = (
    "run scripts/setup.sh, or install a lock: pip install --no-deps -r requirements/cpu.txt (docs/installation.md)"
)

# torch, fbgemm and torchrec are bound together by their binary interfaces: other combinations fail at import.
WORKING_TRIPLES = {("2.13", "1.8", "1.8"), ("2.12", "1.7", "1.7"), ("2.11", "1.6", "1.6")}
FBGEMM_BUILDS = ("fbgemm-gpu-cpu", "fbgemm-gpu")
IMPORTED = (
    "torch", "fbgemm_gpu", "torchrec", "torchmetrics", "tensordict", "pyarrow", "duckdb", "fsspec",
    "pydantic", "yaml", "numpy", "rich", "usearch.index", "tensorboard",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """The outcome of one check: `ok`; `note`, training works but something is worth knowing; or `fail`."""

    name: str
    status: Literal["ok", "note", "fail"]
    found: str
    fix: str | None = None


def check_python() -> Finding:
    """Python's version and the platform."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.system() != "Linux":
        return Finding("python", "fail", found, "fbgemm is built for Linux only: use scripts/docker_run.sh")
    if sys.version_info[:2] > NEWEST_PYTHON:
        return Finding(
            "python", "note", found, "the pinned packages have wheels up to Python {}.{}".format(*NEWEST_PYTHON)
        )
    return Finding("python", "ok", found)


def installed_version(package: str) -> str | None:
    """The version of an installed distribution, without a local label such as `+cpu`, or None."""
    try:
        return metadata.version(package).split("+")[0]
    except metadata.PackageNotFoundError:
        return None


def check_triple(version_of: Callable[[str], str | None] = installed_version) -> Finding:
    """torch, fbgemm and torchrec are one of the combinations that work together, with one build of fbgemm only."""
    builds = [name for name in FBGEMM_BUILDS if version_of(name)]
    versions = (version_of("torch"), version_of(builds[0]) if builds else None, version_of("torchrec"))
    found = "torch {}, fbgemm {}, torchrec {}".format(*versions)
    if len(builds) > 1:
        return Finding(
            "triple", "fail", f"{found}; {' and '.join(builds)} overwrite each other", f"rm -r .venv, then {REINSTALL}"
        )
    minor = tuple(".".join(version.split(".")[:2]) if version else "missing" for version in versions)
    if minor not in WORKING_TRIPLES:
        known = "; ".join("/".join(triple) for triple in sorted(WORKING_TRIPLES, reverse=True))
        return Finding("triple", "fail", f"{found}; known to work: {known}", REINSTALL)
    return Finding("triple", "ok", found)


def read_locks() -> dict[str, dict[str, str]]:
    """The lock files that come with the package: file name -> distribution -> version."""
    folder = resources.files("tml") / "requirements"
    return {
        entry.name: dict(
            line.split("==", 1) for line in entry.read_text().splitlines() if "==" in line and line[0] != "#"
        )
        for entry in folder.iterdir()
        if entry.name.endswith(".txt")
    }


def check_pins(version_of: Callable[[str], str | None] = installed_version) -> Finding:
    """Every installed package against the lock for the installed build of fbgemm."""
    build = next((name for name in FBGEMM_BUILDS if version_of(name)), FBGEMM_BUILDS[0])
    name, pins = next((name, pins) for name, pins in read_locks().items() if build in pins)
    differing = [
        f"{package} {version_of(package) or 'missing'} (pinned {version})"
        for package, version in pins.items()
        if version_of(package) != version
    ]
    if differing:
        return Finding(
            "pins", "note", f"{len(differing)} of {len(pins)} differ from {name}: " + ", ".join(differing), REINSTALL
        )
    return Finding("pins", "ok", f"all {len(pins)} packages as in {name}")


def check_imports(modules: tuple[str, ...] = IMPORTED) -> Finding:
    """Every direct dependency can be imported."""
    broken = []
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # a wrong binary can raise anything
            broken.append(f"{module} ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})")
    if broken:
        return Finding("imports", "fail", "cannot import " + ", ".join(broken), REINSTALL)
    return Finding("imports", "ok", f"{len(modules)} packages")


def check_sharded_step() -> Finding:
    """A toy table, sharded row-wise by torchrec, takes one fused row-wise Adagrad step to numbers worked by hand."""
    try:
        with _quiet():
            device, largest = _sharded_step_error()
    except Exception as error:  # whatever breaks here would break training
        text = str(error).splitlines()[0] if str(error) else ""
        return Finding("sharded step", "fail", f"{type(error).__name__}: {text}", REINSTALL)
    if not largest < 1e-5:
        return Finding("sharded step", "fail", f"off by {largest:.3g} on {device}; limit 1e-5", REINSTALL)
    return Finding("sharded step", "ok", f"row-wise table and fused Adagrad on {device}, largest error {largest:.1g}")


def _sharded_step_error() -> tuple[str, float]:
    """One step of a `[4, 4]` table of ones, ids (1, 1, 3), loss = sum of the rows, rate 0.5.

    Gradients are 2 in row 1 (two uses) and 1 in row 3. Row-wise Adagrad divides by the root of the mean square of the
    row's gradient, 2 and 1, so both rows fall by the rate, to 0.5, and the others stay 1.

    Returns:
        The device, and the largest difference from that.
    """
    import torch
    from torchrec import KeyedJaggedTensor

    from tml.common.device import process_group, setup_device

    device = setup_device("auto")
    with process_group(device, timeout_in_s=60):
        model = _sharded_toy_model(device)
        table = model.state_dict()["embedding_bags.toy.weight"].local_shards()[0].tensor
        table.fill_(1.0)
        ids = KeyedJaggedTensor(keys=["id"], values=torch.tensor([1, 1, 3]), lengths=torch.ones(3, dtype=torch.int32))
        model(ids.to(device)).values().sum().backward()
        expected = torch.ones(4, 4)
        expected[[1, 3]] = 0.5
        return str(device), (table.cpu() - expected).abs().max().item()


def _sharded_toy_model(device: torch.device) -> torch.nn.Module:
    import torch
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
    from torchrec.distributed.types import ShardingPlan
    from torchrec.optim import RowWiseAdagrad
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

    config = EmbeddingBagConfig(name="toy", num_embeddings=4, embedding_dim=4, feature_names=["id"])
    bags = EmbeddingBagCollection(tables=[config], device=torch.device("meta"))
    apply_optimizer_in_backward(RowWiseAdagrad, bags.parameters(), {"lr": 0.5, "eps": 1e-8})
    sharder = EmbeddingBagCollectionSharder()
    plan = construct_module_sharding_plan(
        bags, {"toy": row_wise()}, sharder=sharder, local_size=1, world_size=1, device_type=device.type
    )
    return DistributedModelParallel(bags, device=device, plan=ShardingPlan({"": plan}), sharders=[sharder])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torchrec says while it builds, which a user cannot act on."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def check_compiler() -> Finding:
    """The kernels of one CPU process can be compiled; without them the same work takes longer."""
    from tml.common.modules.row_kernel import SOURCE
    from tml.common.native.compiler import compiled

    if os.environ.get("TML_NATIVE") == "0":
        return Finding("CPU kernels", "note", "switched off by TML_NATIVE=0")
    if compiled(SOURCE) is None:
        return Finding("CPU kernels", "note", "no C++ compiler: training on a CPU is slower", "install g++, or set CXX")
    return Finding("CPU kernels", "ok", "compiled for this processor")


def check_shared_memory(folder: str = "/dev/shm", wanted: int = GIB) -> Finding:
    """Room for what ranks on one machine share."""
    if not os.path.isdir(folder):
        return Finding(
            "shared memory", "note", f"no {folder}", "several ranks on one GPU machine need it; mount a tmpfs there"
        )
    size = shutil.disk_usage(folder).total
    found = f"{folder} holds {size / GIB:.2f} GiB"
    if size < wanted:
        return Finding(
            "shared memory", "note", f"{found}, several ranks want {wanted / GIB:.0f}", "docker run --shm-size=8g"
        )
    return Finding("shared memory", "ok", found)


def check_memory_and_cores() -> Finding:
    """Memory and cores this process may use."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free, {len(os.sched_getaffinity(0))} cores"
    if total < 4 * GIB:
        return Finding("memory", "note", found, "tables of the sample need 4 GiB; use smaller ones or another machine")
    return Finding("memory", "ok", found)


def check_accelerator() -> Finding:
    """GPUs that torch can see, and whether the machine has some that it cannot."""
    try:
        from tml.common.device import num_accelerators

        count = num_accelerators()
    except Exception as error:
        return Finding("accelerator", "fail", f"torch cannot say: {type(error).__name__}", REINSTALL)
    if count:
        return Finding("accelerator", "ok", f"{count} GPU" + "s" * (count > 1))
    if _machine_has_gpu():
        return Finding(
            "accelerator", "note", "this machine has a GPU, but the installed torch cannot use it",
            "rm -r .venv && scripts/setup.sh installs the GPU lock; if it did, update the driver",
        )  # fmt: skip
    return Finding("accelerator", "ok", "none; training runs on the CPU")


def _machine_has_gpu() -> bool:
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "GPU" in listing.stdout


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python, check_triple, check_pins, check_imports, check_sharded_step, check_compiler,
    check_shared_memory, check_memory_and_cores, check_accelerator,
)  # fmt: skip


def run_checks(checks: tuple[Callable[[], Finding], ...] = CHECKS) -> bool:
    """Print each finding as it is made; True if none failed."""
    healthy = True
    for check in checks:
        finding = check()
        healthy = healthy and finding.status != "fail"
        typer.echo(f"{finding.status:<5} {finding.name:<14} {finding.found}")
        if finding.fix:
            typer.echo(f"{'':<20} -> {finding.fix}")
    return healthy


def doctor_command() -> None:
    """Check this installation and machine: versions, imports, a sharded training step, memory, accelerators."""
    healthy = run_checks()
    typer.echo(
        "this machine is ready to train" if healthy else "something is wrong: see the lines that begin with 'fail'"
    )
    raise typer.Exit(0 if healthy else 1)
