from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.distributed import RankFailure, run_ranks
from tml.common import device
from tml.common.errors import LaunchError

_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch):
    for name in _LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield
    device.shutdown()


def _with_gpus(monkeypatch: pytest.MonkeyPatch, num: int) -> None:
    monkeypatch.setattr(device, "num_accelerators", lambda: num)
    monkeypatch.setattr(torch.cuda, "set_device", lambda chosen: None)


def test_fault_18_a_single_process_without_a_launcher_is_a_group_of_one() -> None:
    cpu = device.setup_device("cpu")
    with device.process_group(cpu):
        assert (device.rank(), device.world_size()) == (0, 1)
        total = torch.ones(2)
        dist.all_reduce(total)
        assert total.tolist() == [1, 1]
    assert not dist.is_initialized()
    assert device._rendezvous_dir is None


def test_fault_18_auto_is_the_cpu_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_gpus(monkeypatch, 0)
    assert device.setup_device("auto") == torch.device("cpu")
    with pytest.raises(LaunchError, match="no GPU"):
        device.setup_device("gpu")


def test_fault_18_more_ranks_than_gpus_names_both_numbers_and_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_gpus(monkeypatch, 2)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(LaunchError, match=r"(?s)4 ranks.*2 GPUs.*nproc_per_node=2"):
        device.setup_device("auto")


def test_ranks_take_the_gpu_of_their_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_gpus(monkeypatch, 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device.setup_device("auto").index == 1
    assert device.setup_device("cpu") == torch.device("cpu")


def test_fault_18_missing_local_rank_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_gpus(monkeypatch, 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LaunchError, match="LOCAL_RANK"):
        device.setup_device("auto")


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"RANK": "0"}, "WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, "MASTER_PORT"),
        ({"RANK": "two", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "RANK"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "RANK"),
    ],
)
def test_fault_18_a_broken_launch_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], named: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError, match=named):
        device.init_process_group(torch.device("cpu"))


def test_fault_18_port_in_use_is_a_launch_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        variables = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
        for name, value in {**variables, "MASTER_PORT": str(taken.getsockname()[1])}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(LaunchError, match="MASTER_PORT"):
            device.init_process_group(torch.device("cpu"), timeout_in_s=5)


def test_unknown_device_is_refused() -> None:
    with pytest.raises(LaunchError, match="unknown device"):
        device.setup_device("tpu")


def _draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_seeds_repeat_and_differ_by_rank() -> None:
    device.seed_everything(7, rank=0)
    first = _draws()
    device.seed_everything(7, rank=0)
    assert _draws() == first
    device.seed_everything(7, rank=1)
    assert all(a != b for a, b in zip(_draws(), first, strict=True))


def test_rng_state_survives_json_and_restores_every_stream() -> None:
    import json

    cpu = torch.device("cpu")
    device.seed_everything(3)
    _draws()
    state = json.loads(json.dumps(device.rng_state(cpu)))
    expected = _draws()
    device.seed_everything(99)
    device.set_rng_state(state, cpu)
    assert _draws() == expected


def test_autocast_is_bfloat16_only_when_enabled() -> None:
    cpu, x = torch.device("cpu"), torch.ones(2, 2)
    with device.autocast(cpu, enabled=True):
        assert (x @ x).dtype == torch.bfloat16
    with device.autocast(cpu, enabled=False):
        assert (x @ x).dtype == torch.float32


def test_float32_matmul_setting_acts() -> None:
    cpu = torch.device("cpu")
    before = torch.get_float32_matmul_precision()
    try:
        device.set_float32_matmul(cpu, reduced=True)
        assert torch.get_float32_matmul_precision() == "medium"
        device.set_float32_matmul(cpu, reduced=False)
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def test_deterministic_setting_acts() -> None:
    try:
        device.set_deterministic(True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        device.set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_memory_info_of_the_cpu_is_in_bytes() -> None:
    info = device.memory_info(torch.device("cpu"))
    assert info["total"] >= info["free"] > 2**20


def _meet() -> tuple[list[list[float]], list[str]]:
    return device.gather_numbers([device.rank(), 0.5]), device.gather_objects(f"rank {device.rank()}")


def test_every_rank_hears_every_rank() -> None:
    expected = ([[0.0, 0.5], [1.0, 0.5]], ["rank 0", "rank 1"])
    assert run_ranks(_meet, 2) == [expected, expected]


def _fail_on_rank_1() -> None:
    if device.rank() == 1:
        raise ValueError("broken on purpose")
    dist.barrier()


def test_harness_reports_the_failing_rank_and_ends_the_others() -> None:
    with pytest.raises(RankFailure, match=r"(?s)rank 1 of 2.*broken on purpose") as caught:
        run_ranks(_fail_on_rank_1, 2, timeout=30)
    assert isinstance(caught.value.errors[1], ValueError)


def _die() -> None:
    import os

    if device.rank() == 1:
        os._exit(9)


def test_harness_reports_a_rank_that_died() -> None:
    with pytest.raises(RankFailure, match=r"(?s)rank 1 of 2.*died"):
        run_ranks(_die, 2, timeout=30)


def test_only_device_py_names_the_vendor() -> None:
    root = Path(device.__file__).parents[1]
    rooms = ("common", "core", "machines", "ml_logging", "projects")
    files = [path for room in rooms for path in (root / room).rglob("*.py")]
    assert len(files) > 10
    naming = [str(path.relative_to(root)) for path in files if re.search("cuda", path.read_text(), re.IGNORECASE)]
    assert naming == ["common/device.py"]
