"""Where the time of a step goes, from made-up events worked by hand and from a real profile; nothing here is timed."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import profile

from tests.core.toy_run import run_toy
from tml.common.modules.embedding_tables import LocalTables, keyed_ids
from tml.common.modules.table_layout import FusedOptimizerSpec, TableLayout, TableSpec
from tml.common.profiling import kernel, phase
from tml.core.step_profile import OTHER, STEP, phase_of, profile_of


def _event(name, start, end, *children, thread=1, kernels=()):
    """An event in microseconds, linked to its children as the profiler does it."""
    made = SimpleNamespace(
        name=name,
        thread=thread,
        device_type=DeviceType.CPU,
        time_range=SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start),
        is_user_annotation=name.startswith(("tml.", "##")),
        kernels=[SimpleNamespace(duration=us) for us in kernels],
        cpu_children=list(children),
        cpu_parent=None,
    )
    for child in children:
        child.cpu_parent = made
    return made


def _all(*roots):
    return [each for root in roots for each in (root, *_all(*root.cpu_children))]


def test_phases_by_hand():
    update = _event("tml.update", 7000, 7800, _event("aten::index_add_", 7100, 7600))
    node = _event("autograd::engine::evaluate_function: _LookUpBackward", 6500, 8000, update)
    step = _event(
        STEP, 0, 10_000,
        _event("## load batch 3 from dataloader (host) ##", 0, 1000, _event("tml.read", 100, 900)),
        _event("## forward ##", 1000, 5000,
               _event("tml.lookup", 1000, 2000, _event("fbgemm::rows", 1200, 1900, _event("aten::empty", 1300, 1400))),
               _event("_Head", 2000, 4500, _event("aten::bmm", 2000, 4000))),
        _event("tml.backward", 5000, 9000, _event("aten::ones_like", 5000, 5500), node),
    )  # fmt: skip
    found = profile_of(_all(step), num_steps=1)
    assert found.step_ms == 10.0
    times = {part.name: (part.ms, part.operator_ms) for part in found.phases}
    # Forward: 4 ms, of which 1 is the look-up's. Backward: 4 ms, of which .8 is the update's.
    assert times == {
        "read": (1.0, 0.0),
        "forward": (3.0, 2.0),
        "lookup": (1.0, 0.7),
        "backward": (pytest.approx(3.2), 0.5),
        "update": (0.8, 0.5),
        OTHER: (1.0, 0.0),
    }
    assert [part.name for part in found.phases] == list(times), "in the order of a step"
    assert sum(part.ms for part in found.phases) == pytest.approx(found.step_ms)
    assert sum(part.share for part in found.phases) == pytest.approx(1.0)
    assert found.background == []


def test_steps_are_averaged_and_a_cut_off_one_is_left_out():
    steps = [_event(STEP, 0, 3000, _event("tml.loss", 0, 1000)), _event(STEP, 3000, 4000), _event(STEP, 4000, 99_000)]
    found = profile_of(_all(*steps), num_steps=2, plain_step_ms=1.5)
    assert {part.name: part.ms for part in found.phases} == {"loss": 0.5, OTHER: 1.5}
    assert "mean of 2; 1.50 ms without the profiler" in found.table()
    with pytest.raises(ValueError, match="3 of 4"):
        profile_of(_all(*steps), num_steps=4)


def test_what_runs_on_other_threads_is_apart_and_its_kernels_are_not():
    step = _event(
        STEP, 0, 5000,
        _event("## copy_batch_to_gpu ##", 0, 500, _event("aten::copy_", 0, 100, kernels=[40])),
        _event("tml.backward", 1000, 4000),
    )  # fmt: skip
    fused = _event("fbgemm::split_embedding_backward_codegen_cuda", 2000, 2500, thread=2, kernels=[300, 100])
    gradients = _event("autograd::engine::evaluate_function: MmBackward", 1500, 1900,
                       _event("aten::mm", 1500, 1800, thread=2, kernels=[700]), thread=2)  # fmt: skip
    read = _event("tml.read", 200, 2200, thread=3)
    late = _event("tml.read", 5100, 5200, thread=3)
    found = profile_of(_all(step, fused, gradients, read, late), num_steps=1, has_device=True)
    assert {part.name: part.device_ms for part in found.phases} == {
        "copy": 0.04, "backward": 0.7, "update": 0.4, OTHER: 0.0,
    }  # fmt: skip
    assert {part.name: part.ms for part in found.background} == {"read": 2.0, "update": 0.5}
    table = found.table()
    assert "GPU ms" in table
    assert any(line.endswith("on another thread") and "read" in line for line in table.splitlines())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("tml.scores", "scores"), (STEP, None), ("## wait_sparse_data_dist 7 ##", "exchange"), ("aten::mm", None)],
)
def test_marks_of_ours_and_of_the_libraries(name, expected):
    assert phase_of(name) == expected


def test_without_a_profiler_a_phase_is_nothing():
    assert phase("lookup") is phase("update") is kernel("update_rows")
    with profile() as recorded, phase("lookup"), kernel("rows"):
        torch.ones(3)
    assert {"tml.lookup", "tml::rows"} <= {event.name for event in recorded.events()}


def test_a_kernel_counts_as_an_operator():
    step = _event(STEP, 0, 1000, _event("tml.update", 0, 900, _event("tml::update_rows", 100, 800)))
    assert [(part.name, part.operator_ms) for part in profile_of(_all(step), 1).phases] == [("update", 0.7), (OTHER, 0)]


def test_the_tables_mark_their_look_up():
    optimizer = FusedOptimizerSpec("sgd", learning_rate=1.0)
    layout = TableLayout([TableSpec("user", 4, 8, optimizer=optimizer)])
    tables = LocalTables(layout, seed=0)
    with profile() as recorded, torch.no_grad():
        tables(keyed_ids(layout, torch.tensor([1, 3])))
    [lookup] = [event for event in recorded.events() if event.name == "tml.lookup"]
    assert lookup.cpu_children


@pytest.mark.parametrize("num_prefetch_batches", [0, 2])
def test_profile_steps_writes_the_phases_of_a_step(tmp_path, caplog, num_prefetch_batches):
    with caplog.at_level("INFO", "tml"):
        run_toy(
            tmp_path, runtime={"num_prefetch_batches": num_prefetch_batches}, profile_steps={"start": 2, "count": 2}
        )
    found = json.loads((tmp_path / "profile" / "steps-2-4-rank-0.phases.json").read_text())
    assert found["num_steps"] == 2
    assert found["plain_step_ms"] > 0
    times = {part["name"]: part["ms"] for part in found["phases"]}
    assert {"read", "forward", "check", "backward", "update", OTHER} <= set(times)
    assert sum(times.values()) == pytest.approx(found["step_ms"])
    assert min(times.values()) > 0
    assert "one step by phase, mean of 2" in caplog.text
    trace = json.loads((tmp_path / "profile" / "steps-2-4-rank-0.json").read_text())
    threads = {event["tid"] for event in trace["traceEvents"] if event.get("name") == "tml.read"}
    # The main thread's reading is its wait for the other one, if there is one.
    assert threading.get_native_id() in threads
    assert len(threads) == (2 if num_prefetch_batches else 1)


def test_a_run_that_ends_within_the_profile_has_what_was_done(tmp_path):
    run_toy(tmp_path, num_epochs=None, num_train_steps=3, profile_steps={"start": 1, "count": 9})
    found = json.loads((tmp_path / "profile" / "steps-1-3-rank-0.phases.json").read_text())
    assert found["num_steps"] == 2
