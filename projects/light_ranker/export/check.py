"""The self-check: a reloaded export must score like the model it was made of.

Letters: `B` rows, `C` continuous features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from tml.common.batch import Cursor
from tml.common.errors import CheckpointError
from tml.common.modules.calibrators import Isotonic
from tml.core.metrics.auc import roc_auc
from tml.projects.light_ranker.data.batch import RankerBatch
from tml.projects.light_ranker.export.graph import LOGIT, PROBABILITY
from tml.projects.light_ranker.export.rows import CheckRows
from tml.projects.light_ranker.models.build import Ranker
from tml.projects.light_ranker.models.mlp import WATCH_TIME
from tml.projects.light_ranker.serving.session import open_graph

Outputs = dict[str, NDArray[np.float32]]
# Of the probability before the calibration: what the order of float32 sums may make of it.
_ROUNDING = 1e-5


class ExportedGraph:
    """A graph read back from its file.

    Args:
        path: of the graph; its tables lie beside it.
    """

    def __init__(self, path: Path) -> None:
        self.session: onnxruntime.InferenceSession = open_graph(path, num_threads=1)
        self.names = {value.name for value in self.session.get_inputs()}

    def of_rows(self, rows: CheckRows) -> Outputs:
        """Scores `[B]` of rows with a user each."""
        return self._run(rows.inputs("user") | rows.inputs("candidate"))

    def of_request(self, rows: CheckRows) -> Outputs:
        """Scores `[B]` of all rows' candidates for the first row's user."""
        user = {name: values[:1] for name, values in rows.inputs("user").items()}
        return self._run(user | rows.inputs("candidate"))

    def _run(self, inputs: dict[str, Any]) -> Outputs:
        names = [value.name for value in self.session.get_outputs()]
        feed = {name: values for name, values in inputs.items() if name in self.names}
        return dict(zip(names, self.session.run(names, feed), strict=True))


@torch.no_grad()
def trainer_scores(model: Ranker, isotonic: Isotonic | None, rows: CheckRows) -> Outputs:
    """What the model itself says: logits, raw probabilities, calibrated ones, log(1 + seconds); `[B]` each."""
    continuous, size = torch.from_numpy(rows.continuous), len(rows)
    arranged = model.slots.arrange(rows.ids, continuous)
    batch = RankerBatch(
        nodes=arranged.nodes,
        ids=arranged.ids,
        slot_mask=arranged.slot_mask,
        continuous=continuous,
        vectors=torch.from_numpy(rows.vectors),
        labels=torch.zeros(size, len(rows.spec.labels)),
        weight=torch.ones(size),
        group=torch.zeros(size, dtype=torch.int64),
        is_real=torch.ones(size, dtype=torch.bool),
        num_examples=size,
        cursor=Cursor(0, 0),
    )
    was_training = model.training
    outputs = model.eval()(batch)[1]
    model.train(was_training)
    raw = outputs["probabilities"]
    found = {"raw": raw, LOGIT: outputs["logits"], PROBABILITY: raw if isotonic is None else isotonic(raw)}
    if "watch_time_prediction" in outputs:
        found[WATCH_TIME] = outputs["watch_time_prediction"].clamp_min(0.0)
    return {name: values.float().numpy() for name, values in found.items()}


def compare(
    graph: ExportedGraph, model: Ranker, isotonic: Isotonic | None, samples: Iterable[CheckRows]
) -> dict[str, float]:
    """The largest differences between a graph and its model.

    Returns:
        `num_rows`; `probability`, `logit` and, if it is predicted, `watch_time` (of log(1 + seconds)): largest
        absolute differences; `beyond_calibration`, which the limit judges: by how much a probability leaves the band of
        calibrated values of raw probabilities within 1e-5, as a steep calibration turns rounding into something that
        can be seen.
    """
    found = {"num_rows": 0.0, PROBABILITY: 0.0, "beyond_calibration": 0.0}
    for rows in samples:
        one_user = _with_one_user(rows)
        for expected, scores in (
            (trainer_scores(model, isotonic, rows), graph.of_rows(rows)),
            (trainer_scores(model, isotonic, one_user), graph.of_request(rows)),
        ):
            _widen(found, expected, scores, isotonic)
        found["num_rows"] += 2 * len(rows)
    return found


def refuse_difference(found: dict[str, float], limit: float, where: object) -> None:
    """Refuse an export that scores differently.

    Raises:
        CheckpointError: a score differs from the trainer's by more than `limit`.
    """
    for name in ("beyond_calibration", WATCH_TIME):
        difference = found.get(name, 0.0)
        if not difference <= limit:
            raise CheckpointError(
                f"the exported graph does not score like the model ({'probability' if name != WATCH_TIME else name})",
                where=where, value=difference, limit=f"a difference of {limit:g} over {found['num_rows']:,.0f} rows",
                fix="nothing was written; raise export.max_abs_difference if this is good enough, or report a fault",
            )  # fmt: skip


def described(found: dict[str, float], limit: float, isotonic: Isotonic | None) -> str:
    """What `compare` found, in a sentence that says what the limit is held against."""
    near = f"probabilities within {found[PROBABILITY]:.1e} of the trainer's over {found['num_rows']:,.0f} rows"
    if isotonic is None:
        return f"{near} (limit {limit:.0e})"
    return (
        f"{near}, where steps of the isotonic calibration show a rounding of {_ROUNDING:.0e} before them; "
        f"{found['beyond_calibration']:.1e} beyond that (limit {limit:.0e})"
    )


def auc_of(graph: ExportedGraph, samples: Iterable[CheckRows], label: int) -> float:
    """Weighted area under the ROC curve over rows with labels, by logit; NaN if a class is missing."""
    columns = [(graph.of_rows(rows)[LOGIT], rows.labels[:, label], rows.weight) for rows in samples]
    scores, labels, weights = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*columns, strict=True))
    return float(roc_auc(scores, labels > 0, weights.double()))


def spread(graph: ExportedGraph, other: ExportedGraph, rows: CheckRows) -> dict[str, float]:
    """How far two graphs' probabilities lie apart over some rows: the largest and the mean absolute difference."""
    difference = np.abs(graph.of_rows(rows)[PROBABILITY] - other.of_rows(rows)[PROBABILITY])
    return {"max_abs_difference": float(difference.max()), "mean_abs_difference": float(difference.mean())}


