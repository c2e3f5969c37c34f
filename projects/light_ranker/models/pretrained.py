"""Embeddings that were trained elsewhere as features: the tables of a `tml twhin export` folder.

Row 0 (missing) is zero and row 1 (unknown) the mean of the known rows; known rows follow the order of the feature's
ids.
"""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tml.common.device import world_size
from tml.common.errors import DataError
from tml.projects.light_ranker.features.spec import FIRST_KNOWN, MISSING, UNKNOWN, IdFeature


def read_pretrained(feature: IdFeature) -> Tensor:
    """float32 `[num_rows, D]`: the rows of a feature whose `embedding` is `<export folder>#<table>`.

    Raises:
        DataError: the file is missing or damaged, or has another number of ids than the feature.
    """
    assert feature.embedding is not None
    folder, _, table = feature.embedding.rpartition("#")
    path = os.path.join(folder, "embeddings", f"{table}.parquet")
    vectors = _read_vectors(path)
    if len(vectors) + FIRST_KNOWN != feature.num_rows:
        raise DataError(
            "a pretrained table and its feature differ in length",
            where=f"{path} and feature {feature.name!r}",
            value=f"{len(vectors)} embeddings, {feature.num_rows - FIRST_KNOWN} ids",
            fix="prepare the data again with this export",
        )
    rows = np.zeros((feature.num_rows, vectors.shape[1]), np.float32)
    rows[FIRST_KNOWN:] = vectors
    if len(vectors):
        rows[UNKNOWN] = vectors.mean(0, dtype=np.float64)
    rows[MISSING] = 0.0
    return torch.from_numpy(rows)


def has_sparse_gradients() -> bool:
    """Whether a big table outside the kernels may have sparse gradients: replicas of several ranks exchange dense ones
    only. The update is the same, but for lazy_adam, which is Adam then."""
    return world_size() == 1


def _read_vectors(path: str) -> np.ndarray:
    try:
        column = pq.read_table(path, columns=["embedding"]).column("embedding").combine_chunks()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(
            "pretrained embeddings cannot be read", where=path, value=str(error),
            fix="write them with `tml twhin export`, and name the feature's embedding <folder>#<table>",
        ) from error  # fmt: skip
    vectors = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    if not len(column) or len(vectors) % len(column) or not np.isfinite(vectors).all():
        raise DataError(
            "pretrained embeddings are not whole", where=path, value=f"{len(column)} rows, {len(vectors)} values",
            limit="finite vectors of one length", fix="export the tables again",
        )  # fmt: skip
    return vectors.reshape(len(column), -1)
