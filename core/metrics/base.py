"""What all metrics share: they read named outputs, choose their task and stratum, and say when they are undefined.

A metric is updated with the mapping of outputs that the model returns for a batch, and `compute()` reduces over ranks:
every rank must call it, for the same metrics in the same order.

Letters: `B` rows of a batch, `T` tasks.

    metrics = metric_collection({"auc": Auc(), "auc_of_fav": Auc(stratifier=Stratifier("relation", 0))})
    for batch in batches:
        _, outputs = model(batch)
        metrics.update(outputs)
    values = metrics.compute()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torchmetrics
from torch import Tensor

from tml.common.errors import ConfigError, DataError, NonFiniteError
from tml.ml_logging import get_logger, warn_once

logger = get_logger(__name__)


@dataclass(frozen=True)
class Stratifier:
    """Chooses the rows where `outputs["stratifiers"][name]` ([B]) equals `value`."""

    name: str
    value: int | float


class OutputMetric(torchmetrics.Metric):
    """A metric over the rows of one task and one stratum of a model's outputs.

    Outputs are tensors of shape [B], or [B, T] with a column for each task. `outputs["weights"]`, [B] or [B, T], is
    optional and means ones; `outputs["unweighted"]` [B] is optional, 1 for a row and 0 for padding that only fills a
    batch, which no metric sees; `outputs["stratifiers"]` maps names to tensors [B].

    A metric without a value, such as the AUC of no rows, is NaN; the log says why, once.

    Args:
        task_idx: column to look at; None where the outputs have a single task.
        stratifier: rows to look at; None for all.
        weighted: False counts every row once, whatever its weight.
        settings: for `torchmetrics.Metric`.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(
        self,
        *,
        task_idx: int | None = None,
        stratifier: Stratifier | None = None,
        weighted: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.task_idx = task_idx
        self.stratifier = stratifier
        self.weighted = weighted

    def add_sums(self, *names: str) -> None:
        """Adds scalar states that are summed over batches and ranks, in float64: float32 stops counting at 2 ** 24."""
        for name in names:
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def select(self, outputs: Mapping[str, Any], *names: str) -> list[Tensor]:
        """Returns the named outputs and the weights of this metric's task and stratum.

        Returns:
            One tensor [rows] per name, and the weights as float64 [rows].

        Raises:
            ConfigError: an output or stratifier is not there.
            DataError: shapes do not fit, or a weight is negative.
            NonFiniteError: an output or weight of this task is NaN or infinite.
        """
        columns = [self._column(outputs, name) for name in names]
        columns.append(self._weights(outputs, columns[0]))
        for name, column in zip((*names, "weights"), columns, strict=True):
            self._check(name, column, len(columns[0]))
        chosen = self._chosen(outputs, len(columns[0]))
        return columns if chosen is None else [column[chosen] for column in columns]

    def undefined(self, reason: str) -> Tensor:
        """Returns NaN, and says why the first time."""
        warn_once(logger, f"{self._place()} has no value for the rows evaluated, NaN is reported: {reason}")
        return torch.tensor(torch.nan, dtype=torch.float64, device=self.device)

    def _column(self, outputs: Mapping[str, Any], name: str) -> Tensor:
        output = self._find(outputs, name, "the model's outputs").detach()
        if self.task_idx is None and output.dim() == 2 and output.shape[1] == 1:
            return output[:, 0]
        if self.task_idx is not None and output.dim() == 2 and 0 <= self.task_idx < output.shape[1]:
            return output[:, self.task_idx]
        if self.task_idx is None and output.dim() == 1:
            return output
        raise DataError(
            "output has no column for this metric's task",
            where=f"{self._place()}, output {name!r}",
            value=tuple(output.shape),
            limit="[B] without task_idx, or [B, T] with 0 <= task_idx < T",
            fix="set task_idx, or return one column for each task",
        )

    def _weights(self, outputs: Mapping[str, Any], like: Tensor) -> Tensor:
        weights = outputs.get("weights")
        if weights is None or not self.weighted:
            return torch.ones(like.shape, dtype=torch.float64, device=like.device)
        column = weights.detach() if weights.dim() == 1 else self._column(outputs, "weights")
        return column.to(torch.float64)

    def _chosen(self, outputs: Mapping[str, Any], num_rows: int) -> Tensor | None:
        """The rows that are no padding and lie in the stratum; None for all."""
        rows = outputs.get("unweighted")
        if rows is not None:
            self._check_length("output 'unweighted'", len(rows), num_rows)
            rows = rows.detach() > 0
        if self.stratifier is None:
            return rows
        stratum = self._stratum(outputs, self.stratifier, num_rows)
        return stratum if rows is None else stratum & rows

    def _stratum(self, outputs: Mapping[str, Any], stratifier: Stratifier, num_rows: int) -> Tensor:
        values = self._find(outputs.get("stratifiers", {}), stratifier.name, "outputs['stratifiers']").flatten()
        self._check_length(f"stratifier {stratifier.name!r}", len(values), num_rows)
        return values == stratifier.value

    def _find(self, outputs: Mapping[str, Any], name: str, holder: str) -> Tensor:
        if name not in outputs:
            raise ConfigError(
                f"metric needs {name!r}",
                where=f"{self._place()}, {holder}",
                value=sorted(outputs),
                fix=f"let the model return {name!r}, or leave the metric out",
            )
        output: Tensor = outputs[name]
        return output

    def _check(self, name: str, column: Tensor, num_rows: int) -> None:
        self._check_length(f"output {name!r}", len(column), num_rows)
        bad = ~torch.isfinite(column) if column.is_floating_point() else torch.zeros_like(column, dtype=torch.bool)
        error: type[DataError | NonFiniteError] = NonFiniteError
        what, limit = "metric was given NaN or infinity", "finite"
        if name == "weights" and not bad.any():
            bad, error, what, limit = column < 0, DataError, "metric was given a negative weight", "at least 0"
        if bad.any():
            row = int(bad.nonzero()[0])
            raise error(
                what,
                where=f"{self._place()}, output {name!r}, row {row} of the batch",
                value=column[row].item(),
                limit=limit,
                fix="look for the step at which training diverged, or for bad input in this batch",
            )

    def _check_length(self, name: str, length: int, num_rows: int) -> None:
        if length != num_rows:
            raise DataError(
                "outputs have different numbers of rows",
                where=f"{self._place()}, {name}",
                value=length,
                limit=num_rows,
                fix="return one value for each row of the batch",
            )

    def _place(self) -> str:
        task = "" if self.task_idx is None else f" of task {self.task_idx}"
        stratum = "" if self.stratifier is None else f" where {self.stratifier.name} is {self.stratifier.value}"
        return f"{type(self).__name__}{task}{stratum}"


def metric_collection(metrics: Mapping[str, torchmetrics.Metric]) -> torchmetrics.MetricCollection:
    """Bundles metrics by name.

    torchmetrics would otherwise merge metrics whose states are equal after the first batch, such as those of two strata
    that are both still empty: from then on one of them would report the other's value.
    """
    return torchmetrics.MetricCollection(dict(metrics), compute_groups=False)