def _widen(found: dict[str, float], expected: Outputs, scores: Outputs, isotonic: Isotonic | None) -> None:
    for name, values in scores.items():
        values = np.log1p(values) if name == WATCH_TIME else values
        # NaN compares as false everywhere, so it has to become a difference itself.
        difference = np.nan_to_num(np.abs(values.astype(np.float64) - expected[name]), nan=np.inf)
        found[name] = max(found.get(name, 0.0), float(difference.max(initial=0.0)))
    low, high = (_calibrated(isotonic, expected["raw"] + step) for step in (-_ROUNDING, _ROUNDING))
    outside = np.maximum(low - scores[PROBABILITY], scores[PROBABILITY] - high)
    outside = np.nan_to_num(outside, nan=np.inf)
    found["beyond_calibration"] = max(found["beyond_calibration"], float(outside.max(initial=0.0)))


def _calibrated(isotonic: Isotonic | None, raw: NDArray[np.float32]) -> NDArray[np.float32]:
    return raw if isotonic is None else isotonic(torch.from_numpy(raw)).numpy()


def _with_one_user(rows: CheckRows) -> CheckRows:
    """The same rows with the first one's user side."""
    return dataclasses.replace(
        rows,
        ids=np.where(rows.is_of_side("ids", "user"), rows.ids[:1], rows.ids),
        continuous=np.where(rows.is_of_side("continuous", "user"), rows.continuous[:1], rows.continuous),
        vectors=np.where(rows.is_of_side("vectors", "user"), rows.vectors[:1], rows.vectors),
    )
