"""Metrics of a binary classifier by the names of the original light ranker, with the variants its prefixes ask for.

    metrics = build_metrics(["rce", "roc_auc", "unweighted_roc_auc", "uncalibrated_rce", "ndcg@10"])

`unweighted_` counts every row once; `uncalibrated_` reads the predictions as they were before isotonic calibration.

Memory: `nrce`, `arce`, `arce_original`, `roc_auc`, `pr_auc` and `ece_equal_mass` are exact and keep 12 bytes for each
row, each metric on its own; `ndcg@k` keeps 20. `compute()` brings the rows of all ranks to every rank and works on them
in float64, one metric after the other, with about 100 bytes a row more (130 for NDCG). Ten million rows with the
default list, which has four such metrics, come to 0.5 GB, and 1.5 GB at the end. All others keep a few hundred numbers
at most; `roc_auc_200` and `pr_auc_200` stand in for the exact areas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tml.common.errors import ConfigError
from tml.core.config.base_config import did_you_mean
from tml.core.metrics.probabilities import TWML_EPSILON

if TYPE_CHECKING:
    import torchmetrics

    from tml.core.metrics.base import OutputMetric
    from tml.core.metrics.classification import Statistic

DEFAULT_METRICS = (
    "total_weight",
    "num_samples",
    "rce",
    "rce_std_err",
    "nrce",
    "arce",
    "ctr",
    "predicted_ctr",
    "pred_std_dev",
    "accuracy",
    "precision",
    "recall",
    "roc_auc",
    "pr_auc",
)
"""What the original reports when nothing is asked for."""

UNWEIGHTED, UNCALIBRATED = "unweighted_", "uncalibrated_"


@dataclass(frozen=True)
class Entry:
    """One name of the catalogue.

    Attributes:
        build: makes the metric from settings of `OutputMetric` and, where it is read, `prediction`.
        reads_prediction: whether it looks at the calibrated predictions, so `uncalibrated_` means something.
        reads_weights: whether weights matter to it, so `unweighted_` means something.
    """

    build: Callable[..., OutputMetric]
    reads_prediction: bool = True
    reads_weights: bool = True


def build_metrics(
    names: Sequence[str] = DEFAULT_METRICS,
    epsilon: float = TWML_EPSILON,
    threshold: float = 0.5,
    **settings: Any,
) -> torchmetrics.MetricCollection:
    """Builds metrics by name.

    | names | what |
    |---|---|
    | total_weight, num_samples, ctr | of the rows |
    | predicted_ctr, pred_std_dev | of the predictions |
    | rce, rce_std_err, nrce, lolly_nrce, arce, arce_original | relative cross-entropies, in per cent |
    | roc_auc, pr_auc, roc_auc_200, pr_auc_200 | areas, exact or over the original's 200 thresholds |
    | accuracy, precision, recall, tp, fp, tn, fn | at a threshold |
    | the same with `_at_percentiles` | at thresholds 0, .01, ..., 1: a vector |
    | ndcg@k | by `outputs["groups"]`, any k |
    | ece, ece_equal_mass | expected calibration error, 15 bins |
    | mse, mae | of probabilities against labels; mse is the Brier score |
    | watch_time_mse, watch_time_mae | of `watch_time_prediction` against `watch_time_label`, as the model gives them |
    | watch_time_mae_seconds, watch_time_mse_seconds | the same, out of logarithms of one plus seconds |
    | lolly_tf_score_mse | of probabilities against `lolly_probabilities`, every row counting once |

    `mse`, `accuracy` and all others take the prefixes `unweighted_` and `uncalibrated_`, in any order, where they would
    change something. Predictions are `outputs["probabilities"]`, or `outputs["uncalibrated_probabilities"]`.

    Args:
        names: each once.
        epsilon: probabilities in relative cross-entropies are clipped to `[epsilon, 1 - epsilon]`.
        threshold: of the metrics at one threshold.
        settings: of every metric, such as `task_idx` or `stratifier`; see `OutputMetric`.

    Raises:
        ConfigError: a name is unknown or repeated, or a prefix would change nothing.
    """
    from tml.core.metrics.base import metric_collection

    check_names(names)
    entries = _entries(epsilon, threshold)
    return metric_collection({name: _build(name, entries, settings) for name in names})


def check_names(names: Sequence[str]) -> None:
    """Refuse what `build_metrics` would refuse, without importing the metrics.

    Raises:
        ConfigError: a name is unknown or repeated, or a prefix would change nothing.
    """
    entries = _entries(TWML_EPSILON, 0.5)
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise ConfigError("metric is named twice", where="metrics", value=repeated, fix="name each metric once")
    for name in names:
        _parse(name, entries)


def higher_is_better(name: str) -> bool | None:
    """Returns in which direction a metric of the catalogue improves; None where neither is better, as for counts.

    Raises:
        ConfigError: the name is unknown.
    """
    return _build(name, _entries(TWML_EPSILON, 0.5), {}).higher_is_better


def scalars(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Returns the values of a collection as floats; an entry of a vector is named `<name>/<place in per cent>`.

    Args:
        values: scalars, or vectors of 101 entries, by name.
    """
    flat: dict[str, float] = {}
    for name, value in values.items():
        if value.dim() == 0:
            flat[name] = float(value)
        else:
            flat |= {f"{name}/{place:03d}": entry for place, entry in enumerate(value.tolist())}
    return flat


def _build(name: str, entries: Mapping[str, Entry], settings: Mapping[str, Any]) -> OutputMetric:
    entry, prefixes = _parse(name, entries)
    chosen = dict(settings)
    if UNWEIGHTED in prefixes:
        chosen["weighted"] = False
    if entry.reads_prediction:
        chosen["prediction"] = f"{UNCALIBRATED}probabilities" if UNCALIBRATED in prefixes else "probabilities"
    return entry.build(**chosen)


