"""Where a run goes on: resumed runs, what may change between them, warm starts."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from pydantic import Field

from tests.core.toy_run import Crash, Rows, ToyConfig, crash, run_toy
from tml.common.errors import CheckpointError, ConfigError
from tml.common.tracking.json_lines import read_metrics
from tml.core.config import BaseConfig
from tml.core.optimizers.config import LearningRateConfig


@pytest.mark.parametrize("crash_at", [1, 5, 8, 12])
def test_fault_8_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(tmp_path, crash_at) -> None:
    settings = {"num_epochs": 3, "checkpoint_every_n": 4}
    whole = run_toy(tmp_path / "whole", **settings)
    with pytest.raises(Crash):
        run_toy(tmp_path / "broken", at={crash_at: crash}, **settings)
    first = crash_at - crash_at % 4
    resumed = run_toy(tmp_path / "broken", seed_of_model=9 if first else 0, **settings)
    assert resumed.record.losses == whole.record.losses[first:]
    assert resumed.record.rows == whole.record.rows[first:]
    assert (resumed.weight, resumed.momentum) == (whole.weight, whole.momentum)
    assert (resumed.state.step, resumed.state.num_examples) == (18, 66)


def test_resume_of_a_finished_run_trains_nothing_and_changes_nothing(tmp_path) -> None:
    first = run_toy(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("step-*/*")}
    again = run_toy(tmp_path, seed_of_model=9)
    assert again.record.rows == []
    assert again.weight == first.weight
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("step-*/*")} == before


def test_a_longer_run_continues_a_finished_one(tmp_path) -> None:
    run_toy(tmp_path / "a", num_epochs=1)
    longer = run_toy(tmp_path / "a", num_epochs=3)
    assert longer.weight == run_toy(tmp_path / "b", num_epochs=3).weight
    assert len(longer.record.rows) == 12


def test_metrics_have_no_duplicates_after_a_resume(tmp_path) -> None:
    settings = {"num_epochs": 2, "checkpoint_every_n": 4, "train_log_every_n": 1}
    with pytest.raises(Crash):
        run_toy(tmp_path, at={7: crash}, **settings)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train/lo')
    run_toy(tmp_path, **settings)
    lines = read_metrics(str(tmp_path / "metrics.jsonl"))
    assert [line["step"] for line in lines] == list(range(1, 13))


def test_fault_9_a_changed_config_is_refused_with_a_diff_of_fields(tmp_path) -> None:
    run_toy(tmp_path)
    with pytest.raises(ConfigError, match=r"training\.gradient_accumulation: 1 -> 2") as caught:
        run_toy(tmp_path, gradient_accumulation=2, runtime={"seed": 8}, num_epochs=5, train_log_every_n=9)
    assert "runtime.seed: 0 -> 8" in str(caught.value)
    assert "num_epochs:" not in str(caught.value)
    assert "train_log_every_n" not in str(caught.value)


def test_fault_9_allowed_changes_are_allowed(tmp_path) -> None:
    run_toy(tmp_path)
    allow = ["training.gradient_accumulation", "runtime"]
    outcome = run_toy(tmp_path, gradient_accumulation=2, runtime={"seed": 8}, num_epochs=2, allow_config_changes=allow)
    assert len(outcome.record.rows) == 3


def test_fault_31_changed_data_is_refused_on_resume(tmp_path) -> None:
    run_toy(tmp_path)
    with pytest.raises(ConfigError, match=r"fingerprints\.data: \"rows-22-a\" -> \"rows-22-b\""):
        run_toy(tmp_path, num_epochs=2, data=Rows(version="b"))
    outcome = run_toy(tmp_path, num_epochs=2, data=Rows(version="b"), allow_config_changes=["fingerprints.data"])
    assert outcome.state.step == 12


def test_fault_3_strict_resume_refuses_a_damaged_checkpoint_that_else_is_stepped_over(tmp_path) -> None:
    run_toy(tmp_path, checkpoint_every_n=4)
    shard = next(path for path in (tmp_path / "step-00000006").iterdir() if path.suffix == ".distcp")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CheckpointError):
        run_toy(tmp_path, strict_resume=True)
    resumed = run_toy(tmp_path)
    assert len(resumed.record.rows) == 2
    assert resumed.weight == run_toy(tmp_path / "whole").weight


def test_overwrite_save_dir_starts_anew(tmp_path) -> None:
    run_toy(tmp_path, num_epochs=2)
    outcome = run_toy(tmp_path, num_epochs=1, overwrite_save_dir=True)
    assert (outcome.state.step, outcome.steps) == (6, [6])
    assert [line["step"] for line in read_metrics(str(tmp_path / "metrics.jsonl"))] == [3, 6]


def test_warm_start_takes_parameters_and_begins_at_step_zero(tmp_path) -> None:
    other = run_toy(tmp_path / "other", seed_of_model=4)
    warm = run_toy(
        tmp_path / "warm", num_train_steps=1, initial_checkpoint_dir=str(tmp_path / "other"), checkpoint_every_n=1
    )
    assert warm.state.step == 1
    assert warm.record.rates == [0.05]
    reference = run_toy(tmp_path / "cold", num_train_steps=1)
    moved = (torch.tensor(warm.weight) - torch.tensor(other.weight)).norm()
    assert 0 < float(moved) < float((torch.tensor(warm.weight) - torch.tensor(reference.weight)).norm())
    resumed = run_toy(tmp_path / "warm", num_train_steps=2, initial_checkpoint_dir=str(tmp_path / "other"))
    assert resumed.state.step == 2
    assert len(resumed.record.rows) == 1


def test_warm_start_from_nothing_is_an_error(tmp_path) -> None:
    with pytest.raises(CheckpointError):
        run_toy(tmp_path / "run", initial_checkpoint_dir=str(tmp_path / "missing"))


def test_fault_11_save_dir_that_is_a_file_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(CheckpointError):
        run_toy(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_async_checkpoints_equal_synchronous_ones(tmp_path) -> None:
    settings = {"num_epochs": 2, "checkpoint_every_n": 5}
    sync = run_toy(tmp_path / "sync", **settings)
    background = run_toy(tmp_path / "async", checkpoint_async=True, **settings)
    assert background.steps == sync.steps == [5, 10, 12]
    assert run_toy(tmp_path / "async", seed_of_model=8, **settings).weight == sync.weight


class _TableConfig(BaseConfig):
    name: str
    rate: LearningRateConfig = LearningRateConfig(constant=0.5)


class _NewerConfig(ToyConfig):
    """The config of a later version of the program."""

    tables: list[_TableConfig] = Field(default_factory=list)
    dropout: float = 0.2


class _OlderTableConfig(BaseConfig):
    name: str


class _OlderConfig(ToyConfig):
    tables: list[_OlderTableConfig] = Field(default_factory=list)
    gone: int = 3


def test_a_setting_that_came_with_a_newer_version_does_not_change_the_run(tmp_path) -> None:
    run_toy(tmp_path, config_type=ToyConfig)
    outcome = run_toy(tmp_path, num_epochs=2, config_type=_NewerConfig)
    assert outcome.state.step == 12
    with pytest.raises(ConfigError, match=r"dropout: 0\.2 -> 0\.3"):
        run_toy(tmp_path, num_epochs=3, config_type=partial(_NewerConfig, dropout=0.3))


def test_new_settings_deep_in_a_config_had_their_defaults_and_real_changes_count(tmp_path) -> None:
    run_toy(tmp_path, config_type=partial(_OlderConfig, tables=[{"name": "user"}]))
    newer = partial(_NewerConfig, tables=[{"name": "user"}])
    with pytest.raises(ConfigError) as caught:
        run_toy(tmp_path, num_epochs=2, config_type=newer)
    assert "gone: 3 -> (absent)" in str(caught.value)
    assert "rate" not in str(caught.value)
    assert run_toy(tmp_path, num_epochs=2, config_type=newer, allow_config_changes=["gone"]).state.step == 12
    changed = partial(_NewerConfig, tables=[{"name": "user", "rate": 0.7}])
    with pytest.raises(ConfigError, match=r"tables\.0\.rate\.constant: 0\.5 -> 0\.7"):
        run_toy(tmp_path, num_epochs=3, config_type=changed, allow_config_changes=["gone"])
