from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pydantic
import pytest

import tml.core
from tml.core.config.runtime import RuntimeConfig
from tml.core.config.training import TrainingConfig, changeable_paths


def test_defaults_are_a_run_of_one_epoch() -> None:
    config = TrainingConfig()
    assert (config.num_epochs, config.num_train_steps, config.save_dir) == (1, None, "runs/default")
    assert RuntimeConfig().device == "auto"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_epochs": None}, "never end"),
        ({"early_stopping": {"metric": "mrr"}}, "evaluate_every_n"),
        ({"early_stopping": {"metric": "mrr"}, "evaluate_every_n": 1, "num_eval_steps": 0}, "num_eval_steps"),
        ({"save_dir": "gs://bucket/run"}, "local or shared folder"),
        ({"checkpoint_max_to_keep": 0}, "greater than or equal to 1"),
        ({"gradient_accumulation": 0}, "greater than or equal to 1"),
        ({"num_eval_steps": -2}, "greater than or equal to -1"),
    ],
)
def test_fault_27_settings_out_of_range_or_at_odds_are_refused(settings, message) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        TrainingConfig(**settings)


def test_a_time_without_a_zone_is_utc() -> None:
    time = TrainingConfig(stop_at_time="2031-05-28 18:30").stop_at_time
    assert time == datetime(2031, 5, 28, 18, 30, tzinfo=UTC)
    assert TrainingConfig(stop_at_time="2031-05-28T20:30:00+02:00").stop_at_time == time
    dumped = TrainingConfig(stop_at_time="2031-05-28 18:30").model_dump(mode="json")["stop_at_time"]
    assert TrainingConfig(stop_at_time=dumped).stop_at_time == time
    with pytest.raises(pydantic.ValidationError, match="stop_at_time"):
        TrainingConfig(stop_at_time="tomorrow")


@pytest.mark.parametrize("section", [TrainingConfig, RuntimeConfig])
def test_every_field_says_what_it_does(section) -> None:
    assert all(field.description and field.description.endswith(".") for field in section.model_fields.values())


def test_fault_25_the_config_says_why_there_is_no_float16_and_no_loss_scaling() -> None:
    description = RuntimeConfig.model_fields["enable_amp"].description or ""
    assert "float16 is not offered" in description
    assert "overflow" in description


def test_only_what_leaves_the_result_alone_may_change_on_resume() -> None:
    training = changeable_paths(TrainingConfig, "training.")
    assert {"training.num_epochs", "training.checkpoint_every_n", "training.train_log_every_n"} <= training
    assert {"training.stop_at_time", "training.stop_if_file_exists"} <= training
    assert not {"training.gradient_accumulation", "training.early_stopping", "training.gradients"} & training
    runtime = changeable_paths(RuntimeConfig, "runtime.")
    assert "runtime.log" in runtime
    assert not {"runtime.seed", "runtime.enable_amp"} & runtime


@pytest.mark.parametrize("section", [TrainingConfig, RuntimeConfig])
def test_b24_every_field_is_read_somewhere_in_the_core(section) -> None:
    root = Path(tml.core.__file__).parent
    code = "".join(path.read_text() for path in root.rglob("*.py") if "config" not in path.parts)
    assert [name for name in section.model_fields if f".{name}" not in code] == []
