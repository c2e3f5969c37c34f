"""The loss of one step and its update of every table and relation equal a definition in plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.projects.twhin.tiny import config_of, write_edges
from tests.runs import Settings
from tml.projects.twhin.models.live_tables import embedding_source, head_of
from tml.projects.twhin.run import build_run

OPERATORS = ("identity", "translation", "diagonal", "complex_diagonal")
COMPARATORS = ("dot", "cosine", "l2")
LOSSES = ("softmax", "logistic", "ranking")


def _moved(operator: str, x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    if operator == "identity":
        return x
    if operator == "translation":
        return x + params
    if operator == "diagonal":
        return x * params
    product_ = torch.complex(*x.chunk(2)) * torch.complex(*params.chunk(2))
    return torch.cat([product_.real, product_.imag])


def _compared(comparator: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if comparator == "dot":
        return a @ b
    if comparator == "cosine":
        return F.cosine_similarity(a, b, dim=0)
    return -(a - b).norm()


def _edge_loss(loss: str, positive: torch.Tensor, negatives: list[torch.Tensor], margin: float) -> torch.Tensor:
    if not negatives:
        return F.softplus(-positive) if loss == "logistic" else 0 * positive  # the softmax of one score is one
    negative = torch.stack(negatives)
    if loss == "softmax":
        return -torch.log_softmax(torch.cat([positive[None] - margin, negative]), dim=0)[0]
    if loss == "logistic":
        return F.softplus(-positive) + F.softplus(negative).mean()
    return F.relu(margin - positive + negative).mean()


def _penalty(kind: str, operator: str, parts: list[torch.Tensor]) -> torch.Tensor:
    if kind == "l2":
        return sum(part.square().sum() for part in parts)  # type: ignore[return-value]
    if operator == "complex_diagonal":
        parts = [torch.complex(*part.chunk(2)) for part in parts]
    return sum(part.abs().pow(3).sum() for part in parts)  # type: ignore[return-value]


def _loss_by_definition(batch: Any, config: Any, rows: dict[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    """The loss of a batch, edge by edge and candidate by candidate."""
    model, data = config.model, config.train_data
    size, num_global, in_batch = data.edges_per_chunk, data.global_negatives, data.in_batch_negatives
    relations = model.relations
    total = torch.zeros(())
    for ids, rels, weights in zip(batch.node_ids.tolist(), batch.rel.tolist(), batch.weight.tolist(), strict=True):
        half = size + num_global
        filled = [w > 0 for w in weights]
        lhs, rhs = ids[:size], ids[half : half + size]
        edges = {(lhs[c], rels[c], rhs[c]) for c in range(size) if filled[c]}
        in_reach = [c for c in range(size - in_batch, size) if filled[c]]
        lhs_candidates = [lhs[c] for c in in_reach] + ids[size:half]
        rhs_candidates = [rhs[c] for c in in_reach] + ids[half + size :]
        for c in (c for c in range(size) if filled[c]):
            relation = relations[rels[c]]
            lhs_row, rhs_row = rows[relation.lhs][lhs[c]], rows[relation.rhs][rhs[c]]
            params = weight[rels[c]]
            inverse = weight[rels[c] + len(relations)] if model.reciprocal_relations else None

            def score(left, right, row=params, operator=relation.operator):
                return _compared(model.comparator, _moved(operator, left, row), right)

            rhs_negatives = [
                score(lhs_row, rows[relation.rhs][t])
                for t in rhs_candidates if (lhs[c], rels[c], t) not in edges
            ]  # fmt: skip
            lhs_rows = [rows[relation.lhs][t] for t in lhs_candidates if (t, rels[c], rhs[c]) not in edges]
            if inverse is None:
                lhs_positive, lhs_negatives = score(lhs_row, rhs_row), [score(row, rhs_row) for row in lhs_rows]
            else:
                lhs_positive = score(rhs_row, lhs_row, inverse)
                lhs_negatives = [score(rhs_row, row, inverse) for row in lhs_rows]
            loss = 0.5 * (
                _edge_loss(model.loss, score(lhs_row, rhs_row), rhs_negatives, model.margin or 0.0)
                + _edge_loss(model.loss, lhs_positive, lhs_negatives, model.margin or 0.0)
            )
            if model.regularization is not None:
                used = [params, inverse][: 1 if inverse is None else 2]
                penalties = [
                    _penalty(
                        model.regularization.kind, relation.operator,
                        [lhs_row, rhs_row] + ([] if relation.operator == "identity" else [row]),
                    )
                    for row in used
                ]  # fmt: skip
                loss = loss + model.regularization.weight * sum(penalties) / len(penalties)
            total = total + relation.weight * loss
    return total / batch.num_examples


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("comparator", COMPARATORS)
@pytest.mark.parametrize("reciprocal", [False, True])
def test_loss_and_update_of_one_step_equal_the_definition(loss, comparator, reciprocal, tmp_path):
    """All four operators over two tables of few rows, so that negatives hit positives and nodes repeat."""
    generator = np.random.default_rng(3)
    edges = np.stack([generator.integers(0, 9, 40), generator.integers(0, 4, 40), generator.integers(0, 7, 40)], axis=1)
    write_edges(tmp_path / "graph" / "train" / "part.parquet", edges)
    names = zip(OPERATORS, ("a", "b", "b", "a"), strict=True)
    settings: Settings = {
        "model": {
            "embeddings": {
                "tables": [
                    {"name": name, "num_embeddings": rows, "embedding_dim": 4, "init_scale": 0.7,
                     "optimizer": {"sgd": {"learning_rate": 0.1}}}
                    for name, rows in (("a", 9), ("b", 9))
                ]
            },
            "relations": [
                {"name": operator, "lhs": "a", "rhs": rhs, "operator": operator, "weight": 1.0 + number}
                for number, (operator, rhs) in enumerate(names)
            ],
            "comparator": comparator,
            "loss": loss,
            "margin": None if loss == "logistic" else 0.3,
            "reciprocal_relations": reciprocal,
            "regularization": {"kind": "n3" if reciprocal else "l2", "weight": 0.05},
            "translation_optimizer": {"sgd": {"learning_rate": 0.1}},
        },
        "train_data": {
            "data_root": str(tmp_path / "graph" / "train"), "global_batch_size": 40,
            "in_batch_negatives": 3, "global_negatives": 4, "chunk_size": 5,
        },
    }  # fmt: skip
    trained = build_run(config_of(settings), torch.device("cpu"))
    head, weight = head_of(trained.model), head_of(trained.model).scorer.weight
    with torch.no_grad():
        weight += 0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    source = embedding_source(trained.model, torch.device("cpu"))
    rows = {name: source.full(name).clone().requires_grad_() for name in ("a", "b")}
    start = weight.detach().clone().requires_grad_()
    batch = next(iter(trained.data))
    expected = _loss_by_definition(batch, trained.config, rows, start)
    expected.backward()

    trained.optimizers.zero_grad()
    trained.optimizers.set_learning_rates(0)
    found, _ = trained.model(batch)
    found.backward()
    trained.optimizers.step()

    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(head.scorer.weight.detach(), start.detach() - 0.1 * start.grad, rtol=1e-4, atol=1e-5)
    source = embedding_source(trained.model, torch.device("cpu"))
    for name, table in rows.items():
        torch.testing.assert_close(source.full(name), table.detach() - 0.1 * table.grad, rtol=1e-4, atol=1e-5)
