"""Rows for the tests of metrics, and a metric's value of them."""

from itertools import pairwise

import numpy as np
import torch


def value(metric, *batches, **outputs):
    for batch in batches or (outputs,):
        metric.update({name: to_tensor(column) for name, column in batch.items()})
    return metric.compute().item()


def to_tensor(column):
    if isinstance(column, dict):
        return {name: torch.as_tensor(values) for name, values in column.items()}
    return torch.as_tensor(column)


def random_rows(num_rows=300, seed=0, num_levels=20):
    """Rows with many tied probabilities (of `num_levels` levels) and uneven weights."""
    rng = np.random.default_rng(seed)
    return {
        "probabilities": ((rng.integers(0, num_levels, num_rows) + 0.5) / num_levels).astype(np.float32),
        "labels": rng.integers(0, 2, num_rows),
        "weights": rng.integers(0, 5, num_rows).astype(np.float32) / 2,
    }


def batches_of(rows, *cuts):
    edges = [0, *cuts, len(rows["labels"])]
    return [{k: v[a:b] for k, v in rows.items()} for a, b in pairwise(edges)]