def _parse(name: str, entries: Mapping[str, Entry]) -> tuple[Entry, list[str]]:
    base, prefixes = _without_prefixes(name)
    entry = _find(name, base, entries)
    _check_prefixes(name, prefixes, entry)
    return entry, prefixes


def _without_prefixes(name: str) -> tuple[str, list[str]]:
    prefixes: list[str] = []
    for _ in range(2):
        for prefix in (UNWEIGHTED, UNCALIBRATED):
            if name.startswith(prefix) and prefix not in prefixes:
                name = name.removeprefix(prefix)
                prefixes.append(prefix)
    return name, prefixes


def _find(name: str, base: str, entries: Mapping[str, Entry]) -> Entry:
    if base in entries:
        return entries[base]
    stem, at, k = base.partition("@")
    if stem == "ndcg" and at and k.isdecimal() and int(k) > 0:
        return Entry(_metric("ndcg", "Ndcg", int(k)))
    raise ConfigError(
        f"unknown metric{did_you_mean(base, [*entries, 'ndcg@10'])}",
        where="metrics",
        value=name,
        fix="correct the name; it may have the prefixes unweighted_ and uncalibrated_",
    )


def _check_prefixes(name: str, prefixes: Sequence[str], entry: Entry) -> None:
    useless = [
        prefix
        for prefix, read in ((UNWEIGHTED, entry.reads_weights), (UNCALIBRATED, entry.reads_prediction))
        if prefix in prefixes and not read
    ]
    if useless:
        raise ConfigError(
            f"{useless[0]} would change nothing",
            where="metrics",
            value=name,
            limit="unweighted_ where weights count, uncalibrated_ where probabilities are read",
            fix=f"name it {name.replace(useless[0], '')}",
        )


def _metric(module: str, name: str, *arguments: Any, **settings: Any) -> Callable[..., OutputMetric]:
    # Imported on use: torchmetrics takes longer than torch, and a run needs only names before its first evaluation.
    def build(**more: Any) -> OutputMetric:
        made: OutputMetric = getattr(import_module(f"tml.core.metrics.{module}"), name)(*arguments, **settings, **more)
        return made

    return build


def _entries(epsilon: float, threshold: float) -> dict[str, Entry]:
    lolly: dict[str, Any] = {"target": "lolly_probabilities", "weighted": False}
    entries = {
        "total_weight": Entry(_metric("mean", "TotalWeight"), reads_prediction=False),
        "num_samples": Entry(_metric("mean", "NumSamples"), reads_prediction=False, reads_weights=False),
        "ctr": Entry(_metric("mean", "Ctr"), reads_prediction=False),
        "predicted_ctr": Entry(_metric("mean", "Pctr")),
        "pred_std_dev": Entry(_metric("mean", "PredictionStdDev")),
        "rce": Entry(_metric("rce", "Rce", epsilon=epsilon)),
        "rce_std_err": Entry(_metric("rce", "RceStdErr", epsilon)),
        "nrce": Entry(_metric("normalised_rce", "Nrce", epsilon=epsilon)),
        "lolly_nrce": Entry(_metric("normalised_rce", "LollyNrce", epsilon=epsilon)),
        "arce": Entry(_metric("normalised_rce", "Arce", epsilon=epsilon)),
        "arce_original": Entry(_metric("normalised_rce", "Arce", up_weight=False, epsilon=epsilon)),
        "roc_auc": Entry(_metric("auc", "Auc")),
        "pr_auc": Entry(_metric("auc", "PrAuc")),
        "roc_auc_200": Entry(_metric("binned_auc", "RocAuc200")),
        "pr_auc_200": Entry(_metric("binned_auc", "PrAuc200")),
        "ece": Entry(_metric("calibration", "ExpectedCalibrationError")),
        "ece_equal_mass": Entry(_metric("calibration", "EqualMassCalibrationError")),
        "mse": Entry(_metric("errors", "MeanSquaredError")),
        "mae": Entry(_metric("errors", "MeanAbsoluteError")),
        "lolly_tf_score_mse": Entry(_metric("errors", "MeanSquaredError", **lolly), reads_weights=False),
    }
    return entries | _watch_time_entries() | _threshold_entries(threshold)


def _watch_time_entries() -> dict[str, Entry]:
    ends: dict[str, Any] = {"prediction": "watch_time_prediction", "target": "watch_time_label"}
    entries = {}
    for error, name in (("mse", "MeanSquaredError"), ("mae", "MeanAbsoluteError")):
        plain, seconds = _metric("errors", name, **ends), _metric("errors", name, **ends, scale="from_log1p")
        entries[f"watch_time_{error}"] = Entry(plain, reads_prediction=False)
        entries[f"watch_time_{error}_seconds"] = Entry(seconds, reads_prediction=False)
    return entries


def _threshold_entries(threshold: float) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    shares: tuple[Statistic, ...] = ("accuracy", "precision", "recall")
    for share in shares:
        entries[share] = Entry(_metric("classification", share.capitalize(), threshold))
        entries[f"{share}_at_percentiles"] = Entry(_metric("classification", "AtThresholds", share))
    counts: tuple[Statistic, ...] = ("tp", "fp", "tn", "fn")
    for count in counts:
        entries[count] = Entry(_metric("classification", "AtThreshold", count, threshold))
        entries[f"{count}_at_percentiles"] = Entry(_metric("classification", "AtThresholds", count))
    return entries
