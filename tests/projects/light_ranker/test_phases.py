"""Kills, restarts, other numbers of ranks, calibrations that do not belong: a run ends where an unbroken one ends."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.distributed import RankFailure, run_ranks
from tests.projects.light_ranker.tiny_run import LOLLY, TinyData, config_of, read_rows, run, tiny_settings, write_data
from tests.runs import Settings, assert_close_tensors, assert_equal_tensors, final_tensors, losses, merged, metrics_of
from tml.common.errors import ConfigError, DataError
from tml.core.train_pipeline import TrainPipeline
from tml.projects.light_ranker import calibration, cli, phases
from tml.projects.light_ranker import run as program
from tml.projects.light_ranker.calibration import NORMALISATION, load_calibration
from tml.projects.light_ranker.phases import calibrate, load_isotonic

NUM_STEPS = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def settings(data, tmp_path) -> Settings:
    return tiny_settings(data, tmp_path / "run", training={"checkpoint_every_n": 7})


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """The folder of an unbroken run, without an export."""
    settings = tiny_settings(data, tmp_path_factory.mktemp("whole") / "run", training={"checkpoint_every_n": 7})
    assert _run_without_export(settings) == 0
    return Path(settings["training"]["save_dir"])


def _run_without_export(settings: Settings) -> int:
    with mock.patch.object(program, "export"):
        return run(settings)


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _killed_at(settings: Settings, place: str) -> int:
    """Run, and die at a place."""
    steps = iter(range(1, 1000))

    def step_and_die(pipeline: TrainPipeline, batches: object) -> object:
        if next(steps) == 10:
            _die()
        return original(pipeline, batches)

    original = TrainPipeline.step
    real_write: Callable[..., None] = calibration.write_json
    writes = iter(range(2))

    def write_once_and_die(path: Any, value: Any) -> None:
        if next(writes):
            _die()
        real_write(path, value)

    patches = {
        "half a calibration": mock.patch.object(calibration, "write_json", write_once_and_die),
        "training": mock.patch.object(TrainPipeline, "step", step_and_die),
        "isotonic": mock.patch.object(phases, "fit_isotonic", _die),
        "test": mock.patch.object(program, "report_metrics", _die),
    }
    with patches[place]:
        return _run_without_export(settings)


def test_fault_killed_in_every_phase_a_run_ends_as_an_unbroken_one_to_the_bit(settings, whole):
    folder = Path(settings["training"]["save_dir"])
    for place in ("half a calibration", "training", "training", "isotonic", "test"):
        with pytest.raises(RankFailure, match="died"):
            run_ranks(_killed_at, 1, settings, place)
    assert _run_without_export(settings) == 0
    assert_equal_tensors(final_tensors(folder), final_tensors(whole))
    assert losses(folder) == losses(whole)
    for name in (
        "isotonic.json",
        "test_metrics.json",
        "calibration/normalisation.json",
        "calibration/discretizers.json",
    ):
        assert (folder / name).read_text() == (whole / name).read_text(), name


@pytest.mark.parametrize("task", ["all", "train"])
def test_a_run_that_is_stopped_before_its_first_step_calibrates_measures_and_exports_nothing(settings, tmp_path, task):
    folder = Path(settings["training"]["save_dir"])
    (tmp_path / "stop").touch()
    stopped = merged(settings, {"training": {"stop_if_file_exists": str(tmp_path / "stop")}})
    assert run(stopped, "calibrate") == 0
    assert run(stopped, task) == 0
    left = [name for name in ("isotonic.json", "test_metrics.json", "export") if (folder / name).exists()]
    assert left == []
    for later in ("isotonic", "export"):
        with pytest.raises(ConfigError, match="no step of training"):
            run(stopped, later)
    outcome = CliRunner().invoke(cli.app, ["export", str(folder)])
    assert isinstance(outcome.exception, ConfigError)
    (tmp_path / "stop").unlink()
    assert _run_without_export(stopped) == 0
    assert (folder / "isotonic.json").exists()
    # Stopped again, but trained: the run is ended as any other.
    (tmp_path / "stop").touch()
    (folder / "isotonic.json").unlink()
    assert _run_without_export(stopped) == 0
    assert (folder / "isotonic.json").exists()


def test_fault_a_second_run_on_the_folder_is_refused_in_every_phase_and_changes_nothing(settings):
    folder = Path(settings["training"]["save_dir"])
    other = {**settings, "calibration": {"sample_rate": 0.5}}
    seen: list[str] = []

    def second_run(*_: Any, **__: Any) -> None:
        before = (folder / "calibration/normalisation.json").read_bytes()
        for task in ("all", "calibrate", "train"):
            with pytest.raises(RankFailure, match="another job writes into this checkpoint directory"):
                run_ranks(run, 1, other, task)
        assert (folder / "calibration/normalisation.json").read_bytes() == before
        seen.append("refused")

    original = program.run_training

    def run_training(*arguments: Any) -> object:
        second_run()
        return original(*arguments)

    with mock.patch.object(program, "run_training", run_training), mock.patch.object(program, "export", second_run):
        assert run(settings) == 0
    assert seen == ["refused", "refused"]
    assert not (folder / "lock.json").exists()


MODELS = {"mlp": {}, "fwfm": {"model": {"mlp": {"interaction": {"kind": "fwfm"}}}}, "lolly": LOLLY}


@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_equal_one_rank(data, tmp_path, name):
    # 4000 rows in batches of 300: the second rank's share of an epoch's last batch is short.
    base = merged(tiny_settings(data, tmp_path / "one", train_data={"global_batch_size": 300}), MODELS[name])
    two = merged(base, {"training": {"save_dir": str(tmp_path / "two")}})
    assert _run_without_export(base) == 0
    assert run_ranks(_run_without_export, 2, two) == [0, 0]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    assert_close_tensors(final_tensors(tmp_path / "two"), final_tensors(tmp_path / "one"), rtol=1e-3, atol=1e-3)
    found, expected = metrics_of(tmp_path / "two"), metrics_of(tmp_path / "one")
    assert found["num_samples"] == expected["num_samples"]
    assert found["roc_auc"] == pytest.approx(expected["roc_auc"], abs=2e-3)
    assert found["ctr"] == pytest.approx(expected["ctr"], rel=1e-9)


def test_a_run_of_two_ranks_goes_on_on_one(settings, whole):
    begin = merged(settings, {"training": {"num_train_steps": 14}})
    assert run_ranks(_run_without_export, 2, begin) == [0, 0]
    assert _run_without_export(settings) == 0
    assert losses(settings["training"]["save_dir"]) == pytest.approx(losses(whole), rel=1e-2)


def test_fault_a_run_is_not_continued_with_other_features_or_data(data, settings, tmp_path):
    assert run(settings, "calibrate") == run(settings, "train") == 0
    other = write_data(tmp_path / "other", seed=5)
    moved = merged(settings, {"train_data": {"data_root": other.split("train")}})
    with pytest.raises(ConfigError, match="other data, features or settings"):
        _run_without_export(moved)
    with pytest.raises(ConfigError, match="other data, features or settings"):
        run(moved, "train")
    assert len(losses(settings["training"]["save_dir"])) == NUM_STEPS


def test_a_stale_calibration_without_checkpoints_is_fitted_anew(settings):
    folder = Path(settings["training"]["save_dir"]) / "calibration"
    first = calibrate(config_of(settings))
    text = (folder / NORMALISATION).read_text()
    calibrate(config_of(settings))
    assert (folder / NORMALISATION).read_text() == text
    second = calibrate(config_of(merged(settings, {"calibration": {"sample_rate": 0.5}})))
    assert first.fingerprint != second.fingerprint
    assert (folder / NORMALISATION).read_text() != text


def test_a_calibration_is_that_of_the_weighted_rows(data, settings):
    found = calibrate(config_of(settings))
    rows = read_rows(data.split("train"))
    values, weights = rows["x.hour"].astype(np.float64), rows["w"].astype(np.float64)
    present = ~np.isnan(values)
    place = found.normalizer.names.index("hour")
    mean = np.average(values[present], weights=weights[present])
    assert float(found.normalizer.mean[place]) == pytest.approx(mean, rel=1e-6)
    age = rows["x.age"]
    shares = [weights[age <= edge].sum() / weights[~np.isnan(age)].sum() for edge in found.boundaries["age"][1:-1]]
    assert shares == pytest.approx([0.25, 0.5, 0.75], abs=0.01)
    assert load_calibration(Path(settings["training"]["save_dir"]) / "calibration").digest() == found.digest()


def test_a_smaller_sample_is_drawn_by_the_seed_and_no_larger_than_asked_for(data, settings):
    few = merged(settings, {"calibration": {"max_rows": 500}})
    sample = calibration.Sample(config_of(few), data.spec)
    rows = sample._read(config_of(few).calibration)
    assert len(rows["w"]) == pytest.approx(500, abs=90)
    again = calibration.Sample(config_of(few), data.spec)._read(config_of(few).calibration)
    np.testing.assert_array_equal(rows["x.age"], again["x.age"])


def test_an_earlier_calibration_is_loaded_and_training_can_use_it(settings, tmp_path):
    first = calibrate(config_of(settings))
    loaded = merged(
        settings,
        {
            "training": {"save_dir": str(tmp_path / "second")},
            "calibration": {"load_dir": str(tmp_path / "run" / "calibration"), "sample_rate": 0.1},
        },
    )
    assert calibrate(config_of(loaded)).digest() == first.digest()
    assert run(loaded, "train") == 0
    with pytest.raises(ConfigError, match="no calibration to load"):
        calibrate(config_of(merged(settings, {"calibration": {"load_dir": str(tmp_path / "nowhere")}})))


def test_isotonic_is_fitted_on_validation_rows_and_kept_with_its_step(whole):
    found = json.loads((whole / "isotonic.json").read_text())
    assert found["step"] == NUM_STEPS
    assert len(found["click"]["x"]) == 20
    assert load_isotonic(str(whole), {"step": NUM_STEPS}) is not None
    assert load_isotonic(str(whole), {"step": 7}) is None


@pytest.mark.parametrize("name", ["isotonic.json", "calibration/normalisation.json", "calibration/discretizers.json"])
def test_fault_a_damaged_result_of_a_phase_is_named(name, settings):
    assert run(settings, "calibrate") == run(settings, "train") == run(settings, "isotonic") == 0
    path = Path(settings["training"]["save_dir"]) / name
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match=path.name):
        run(settings, "evaluate")
