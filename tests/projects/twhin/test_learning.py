"""The model learns: whole runs on a planted graph beat chance by far, and what is around them does what it says."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed import run_ranks
from tests.projects.twhin.tiny import (
    NUM_TWEETS,
    NUM_USERS,
    RELATIONS,
    TinyGraph,
    config_of,
    edges_of,
    run,
    tables,
    tiny_settings,
    write_graph,
)
from tests.runs import Settings, assert_equal_tensors, evaluations, final_tensors, losses, merged, reported
from tml.common.checkpointing import read_extra
from tml.projects.twhin.models.live_tables import embedding_source, head_of

OPERATORS = ("identity", "translation", "diagonal", "complex_diagonal")
COMPARATORS = ("dot", "cosine", "l2")
LOSSES = ("softmax", "logistic", "ranking")

# The mean reciprocal rank of a random order of n candidates is the n-th harmonic number over n.
RANDOM_MRR = sum(1 / rank for rank in range(1, NUM_USERS + 1)) / NUM_USERS


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> TinyGraph:
    return write_graph(tmp_path_factory.mktemp("graph"))


@pytest.fixture(scope="module")
def level_graph(tmp_path_factory) -> TinyGraph:
    return write_graph(tmp_path_factory.mktemp("level"), shifted=False)


def _evaluated(graph: TinyGraph, save_dir: Path, **sections: Any) -> Settings:
    base: Settings = {"validation_data": {"data_root": graph.valid}, "training": {"num_epochs": 6}}
    return tiny_settings(graph, save_dir, **merged(base, sections))


def _twhin_run(settings: Settings) -> Any:
    """The parts of a run, without a process group."""
    from tml.projects.twhin.run import build_run

    return build_run(config_of(settings), torch.device("cpu"))


# Whole runs


def test_the_loss_falls_and_filtered_mrr_rises_to_ten_times_chance(graph, tmp_path):
    settings = _evaluated(graph, tmp_path / "run", training={"num_epochs": 12, "evaluate_every_n": 27})
    assert run(settings) == 0
    loss, evaluation = list(losses(tmp_path / "run").values()), evaluations(tmp_path / "run")
    assert np.mean(loss[-9:]) < 0.3 * loss[0]
    assert evaluation[27]["filtered.mrr"] < evaluation[108]["filtered.mrr"]
    assert evaluation[108]["filtered.mrr"] > 10 * RANDOM_MRR
    assert evaluation[108]["auc"] > 0.85
    for relation in RELATIONS:
        assert evaluation[108][f"relation.{relation}.mrr"] > 5 * RANDOM_MRR


def test_b01_positives_rise_above_negatives_and_every_relation_gets_a_gradient(graph, tmp_path):
    endless = {"num_epochs": None, "num_train_steps": 60}
    run_ = _twhin_run(tiny_settings(graph, tmp_path / "run", training=endless, model={"reciprocal_relations": True}))
    scorer = head_of(run_.model).scorer
    start, gradients = scorer.weight.detach().clone(), torch.zeros_like(scorer.weight)
    before = _mean_scores(run_.model)
    batches = iter(run_.data)
    for step in range(60):
        run_.optimizers.zero_grad()
        run_.optimizers.set_learning_rates(step)
        loss, _ = run_.model(next(batches))
        loss.backward()
        gradients += scorer.weight.grad.abs()
        run_.optimizers.step()
    batches.close()
    positive, negative = _mean_scores(run_.model)
    assert abs(before[0] - before[1]) < 0.01
    assert positive > negative + 1
    assert positive > before[0]
    with_params = torch.tensor([operator != "identity" for _, _, operator, _ in RELATIONS.values()]).repeat(2)
    assert (gradients.sum(1)[with_params] > 0).all(), "a relation, or an inverse, without a gradient"
    assert ((scorer.weight.detach() - start).norm(dim=1)[with_params] > 0.05).all()
    assert not gradients[~with_params].any(), "the identity has no parameters"


def _mean_scores(model: Any) -> tuple[float, float]:
    """Mean score of pairs of `fav` within a community, and of pairs that are not."""
    scorer, source = head_of(model).scorer, embedding_source(model, torch.device("cpu"))
    users, tweets = source.full("user"), source.full("tweet")[:NUM_USERS]
    rel = torch.full((NUM_USERS,), list(RELATIONS).index("fav"))
    with torch.no_grad():
        scores = scorer.rhs_scores(scorer.operator(int(rel[0])), rel, users, tweets)
    community = torch.arange(NUM_USERS) // 10
    within = community[:, None] == community[None]
    return float(scores[within].mean()), float(scores[~within].mean())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("comparator", COMPARATORS)
def test_every_loss_comparator_and_operator_beats_chance(loss, comparator, level_graph, tmp_path):
    settings = _evaluated(level_graph, tmp_path / "run", model={"loss": loss, "comparator": comparator})
    relations = settings["model"]["relations"]
    changed = [relation | {"operator": name} for relation, name in zip(relations, OPERATORS, strict=True)]
    assert run(merged(settings, {"model": {"relations": changed}})) == 0
    assert all(map(math.isfinite, losses(tmp_path / "run").values()))
    assert all(bool(tensor.isfinite().all()) for tensor in final_tensors(tmp_path / "run").values())
    metrics = evaluations(tmp_path / "run")[54]
    found = {name: metrics[f"relation.{name}.mrr"] / RANDOM_MRR for name in RELATIONS}
    assert min(found.values()) > 2.5, found


@pytest.mark.parametrize("kind", ["l2", "n3"])
def test_regularisation_shrinks_norms(kind, graph, tmp_path):
    free, held = tiny_settings(graph, tmp_path / "free"), tiny_settings(graph, tmp_path / "held")
    held = merged(held, {"model": {"regularization": {"kind": kind, "weight": 0.3}}})
    norms = {}
    for settings in (free, held):
        settings["training"]["num_epochs"] = 4
        assert run(settings) == 0
        save_dir = settings["training"]["save_dir"]
        norms[save_dir] = float(final_tensors(save_dir)["tables.user+tweet.weight"].norm())
    assert norms[str(tmp_path / "held")] < 0.8 * norms[str(tmp_path / "free")]


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"reciprocal_relations": True}},
        {"runtime": {"enable_amp": True}},
        {"train_data": {"in_batch_negatives": 0, "global_negatives": 30}},
        {"train_data": {"in_batch_negatives": 30, "global_negatives": 0}},
        {"train_data": {"in_batch_negatives": 10, "chunk_size": 40}},
    ],
    ids=["reciprocal", "amp", "uniform negatives alone", "in-batch negatives alone", "large chunks"],
)
def test_learns_ten_times_better_than_chance_with(change, graph, tmp_path):
    settings = merged(_evaluated(graph, tmp_path / "run", training={"num_epochs": 8}), change)
    assert run(settings) == 0
    assert evaluations(tmp_path / "run")[72]["filtered.mrr"] > 10 * RANDOM_MRR


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise_adagrad"])
def test_half_precision_tables_learn_with_every_optimizer_of_a_cpu(kind, graph, tmp_path):
    settings = _evaluated(graph, tmp_path / "run", training={"num_epochs": 7})
    rate = 15.0 if kind == "sgd" else 0.1
    changed = tables(settings, data_type="fp16", init_scale=0.1, optimizer={kind: {"learning_rate": rate}})
    settings = merged(settings, {"model": {"embeddings": {"tables": changed}}})
    assert run(settings) == 0
    assert final_tensors(tmp_path / "run")["tables.user+tweet.weight"].dtype == torch.float16
    assert evaluations(tmp_path / "run")[63]["filtered.mrr"] > 5 * RANDOM_MRR


def test_weight_of_a_relation_acts(graph, tmp_path):
    mrr = {}
    for weight in (1e-6, 1.0):
        settings = _evaluated(graph, tmp_path / str(weight))
        settings["model"]["relations"][2]["weight"] = weight
        assert run(settings) == 0
        mrr[weight] = evaluations(tmp_path / str(weight))[54]["relation.reply.mrr"]
    assert mrr[1e-6] < 0.5 * mrr[1.0]


# The loop around it


def test_num_train_steps_ends_the_run_and_more_steps_go_on(graph, tmp_path):
    settings = tiny_settings(graph, tmp_path / "run", training={"num_epochs": None, "num_train_steps": 5})
    assert run(settings) == 0
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4, 5]
    assert run(merged(settings, {"training": {"num_train_steps": 12}})) == 0
    assert list(losses(tmp_path / "run")) == list(range(1, 13))
    assert read_extra(tmp_path / "run")["cursor"] == {"epoch": 1, "row": 3 * 400}


def test_warm_start_takes_the_parameters_of_another_run(graph, tmp_path):
    first = _evaluated(graph, tmp_path / "first")
    assert run(first) == 0
    cold, warm = _evaluated(graph, tmp_path / "cold"), _evaluated(graph, tmp_path / "warm")
    warm["training"]["initial_checkpoint_dir"] = str(tmp_path / "first")
    for settings in (cold, warm):
        settings["training"] |= {"num_epochs": None, "num_train_steps": 1}
        assert run(settings) == 0
    assert losses(tmp_path / "warm")[1] < 0.5 * losses(tmp_path / "cold")[1]
    assert evaluations(tmp_path / "warm")[1]["filtered.mrr"] > 3 * evaluations(tmp_path / "cold")[1]["filtered.mrr"]
    assert read_extra(tmp_path / "warm")["step"] == 1


def test_early_stopping_gives_back_the_best_step(graph, tmp_path):
    """A rate that explodes after step 12 spoils the model, so the best step is not the last."""
    settings = _evaluated(
        graph,
        tmp_path / "run",
        training={"num_epochs": 20, "evaluate_every_n": 6, "checkpoint_max_to_keep": 1,
                  "early_stopping": {"metric": "filtered.mrr", "patience": 2}},
        test_data={"data_root": graph.test},
    )  # fmt: skip
    spoilt = {"sgd": {"learning_rate": {"piecewise_constant": {"boundaries": [12], "values": [5.0, 300.0]}}}}
    changed = tables(settings, init_scale=0.1, optimizer=spoilt)
    settings = merged(settings, {"model": {"embeddings": {"tables": changed}}})
    assert run(settings) == 0
    mrr = {step: metrics["filtered.mrr"] for step, metrics in evaluations(tmp_path / "run").items()}
    best = max(mrr, key=lambda step: mrr[step])
    assert best < max(mrr) == best + 12
    report = reported(tmp_path / "run")
    assert report["step"] == best

    # The evaluation of the folder finds the same model, and so does a second start.
    assert run(settings, "evaluate") == 0
    again = reported(tmp_path / "run")
    assert again == report
    assert run(settings) == 0
    assert reported(tmp_path / "run") == report


def test_evaluate_ranks_the_test_edges_else_the_validation_edges(graph, tmp_path):
    settings = _evaluated(graph, tmp_path / "run")
    assert run(settings) == 0
    assert run(settings, "evaluate") == 0
    report = reported(tmp_path / "run", "validation")
    logged = evaluations(tmp_path / "run")[54]
    assert report["step"] == 54
    assert report["metrics"]["filtered.mrr"] == pytest.approx(logged["filtered.mrr"], abs=1e-12)
    before = final_tensors(tmp_path / "run")
    assert run(merged(settings, {"test_data": {"data_root": graph.test}}), "evaluate") == 0
    assert reported(tmp_path / "run")["metrics"]["num_edges"] == 150
    assert_equal_tensors(final_tensors(tmp_path / "run"), before)


def test_only_evaluate_follows_the_folder_of_another_job(graph, tmp_path):
    settings = _evaluated(
        graph, tmp_path / "run", training={"checkpoint_every_n": 18, "checkpoint_max_to_keep": None, "num_epochs": 6}
    )
    follower = merged(settings, {"training": {"eval_poll_every_s": 0.05, "eval_timeout_in_s": 60}})
    (tmp_path / "run").mkdir()
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(run_ranks, run, 1, settings)
        assert run(follower, "only_evaluate") == 0
        assert job.result() == [0]
    lines = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    found = {line["step"]: line["filtered.mrr"] for line in lines}
    assert len(found) == len(lines)
    assert set(found) <= {18, 36, 54}
    assert 54 in found
    assert found[54] == pytest.approx(evaluations(tmp_path / "run")[54]["filtered.mrr"], abs=1e-12)


def test_max_edges_and_num_candidates_make_evaluation_smaller(graph, tmp_path):
    settings = _evaluated(graph, tmp_path / "run", evaluation={"max_edges": 40, "num_candidates": 50})
    assert run(settings) == 0
    metrics = evaluations(tmp_path / "run")[54]
    assert metrics["sampled@50.num_edges"] == 40
    assert 0 < metrics["sampled@50.filtered.mrr"] < 1


def test_precision_of_the_ranking_comes_from_the_config(graph, tmp_path):
    settings = _evaluated(graph, tmp_path / "run", evaluation={"precision": "bf16"})
    assert run(settings) == 0
    rounded = evaluations(tmp_path / "run")[54]["filtered.mr"]
    assert run(merged(settings, {"evaluation": {"precision": "fp32"}}), "evaluate") == 0
    exact = reported(tmp_path / "run", "validation")["metrics"]["filtered.mr"]
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


def test_offset_and_limit_choose_edges(graph, tmp_path):
    settings = tiny_settings(graph, tmp_path / "run", train_data={"offset": 100, "limit": 800, "shuffle": False})
    batches = iter(_twhin_run(settings).data)
    found = [edge for _ in range(2) for edge in sorted(edges_of(next(batches), 20))]
    batches.close()
    from tests.projects.twhin.tiny import read_edges_of

    expected = read_edges_of(graph.train)[100:900]
    assert found == sorted(expected[:400]) + sorted(expected[400:])


def test_tables_of_one_row_and_unused_rows_do_no_harm(graph, tmp_path):
    settings = _evaluated(graph, tmp_path / "run", training={"num_epochs": 1})
    lonely = settings["model"]["embeddings"]["tables"][0] | {"name": "lonely", "num_embeddings": 1}
    settings["model"]["embeddings"]["tables"].append(lonely)
    settings["model"]["relations"].append({"name": "visits", "lhs": "user", "rhs": "lonely"})
    assert run(settings) == 0
    weight = final_tensors(tmp_path / "run")["tables.user+tweet+lonely.weight"]
    assert weight.shape == (NUM_USERS + NUM_TWEETS + 1, 16)
    assert weight.isfinite().all()
