"""Held-out rows of a run in memory, and a trained model's metrics on them or on changed copies of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from tml.common.errors import ConfigError
from tml.common.modules.calibrators import Isotonic
from tml.common.reader import joined_columns
from tml.core.config.base_config import did_you_mean
from tml.core.custom_training_loop import evaluate
from tml.projects.light_ranker.config import TrainDataConfig
from tml.projects.light_ranker.data.batch import RankerBatch
from tml.projects.light_ranker.data.dataset import Share, open_reader
from tml.projects.light_ranker.features.encoder import EncodedRows
from tml.projects.light_ranker.importance import Columns, Evaluate
from tml.projects.light_ranker.in_memory import batch_in_memory
from tml.projects.light_ranker.metrics import RankerMetrics
from tml.projects.light_ranker.phases import TrainedRanker


class HeldOutRows:
    """Encoded rows that a model was not trained on.

    Rows are drawn by the seed, but come in the order of the files if the data has groups, which stay together.

    Args:
        trained: the model and its run.
        split: `validation` or `test`.
        num_rows: of them, at most.
        seed: of the draw.

    Attributes:
        columns: encoded column -> values [B].
        features: feature -> its columns.

    Raises:
        ConfigError: the run has no such rows.
    """

    def __init__(self, trained: TrainedRanker, split: str, num_rows: int, seed: int) -> None:
        section = trained.config.validation_data if split == "validation" else trained.config.test_data
        if section is None:
            raise ConfigError("the run has no such rows", where=f"{split}_data", fix="choose the other split")
        self._trained = trained
        self._isotonic = None if trained.isotonic is None else Isotonic.from_dict(trained.isotonic["click"])
        spec = trained.spec
        drawn = TrainDataConfig(**section.model_dump(), global_batch_size=num_rows, shuffle=not spec.has_group)
        self.columns = dict(next(iter(open_reader(drawn, spec, Share(num_rows, seed)))).columns)
        self.features = {feature.name: tuple(feature.columns()) for feature in spec.features}

    def measure(self, metric: str) -> Evaluate:
        """A function from columns to the model's metric on them."""

        def performance(columns: Columns) -> float:
            found = self.metrics(columns)
            if metric not in found:
                raise ConfigError(f"unknown metric{did_you_mean(metric, found)}", where="--metric", value=metric)
            return found[metric]

        return performance

    def metrics(self, columns: Columns) -> dict[str, float]:
        """All metrics of the model on columns such as `self.columns`."""
        config, model = self._trained.config, self._trained.model
        metrics = RankerMetrics(config.evaluation, config.loss, self._trained.spec, self._isotonic)
        return evaluate(model, self._batches(columns, config.evaluation.batch_size), metrics, torch.device("cpu"))

    def _batches(self, columns: Columns, batch_size: int) -> Iterator[RankerBatch]:
        num_rows = len(columns["w"])
        for start in range(0, num_rows, batch_size):
            yield self._batch({name: values[start : start + batch_size] for name, values in columns.items()})

    def _batch(self, columns: Mapping[str, np.ndarray]) -> RankerBatch:
        spec = self._trained.spec

        def joined(names: list[str], dtype: type) -> np.ndarray:
            return joined_columns(columns, names, np.dtype(dtype), len(columns["w"]))

        rows = EncodedRows(
            joined([name for feature in spec.ids for name in feature.columns()], np.int64),
            joined([name for feature in spec.continuous for name in feature.columns()], np.float32),
            joined([name for feature in spec.vectors for name in feature.columns()], np.float32),
        )
        labels = joined([f"y.{label.name}" for label in spec.labels], np.float32)
        group = columns["group"] if spec.has_group else None
        return batch_in_memory(spec, self._trained.model.slots, rows, labels, columns["w"], group)
