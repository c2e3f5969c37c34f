"""What is fitted before training: scales of the numbers' transforms and bounds of their bins.

    save_dir/calibration/discretizers.json    {"fingerprint": ..., "features": {name: {kind, num_bins, boundaries}}}
    save_dir/calibration/normalisation.json   {"fingerprint": ..., "features": [{name, transform, mean, std, max_abs}]}

The fingerprint names what they were fitted on, so that a stale calibration is refused. The second file is written last:
a calibration that was killed half-way is no calibration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tml.common.errors import ConfigError, DataError
from tml.common.filesystem.atomic import write_json
from tml.common.modules.discretizer_fitting import DiscretizerPlan
from tml.common.modules.normalizers import Normalizer, NormalizerStatistics
from tml.common.reader import ParquetReader
from tml.ml_logging import get_logger
from tml.projects.light_ranker.config import CalibrationConfig, LightRankerConfig
from tml.projects.light_ranker.data.dataset import data_files, keep_mask
from tml.projects.light_ranker.features.spec import DiscretizerSpec, FeatureSpec
from tml.projects.light_ranker.models.lolly_slots import discretizers_of

logger = get_logger(__name__)

DISCRETIZERS, NORMALISATION = "discretizers.json", "normalisation.json"

_READ_ROWS = 200_000


@dataclass(frozen=True)
class Calibration:
    """Fitted statistics.

    Args:
        normalizer: of every continuous feature that keeps its value.
        boundaries: of every binned feature, ascending; empty if its sample held no value.
        fingerprint: of what they were fitted on.
    """

    normalizer: Normalizer
    boundaries: dict[str, list[float]]
    fingerprint: str

    def digest(self) -> str:
        """The identity of the statistics themselves."""
        text = json.dumps([self.normalizer.to_dict(), self.boundaries], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, folder: Path, discretizers: Mapping[str, DiscretizerSpec]) -> None:
        """Write both files, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        binned = {
            name: {"kind": discretizers[name].kind, "num_bins": discretizers[name].num_bins,
                   "boundaries": edges}
            for name, edges in self.boundaries.items()
        }  # fmt: skip
        write_json(folder / DISCRETIZERS, {"fingerprint": self.fingerprint, "features": binned})
        write_json(folder / NORMALISATION, {"fingerprint": self.fingerprint, **self.normalizer.to_dict()})


