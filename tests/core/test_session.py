from __future__ import annotations

import json
import logging
import random

import pytest
import torch
import torch.distributed as dist

from tests.distributed import run_ranks
from tml.common.device import world_size
from tml.common.errors import LaunchError
from tml.core.config.runtime import RuntimeConfig
from tml.core.session import runtime_session


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    handlers, level = list(logging.getLogger("tml").handlers), logging.getLogger("tml").level
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(False)
    logging.getLogger("tml").handlers[:] = handlers
    logging.getLogger("tml").setLevel(level)


def test_fault_18_a_single_process_works_without_a_launcher(tmp_path) -> None:
    with runtime_session(RuntimeConfig(device="cpu"), str(tmp_path)) as device:
        assert device == torch.device("cpu")
        assert dist.is_initialized()
        assert world_size() == 1
    assert not dist.is_initialized()


def test_every_setting_of_the_session_acts(tmp_path) -> None:
    runtime = RuntimeConfig(
        device="cpu",
        seed=11,
        enable_tensorfloat32=True,
        deterministic=True,
        num_threads=1,
        log={"level": "debug", "json_lines": True},
    )
    with runtime_session(runtime, str(tmp_path)):
        drawn = (random.random(), float(torch.rand(())))
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 1
        logging.getLogger("tml.test").debug("hello")
    random.seed(11)
    torch.manual_seed(11)
    assert drawn == (random.random(), float(torch.rand(())))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert any("hello" in json.dumps(line) for line in lines)


def test_fault_18_no_gpu_is_a_launch_error_before_anything_is_built(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tml.common.device.num_accelerators", lambda: 0)
    with (
        pytest.raises(LaunchError, match=r"runtime\.device"),
        runtime_session(RuntimeConfig(device="gpu"), str(tmp_path)),
    ):
        pass


def test_the_group_is_left_after_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match="on purpose"), runtime_session(RuntimeConfig(device="cpu"), str(tmp_path)):
        raise ValueError("on purpose")
    assert not dist.is_initialized()


def _draw_in_session(folder: str) -> float:
    with runtime_session(RuntimeConfig(device="cpu", seed=1), folder):
        return float(torch.rand(()))


def test_ranks_draw_different_numbers(tmp_path) -> None:
    first, second = run_ranks(_draw_in_session, 2, str(tmp_path))
    assert first != second
