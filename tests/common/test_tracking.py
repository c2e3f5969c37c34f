from __future__ import annotations

import importlib.util
import json
import logging
import math
import sys
import types

import pytest

from tml.common.errors import ConfigError
from tml.common.tracking import Trackers, open_trackers
from tml.common.tracking.json_lines import JsonLinesTracker, read_metrics


def test_json_lines_are_always_written(tmp_path) -> None:
    trackers = open_trackers(str(tmp_path), step=0, run_config={})
    trackers.track(1, {"loss": 0.5})
    trackers.track(2, {"loss": math.nan})
    trackers.close("finished")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.5), (2, None)]
    assert all(line["time"] > 0 for line in lines)


def test_json_lines_forget_steps_after_the_one_that_is_resumed(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = JsonLinesTracker(str(path), 0)
    for step in (1, 2, 3):
        first.track(step, {"loss": step})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    second = JsonLinesTracker(str(path), 2)
    second.track(3, {"loss": 30})
    assert [(line["step"], line["loss"]) for line in read_metrics(str(path))] == [(1, 1), (2, 2), (3, 30)]


def test_json_lines_of_a_resume_at_the_last_line_are_left_as_they_are(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    JsonLinesTracker(str(path), 0).track(1, {"loss": 1})
    before = path.stat().st_ino
    JsonLinesTracker(str(path), 1)
    assert path.stat().st_ino == before


def test_metrics_of_a_missing_file_are_none(tmp_path) -> None:
    assert read_metrics(str(tmp_path / "nothing.jsonl")) == []


def test_tensorboard_gets_every_point(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = open_trackers(str(tmp_path), step=0, run_config={}, tensorboard=True)
    assert trackers.names == ["JSON lines", "TensorBoard"]
    trackers.track(5, {"train/loss": 0.25})
    trackers.track(6, {"train/loss": 0.125})
    trackers.close("finished")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("train/loss")] == [(5, 0.25), (6, 0.125)]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_before_training(tmp_path, monkeypatch, name) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None)
    with pytest.raises(ConfigError, match=rf"(?s)package {name}.*pip install {name}"):
        open_trackers(str(tmp_path), step=0, run_config={}, **{name: {"project": "p"}})


def _install(monkeypatch: pytest.MonkeyPatch, name: str, **contents: object) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(contents)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: object())


def test_wandb_run_goes_on_under_its_id(tmp_path, monkeypatch) -> None:
    calls: list[tuple] = []

    class Run:
        id = "abc"

        def log(self, values: dict, step: int) -> None:
            calls.append(("log", values, step))

        def finish(self, exit_code: int) -> None:
            calls.append(("finish", exit_code))

    def init(**settings: object) -> Run:
        calls.append(("init", settings))
        return Run()

    _install(monkeypatch, "wandb", init=init)
    for _ in range(2):
        trackers = open_trackers(str(tmp_path), step=0, run_config={"a": 1}, wandb={"project": "p", "mode": "offline"})
        trackers.track(3, {"loss": 1.0})
        trackers.close("failed")
    first, second = (settings for kind, *rest in calls if kind == "init" for settings in rest)
    assert (first["project"], first["mode"], first["config"], first["id"]) == ("p", "offline", {"a": 1}, None)
    assert (second["id"], second["resume"]) == ("abc", "allow")
    assert ("log", {"loss": 1.0}, 3) in calls
    assert ("finish", 1) in calls


def test_mlflow_run_goes_on_under_its_id(tmp_path, monkeypatch) -> None:
    calls: list[tuple] = []

    def record(name: str):
        return lambda *args, **kwargs: calls.append((name, args, kwargs))

    def start_run(**settings: object) -> object:
        calls.append(("start_run", (), settings))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

    names = ("set_tracking_uri", "set_experiment", "log_dict", "log_metrics", "end_run")
    _install(monkeypatch, "mlflow", start_run=start_run, **{name: record(name) for name in names})
    for status in ("preempted", "finished"):
        settings = {"uri": "file:runs", "experiment": "e", "name": "n"}
        trackers = open_trackers(str(tmp_path), step=0, run_config={"a": 1}, mlflow=settings)
        trackers.track(3, {"loss": 1.0})
        trackers.close(status)
    assert [kwargs for name, _, kwargs in calls if name == "start_run"] == [{"run_name": "n"}, {"run_id": "r1"}]
    assert [args for name, args, _ in calls if name == "end_run"] == [("KILLED",), ("FINISHED",)]
    assert [args for name, args, _ in calls if name == "log_dict"] == [({"a": 1}, "config.json")]
    assert ("log_metrics", ({"loss": 1.0},), {"step": 3}) in calls


def test_fault_22_a_failing_tracker_is_reported_once_and_left_out(tmp_path, caplog) -> None:
    class Full:
        def track(self, step: int, values: object) -> None:
            raise OSError("no space left")

        def close(self, status: str) -> None:
            raise AssertionError("a tracker that is left out is not asked again")

    def down() -> object:
        raise ConnectionError("server down")

    good = JsonLinesTracker(str(tmp_path / "m.jsonl"), 0)
    with caplog.at_level(logging.WARNING, logger="tml"):
        trackers = Trackers({"full": Full, "down": down, "good": lambda: good})  # type: ignore[dict-item]
        for step in range(3):
            trackers.track(step, {"loss": 1.0})
        trackers.close("finished")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "down cannot start" in messages[0]
    assert "no space left" in messages[1]
    assert len(read_metrics(str(tmp_path / "m.jsonl"))) == 3
