from __future__ import annotations

import json
import logging
import random

import pytest
import torch
import torch.distributed as dist

from tests.distributed import run_ranks
from tml.common.device import world_size
from tml.common.errors import DataError, LaunchError
from tml.core.config.runtime import RuntimeConfig
from tml.core.session import run_main, runtime_session
from tml.machines.exit_codes import FOLDER_VARIABLE, recorded_exit_code


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


def _fails_with(message: str):
    def program() -> int:
        raise DataError(message)

    return program


def _exit_code_of(program) -> int | str | None:
    with pytest.raises(SystemExit) as end:
        run_main(program)
    return end.value.code


def test_a_users_fault_is_one_message_and_its_exit_code_is_left_for_the_launcher(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert _exit_code_of(_fails_with("labels are not 0 or 1")) == 2
    assert capfd.readouterr().err == "error: labels are not 0 or 1\n"
    assert recorded_exit_code(tmp_path) == 2


def test_a_program_that_ends_well_goes_on_and_one_with_a_code_exits_with_it() -> None:
    run_main(lambda: 0)
    assert _exit_code_of(lambda: 75) == 75


def test_our_own_mistakes_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: 1 // 0)


@pytest.fixture
def agent(monkeypatch) -> dist.TCPStore:
    """The store of a torchrun agent, and the variables it gives to its ranks."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    settings = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    for name, value in {**settings, "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tml.core.session._RANK_0_MAY_TAKE_S", 0.1)
    return store


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1)])
def test_a_fault_that_several_ranks_meet_is_printed_once(monkeypatch, capfd, order) -> None:
    for rank in order:
        monkeypatch.setenv("RANK", str(rank))
        assert _exit_code_of(_fails_with("no such file")) == 2
    assert capfd.readouterr().err == "error: no such file\n"


@pytest.mark.usefixtures("agent")
def test_faults_that_differ_are_all_printed_and_so_is_one_of_a_later_start(monkeypatch, capfd) -> None:
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        _exit_code_of(_fails_with(f"bad row in part {max(rank, 1)}"))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    _exit_code_of(_fails_with("bad row in part 1"))
    assert [line[-6:] for line in capfd.readouterr().err.splitlines()] == ["part 1", "part 2", "part 1"]


def test_without_an_agent_every_rank_speaks_for_itself(monkeypatch, capfd) -> None:
    monkeypatch.setenv("RANK", "1")
    assert _exit_code_of(_fails_with("no such file")) == 2
    assert "no such file" in capfd.readouterr().err
