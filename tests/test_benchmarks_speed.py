"""The speed benchmarks' arithmetic, and that their contestants do the same work; nothing here is timed."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tml.benchmarks import evaluation_speed, neighbours_speed, scaling
from tml.benchmarks.convert_speed import require_equal
from tml.benchmarks.limits import Limits, TwhinWork, probe, share_of_limit, twhin_limit
from tml.benchmarks.peers import run_worker
from tml.benchmarks.processes import Finished
from tml.benchmarks.startup_time import parts_of
from tml.benchmarks.turns import Measured, Race, Runs, take_turns, timed
from tml.benchmarks.twhin_vs_pbg.curve import Point, curve_report, edges_after, edges_to_reach
from tml.benchmarks.twhin_vs_pbg.run import report
from tml.benchmarks.twhin_vs_pbg.settings import Graph, Settings
from tml.common.native.compiler import compiled

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = (
    "twhin_vs_pbg/run", "light_ranker_vs_keras/run", "higgs", "fb15k237", "planted_quality", "limits", "scaling",
    "evaluation_speed", "convert_speed", "neighbours_speed", "startup_time", "plan_check", "reader_speed",
    "data_record_speed",
)  # fmt: skip
LIMITS = Limits(
    threads=2, fp32_flops=1e11, bf16_flops=4e11, copy_bytes=1e10, dim=128, gather_rows=1e7, update_rows=5e6,
    row_kernel=True,
)  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_benchmark_explains_itself(name):
    script = BENCHMARKS / f"{name}.py"
    shown = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True).stdout
    assert "--results" in shown
    assert f"benchmarks/{name}.py" in shown


def test_contestants_take_turns_and_the_last_one_is_the_baseline():
    turns = []

    def contestant(name, seconds):
        def measure():
            turns.append(name)
            return Measured(1_000, next(seconds), Finished(9.0, 50 << 20))

        return measure

    contestants = {"ours": contestant("ours", iter([1.0, 2.0])), "theirs": contestant("theirs", iter([4.0, 2.0]))}
    runs = take_turns(contestants, 2, "edges")
    assert turns == ["ours", "theirs"] * 2
    assert runs.pairs == [("ours", "theirs")]
    assert (runs.ratio("ours", "theirs").low, runs.ratio("ours", "theirs").high) == (1.0, 4.0)
    record = runs.record()
    assert [(row["contestant"], row["round"], row["seconds"]) for row in record["runs"]] == [
        ("ours", 1, 1.0), ("ours", 2, 2.0), ("theirs", 1, 4.0), ("theirs", 2, 2.0),
    ]  # fmt: skip
    assert record["runs"][0]["peak_mib"] == 50.0
    report = runs.report({"ours": {"MRR": 0.25}})
    assert "ours / theirs: 2.50 (1.00 to 4.00)." in report
    assert "| round | ours edges/s | theirs edges/s | ours / theirs |" in report
    assert ".2500" in report


def test_several_contestants_have_a_ratio_each():
    measured = {name: [Measured(10, seconds)] for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 4.0))}
    runs = Runs("queries", measured)
    assert "- a / c: 4.00 (4.00 to 4.00).\n- b / c: 2.00 (2.00 to 2.00)." in runs.report()
    assert "| a / c | b / c |" in runs.report()
    against_two = Runs("queries", measured, ("b", "c"))
    assert against_two.pairs == [("a", "b"), ("a", "c")]
    ratios = against_two.record()["rate_ratios"]
    assert {pair: ratio.median for pair, ratio in ratios.items()} == {"a / b": 2.0, "a / c": 4.0}


def test_a_contestant_in_this_process_says_how_much_it_did():
    measured = timed(lambda: 7)()
    assert measured.amount == 7
    assert measured.seconds > 0
    assert measured.process is None


def test_contestants_of_a_script_race_in_processes_of_their_own(tmp_path):
    script = tmp_path / "search.py"
    script.write_text(
        "import json, sys\njob = json.load(open(sys.argv[2]))\n"
        "seconds = {'fast one': 1.0, 'slow': 5.0}[job['name']] * job['problem']['size']\n"
        "json.dump({'seconds': seconds}, open(job['out'], 'w'))\n"
    )
    runs, answers = Race(script, tmp_path / "work", {"size": 2}, amount=20).run(("fast one", "slow"), 1, "queries")
    assert runs.ratio("fast one", "slow").median == 5.0
    assert runs.rates("fast one") == [10.0]
    assert answers["slow"] == {"seconds": 10.0}
    assert runs.by_name["slow"][0].process is not None


def test_the_work_of_an_edge_by_hand():
    work = TwhinWork(dim=128, in_batch=50, uniform=50)
    # Two sides, three products of 100 candidates times 128 values; two ends, and a hundred uniform nodes for 50 edges.
    assert work.flops == 2 * 3 * 2 * 100 * 128
    assert work.rows == 4
    assert TwhinWork(128, 50, 50, shared_in_batch=True).flops == work.flops - 3 * 2 * 50 * 128
    assert TwhinWork(64, 0, 128).rows == 2 + 2 * 128 / 64


def test_the_limit_of_a_run_by_hand():
    work = TwhinWork(dim=128, in_batch=50, uniform=50)
    rows = 4 * (1e-7 + 2e-7)
    assert twhin_limit(LIMITS, work) == pytest.approx(1 / (153_600 / 1e11 + rows))
    assert twhin_limit(LIMITS, work, bf16=True) == pytest.approx(1 / (153_600 / 4e11 + rows))
    # Rows of half the length are half the bytes.
    assert twhin_limit(LIMITS, TwhinWork(64, 50, 50)) == pytest.approx(2 * twhin_limit(LIMITS, work))
    half = twhin_limit(LIMITS, work) / 2
    assert "50% of the limit with float32 products (365,497 edges/s)" in share_of_limit(LIMITS, work, half)


@pytest.mark.parametrize("native", ["1", "0"])
def test_the_probe_finds_every_rate(native, monkeypatch):
    compiled.cache_clear()
    monkeypatch.setenv("TML_NATIVE", native)
    found = probe(threads=1, dim=8, table_rows=500, seconds=0.001)
    compiled.cache_clear()
    rates = (found.fp32_flops, found.bf16_flops, found.copy_bytes, found.gather_rows, found.update_rows)
    assert min(rates) > 0
    assert found.row_kernel <= (native == "1")


def test_the_probes_loops_read_and_update_rows():
    library = compiled(BENCHMARKS / "limits_kernel.cpp")
    if library is None:
        pytest.skip("no C++ compiler")
    table, places = torch.arange(60.0).view(20, 3), torch.randperm(20)
    before, out = table.clone(), torch.zeros(20, 3)
    size = (ctypes.c_int64(20), ctypes.c_int64(3), ctypes.c_int(2))
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (table, places, out)]
    library.tml_probe_gather(*pointers, *size)
    torch.testing.assert_close(out, before[places])
    library.tml_probe_update(*pointers, *size)
    torch.testing.assert_close(table, 2 * before)


def test_edges_after_some_steps_count_short_batches():
    # 25 edges an epoch in batches of 10: 10, 10, 5.
    assert [edges_after(step, 25, 10) for step in (1, 2, 3, 4)] == [10, 20, 25, 35]


def test_the_time_to_the_other_systems_mrr_is_that_of_the_first_point_that_has_it():
    points = [Point(100, 0.1), Point(200, 0.3), Point(300, 0.2)]
    assert edges_to_reach(points, 0.2) == 200
    assert edges_to_reach(points, 0.31) is None
    report = curve_report(points, rate=50.0, their_mrr=0.2, their_seconds=16.0)
    assert "PBG after 16.0 s, tml at the latest after 4.0 s, 0.25 of PBG's time." in report
    assert "does not reach" in curve_report(points, 50.0, 0.9, 16.0)


def test_the_report_against_pbg_has_rates_limit_quality_and_the_way():
    graph = Graph(Path("unused"), {"user": 10, "tweet": 5}, [("fav", "user", "tweet")])
    runs = Runs("edges", {"tml": [Measured(1_000, 0.002)], "PBG": [Measured(1_000, 0.01)]})
    quality = {"tml": {"filtered.mrr": 0.3}, "PBG": {"filtered.mrr": 0.2}}
    text = report(Settings(), graph, runs, LIMITS, quality, [Point(500, 0.25), Point(1_000, 0.3)])
    assert "1,000 edges trained, 15 nodes, 1 relations" in text
    assert "tml / PBG: 5.00" in text
    assert "500,000 edges/s are 118% of the limit" in text
    assert "0.10 of PBG's time" in text
    assert ".2000" in text
    assert "PBG's final MRR" not in report(Settings(), graph, runs, LIMITS, {}, [])


def _problem(**changes):
    problem = {"entities": 40, "relations": 3, "edges": 400, "evaluated": 90, "dim": 6, "operator": "translation"}
    return evaluation_speed.make_problem(**{**problem, "seed": 0, **changes})


@pytest.mark.parametrize("operator", ["translation", "complex_diagonal"])
def test_both_evaluations_find_the_same_ranks(operator):
    problem = _problem(operator=operator)
    ours, plain = evaluation_speed.rank_with_tml(*problem, "fp32"), evaluation_speed.rank_plainly(*problem)
    assert set(ours) == set(evaluation_speed.SHARED)
    evaluation_speed.require_equal({"tml": ours, "plain": plain})
    # The mean of 180 ranks: ties give halves.
    twice_the_sum = 2 * 180 * ours["filtered.mr"]
    assert twice_the_sum == pytest.approx(round(twice_the_sum), abs=1e-6)


def test_the_plain_evaluation_by_hand():
    edges, _, table, scorer = _problem()
    found = evaluation_speed.rank_plainly(edges, 1, table, scorer)
    ranks = []
    for target, given, sign in (("rhs", "lhs", 1), ("lhs", "rhs", -1)):
        known = {
            int(node)
            for node, other, rel in zip(getattr(edges, target), getattr(edges, given), edges.rel, strict=True)
            if (other, rel) == (getattr(edges, given)[0], edges.rel[0])
        }
        theta = scorer.weight.detach()[edges.rel[0]]
        own = int(getattr(edges, target)[0])
        lhs = table[edges.lhs[0]]
        scores = (lhs + theta) @ table.T if sign > 0 else (table + theta) @ table[edges.rhs[0]]
        others = [float(scores[node]) for node in range(len(table)) if node not in known]
        ranks.append(1 + sum(s > scores[own] for s in others) + sum(s == scores[own] for s in others) / 2)
    assert found["filtered.mr"] == pytest.approx(float(np.mean(ranks)))
    assert found["filtered.mrr"] == pytest.approx(float(np.mean([1 / float(rank) for rank in ranks])))


def test_evaluations_that_differ_end_the_benchmark():
    with pytest.raises(SystemExit, match="differently"):
        evaluation_speed.require_equal({"tml": {"mrr": 0.5}, "plain": {"mrr": 0.50001}})


def test_every_search_finds_the_same_neighbours(tmp_path):
    neighbours_speed.make_model(tmp_path / "model", candidates=300, queries=9, dim=8, seed=1)
    users = np.arange(9)
    found = {name: make(tmp_path / "model", 5)(users) for name, make in neighbours_speed.CONTESTANTS.items()}
    for name in ("tml", "torch"):
        np.testing.assert_array_equal(found[name], found["numpy"])
    assert neighbours_speed.recall(found["index"].tolist(), found["numpy"].tolist()) > 0.9


def test_recall_is_a_share():
    assert neighbours_speed.recall([[1, 2], [3, 4]], [[2, 1], [3, 5]]) == 0.75


def test_conversions_that_differ_end_the_benchmark():
    same = {"num_edges": 3, "num_entities": {"user": 2}}
    require_equal({"tml": same, "PBG": same | {"seconds": 1.0}})
    with pytest.raises(SystemExit, match="different graphs"):
        require_equal({"tml": same, "PBG": same | {"num_edges": 2}})


def test_parts_of_a_start_add_up():
    parts = parts_of({"interpreter": 0.5, "imports": 4.0, "first step": 4.25})
    assert parts == {"interpreter": 0.5, "imports": 3.5, "first step": 0.25}


def test_a_worker_answers_in_a_process_of_its_own(tmp_path):
    script = tmp_path / "double.py"
    script.write_text(
        "import json, os, sys\njob = json.load(open(sys.argv[2]))\n"
        "json.dump({'twice': 2 * job['n'], 'pid': os.getpid(), 'x': os.environ['X']}, open(job['out'], 'w'))\n"
    )
    answer, done = run_worker(script, {"n": 21}, tmp_path / "work", environment={"X": "seen"})
    assert (answer["twice"], answer["x"]) == (42, "seen")
    assert answer["pid"] != os.getpid()
    assert done.wall_seconds > 0


def test_series_share_the_point_in_the_middle():
    points = scaling.points_of(scaling.Point(), scaling.SERIES)
    assert points[0] == scaling.Point()
    assert len(points) == len(set(points)) == 1 + sum(map(len, scaling.SERIES.values())) - len(scaling.SERIES)


def test_nodes_grow_with_edges():
    middle = scaling.Point()
    assert scaling.varied(middle, "edges", 20_000_000) == replace(middle, edges=20_000_000, nodes=1_300_000)
    assert scaling.varied(middle, "nodes", 10_000) == replace(middle, nodes=10_000)


@pytest.mark.parametrize(("negatives", "expected"), [(1, (0, 1)), (10, (5, 5)), (1000, (500, 500))])
def test_negatives_are_half_in_batch(negatives, expected):
    point = scaling.Point(negatives=negatives)
    assert (point.in_batch, point.uniform) == expected


@pytest.mark.parametrize(("value", "shown"), [(32, "32"), (1_000, "1k"), (200_000, "200k"), (5_000_000, "5M")])
def test_numbers_of_the_plot_are_short(value, shown):
    assert scaling._short(value) == shown


def test_ten_users_to_three_tweets():
    assert scaling.table_sizes(130_000) == {"user": 100_000, "tweet": 30_000}
    assert sum(scaling.table_sizes(5_000_001).values()) == 5_000_001


def test_dearer_points_train_fewer_edges():
    middle = scaling.Point()
    assert scaling.num_steps(middle, middle) == 100
    assert scaling.num_steps(replace(middle, edges=20_000_000), middle) == 1_000
    assert scaling.num_steps(replace(middle, dim=512), middle) == 25
    assert scaling.num_steps(replace(middle, dim=32), middle) == 100
    assert scaling.num_steps(replace(middle, negatives=1_000, batch=64_000), middle) == 20


def test_measurements_are_found_again_unless_something_changed(tmp_path):
    path, point, cost = tmp_path / "log.jsonl", scaling.Point(dim=64), scaling.Cost(10.0, 5.0)
    scaling.Log(path).add(point, cost)
    assert scaling.Log(path).costs(point) == [cost]
    assert scaling.Log(path).costs(scaling.Point()) == []
    assert scaling.Log(path, ["runtime.enable_amp=true"]).costs(point) == []
    lines = [json.loads(line) | {"commit": "another"} for line in path.read_text().splitlines()]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert scaling.Log(path).costs(point) == []
    assert scaling.Log(path, restart=True).costs(point) == []
    assert not path.exists()


def test_the_plot_and_the_table_show_every_series(tmp_path):
    middle, series = scaling.QUICK, scaling.QUICK_SERIES
    found = {point: [scaling.Cost(100.0 * point.dim, 50.0)] * 2 for point in scaling.points_of(middle, series)}
    report = scaling.report(middle, series, found)
    assert all(f"| {name}" in report for name in series)
    assert "1,600 (1,600 to 1,600)" in report
    pytest.importorskip("matplotlib", reason="the plot needs tml[plots]")
    assert scaling.draw(middle, series, found, tmp_path / "docs" / "scaling.svg")
    drawn = (tmp_path / "docs" / "scaling.svg").read_text()
    assert drawn.startswith("<?xml")
    assert all(label in drawn for label in ("negatives a side", "peak memory, MiB", "edges/s"))
    assert scaling.draw(middle, series, found, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == drawn
