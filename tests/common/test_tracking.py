from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
import sys
import types

import pytest

from tml.common.errors import ConfigError, DataError
from tml.common.tracking import Trackers, open_trackers
from tml.common.tracking.json_lines import JsonLinesTracker, read_metrics
from tml.common.tracking.record import ExperimentRecord, sha256_of


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
    assert trackers.names == ["JSON lines", "record", "TensorBoard"]
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

        def close(self, status: str, message: str | None = None) -> None:
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


def test_the_record_goes_from_running_to_succeeded_and_has_parameters_and_command_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--config", "my config.yaml"])
    trackers = open_trackers(str(tmp_path), step=0, run_config={"rate": 0.1, "limit": math.inf})
    record = json.loads((tmp_path / "experiment.json").read_text())
    assert (record["status"], record["message"]) == ("RUNNING", None)
    assert record["parameters"] == {"rate": 0.1, "limit": "inf"}
    assert record["starts"][0]["command_line"] == "run.py --config 'my config.yaml'"
    assert "ended" not in record["starts"][0]
    trackers.track(5, {"train/loss": 0.5})
    trackers.track(5, {"eval/auc": 0.75, "eval/rce": math.nan})
    trackers.close("finished")
    record = ExperimentRecord(tmp_path).read()
    assert record["status"] == "SUCCEEDED"
    assert record["starts"][0]["started"] <= record["starts"][0]["ended"]
    found = [(e["step"], e["split"], e["metrics"]) for e in record["evaluations"]]
    assert found == [(5, "validation", {"auc": 0.75, "rce": None})]


def test_the_record_of_a_failure_says_why_and_one_of_a_preemption_can_go_on(tmp_path) -> None:
    for step, status, message in ((0, "preempted", None), (10, "failed", "DataError: no such file")):
        trackers = open_trackers(str(tmp_path), step=step, run_config={})
        trackers.track(step + 5, {"eval/auc": 0.5})
        trackers.track(step + 10, {"eval/auc": 0.6})
        trackers.close(status, message)
    record = ExperimentRecord(tmp_path).read()
    assert (record["status"], record["message"]) == ("FAILED", "DataError: no such file")
    assert [(s["from_step"], s["status"], s["message"]) for s in record["starts"]] == [
        (0, "PREEMPTED", None),
        (10, "FAILED", "DataError: no such file"),
    ]
    assert [evaluation["step"] for evaluation in record["evaluations"]] == [5, 10, 15, 20]


def test_a_run_that_was_killed_is_recorded_as_failed_when_it_goes_on_from_an_earlier_step(tmp_path) -> None:
    killed = ExperimentRecord(tmp_path)
    killed.begin({}, step=0)
    for step in (5, 10):
        killed.evaluation(step, {"auc": 0.5})
    again = ExperimentRecord(tmp_path)
    again.begin({}, step=7)
    record = again.read()
    assert record["status"] == "RUNNING"
    assert [evaluation["step"] for evaluation in record["evaluations"]] == [5]
    assert record["starts"][0]["status"] == "FAILED"
    assert "killed" in record["starts"][0]["message"]


def test_artifacts_are_recorded_with_their_hash_also_after_the_end(tmp_path) -> None:
    folder = tmp_path / "run" / "export"
    (folder / "vocab").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"model")
    (folder / "vocab" / "user.json").write_bytes(b"{}")
    record = ExperimentRecord(tmp_path / "run")
    record.begin({})
    record.end("SUCCEEDED")
    digest = record.artifact("export", folder)
    lines = [
        f"{name}\0{hashlib.sha256(text).hexdigest()}\n"
        for name, text in (("model.onnx", b"model"), ("vocab/user.json", b"{}"))
    ]
    assert digest == hashlib.sha256("".join(lines).encode()).hexdigest()
    outside = tmp_path / "other.bin"
    outside.write_bytes(b"x")
    record.artifact("other", outside, sha256="known")
    artifacts = record.read()["artifacts"]
    assert {key: artifacts["export"][key] for key in ("path", "sha256", "bytes")} == {
        "path": "export",
        "sha256": digest,
        "bytes": 7,
    }
    assert (artifacts["other"]["path"], artifacts["other"]["sha256"]) == (str(outside), "known")
    assert record.read()["status"] == "SUCCEEDED"
    (folder / "model.onnx").write_bytes(b"other")
    assert sha256_of(folder) != digest


def test_an_artifact_that_is_not_there_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="nothing to record"):
        ExperimentRecord(tmp_path).artifact("export", tmp_path / "nothing")


def test_a_damaged_record_is_begun_anew(tmp_path, caplog) -> None:
    (tmp_path / "experiment.json").write_text('{"status": "RUN')
    with caplog.at_level(logging.WARNING, logger="tml"):
        ExperimentRecord(tmp_path).begin({"a": 1})
    assert ExperimentRecord(tmp_path).read()["parameters"] == {"a": 1}
    assert "cannot be read" in caplog.text