def load_calibration(folder: Path) -> Calibration | None:
    """The calibration of a folder; None if there is none, or only half of one.

    Raises:
        DataError: a file is damaged.
    """
    if not (folder / NORMALISATION).is_file() or not (folder / DISCRETIZERS).is_file():
        return None
    scaled, binned = _read(folder / NORMALISATION), _read(folder / DISCRETIZERS)
    if scaled.get("fingerprint") != binned.get("fingerprint"):
        return None
    try:
        return Calibration(
            Normalizer.from_dict(scaled),
            {name: [float(edge) for edge in v["boundaries"]] for name, v in binned["features"].items()},
            str(scaled["fingerprint"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from None


class Sample:
    """The weighted sample of training rows that a calibration is fitted on.

    Args:
        config: the whole config.
        spec: the features.
    """

    def __init__(self, config: LightRankerConfig, spec: FeatureSpec) -> None:
        self._config, self._spec = config, spec
        self.discretizers = binned_features(config, spec)
        self._needs_label = any(one.kind == "mdlp" for one in self.discretizers.values())
        columns = [name for feature in spec.continuous for name in feature.columns()]
        columns += ["w", *([f"y.{config.loss.click_label}"] if self._needs_label else [])]
        kinds = spec.columns()
        self._reader = ParquetReader(
            data_files(config.train_data.data_root),
            {name: kinds[name] for name in columns},
            global_batch_size=_READ_ROWS,
            shuffle=False,
            offset=config.train_data.offset,
            limit=config.train_data.limit,
        )

    def fingerprint(self) -> str:
        """The identity of everything that the statistics depend on."""
        section = self._config.calibration
        parts = [
            self._spec.fingerprint(),
            self._reader.fingerprint(),
            {name: [one.kind, one.num_bins] for name, one in self.discretizers.items()},
            [section.sample_rate, section.max_rows, self._config.runtime.seed],
            self._config.loss.click_label if self._needs_label else None,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def fit(self) -> Calibration:
        """Read the sample and fit everything.

        Raises:
            DataError: the sample is empty or holds an infinite value or a bad weight.
        """
        columns = self._read(self._config.calibration)
        weights = columns.pop("w")
        labels = columns.pop(f"y.{self._config.loss.click_label}", None)
        logger.info("calibrating %d features on %d rows", len(self._spec.continuous), len(weights))
        return Calibration(
            self._normalizer(columns, weights),
            {
                name: _fit_boundaries(name, one, columns[f"x.{name}"], weights, labels)
                for name, one in self.discretizers.items()
            },
            self.fingerprint(),
        )

    def _normalizer(self, columns: dict[str, np.ndarray], weights: np.ndarray) -> Normalizer:
        kept = [feature for feature in self._spec.continuous if feature.keep_value]
        statistics = NormalizerStatistics([f.name for f in kept], [f.transform for f in kept])
        for start in range(0, len(weights), _READ_ROWS):
            part = slice(start, start + _READ_ROWS)
            values = [torch.from_numpy(columns[f"x.{feature.name}"][part]) for feature in kept]
            if values:
                statistics.update(torch.stack(values, dim=1), torch.from_numpy(weights[part]))
        return Normalizer.from_statistics(statistics)

    def _read(self, section: CalibrationConfig) -> dict[str, np.ndarray]:
        rate = min(section.sample_rate, section.max_rows / self._reader.num_rows)
        blocks = []
        for rows in self._reader:
            positions = np.arange(rows.first_row, rows.first_row + rows.num_rows)
            kept = np.flatnonzero(keep_mask(positions, 0, self._config.runtime.seed, rate))
            if rate >= 1.0:
                kept = np.arange(rows.num_rows)
            blocks.append({name: values[kept] for name, values in rows.columns.items()})
            self._check(blocks[-1], kept, rows.first_row)
        sample = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        if not sample["w"].sum() > 0:
            raise DataError(
                "the calibration's sample is empty", where=self._config.train_data.data_root,
                value=f"{len(sample['w'])} rows, weight {sample['w'].sum()}", limit="some row with a weight",
                fix="raise calibration.sample_rate",
            )  # fmt: skip
        return sample

    def _check(self, block: dict[str, np.ndarray], kept: np.ndarray, first_row: int) -> None:
        for name, values in block.items():
            bad = np.isinf(values) if name != "w" else ~(np.isfinite(values) & (values >= 0))
            if bad.any():
                row = int(bad.argmax())
                file, place = self._reader.locate(0, first_row + int(kept[row]))
                raise DataError(
                    "a value cannot be calibrated on", where=f"{file}, row {place}, column {name}",
                    value=values[row].item(), limit="finite, a weight 0 or more; NaN is a missing value",
                    fix="prepare the data again",
                )  # fmt: skip


def binned_features(config: LightRankerConfig, spec: FeatureSpec) -> dict[str, DiscretizerSpec]:
    """How each feature that a model takes as bins is cut."""
    if config.model.lolly_lr is not None:
        return discretizers_of(spec, config.model.lolly_lr)
    return {f.name: f.discretizer for f in spec.continuous if f.discretizer is not None}


def _fit_boundaries(
    name: str, spec: DiscretizerSpec, values: np.ndarray, weights: np.ndarray, labels: np.ndarray | None
) -> list[float]:
    present = ~np.isnan(values) & (weights > 0)
    if not present.any():
        logger.warning("feature %r has no value in the calibration's sample: all its values will share a bin", name)
        return []
    fitted = DiscretizerPlan(name, spec.kind, spec.num_bins).fit(
        values[present], weights[present], None if labels is None else labels[present]
    )
    # The model compares float32 values, so bounds are float32 as well; infinite ones fill up and part nothing.
    edges = np.asarray(fitted.boundaries, dtype=np.float32)
    finite: list[float] = edges[np.isfinite(edges)].astype(np.float64).tolist()
    return finite


def require_fresh(found: Calibration, expected: str, folder: Path) -> None:
    """Refuse a calibration of other data, features or settings.

    Raises:
        ConfigError: it is stale.
    """
    if found.fingerprint != expected:
        raise ConfigError(
            "the calibration was fitted on other data, features or settings",
            where=str(folder),
            value=found.fingerprint[:12],
            limit=expected[:12],
            fix="run --task calibrate in a new training.save_dir, or undo the change",
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(found, dict):
        raise _damaged(path, "not a JSON object")
    return found


def _damaged(where: Path, why: str) -> DataError:
    return DataError("a calibration cannot be read", where=where, value=why, fix="delete it and run --task calibrate")
