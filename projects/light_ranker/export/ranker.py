"""Export of a trained ranker to a folder that serves, whole or not at all."""

from __future__ import annotations

import datetime
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tml
from tml.common.errors import ConfigError
from tml.common.filesystem.digest import file_info
from tml.common.modules.embedding_tables import LocalTables
from tml.common.versions import library_versions
from tml.projects.light_ranker.config import ExportConfig
from tml.projects.light_ranker.export import check
from tml.projects.light_ranker.export.folder import new_export
from tml.projects.light_ranker.export.graph import MlpGraph, ServingGraph, isotonic_of
from tml.projects.light_ranker.export.lolly_graph import LollyGraph
from tml.projects.light_ranker.export.onnx_file import record_graph, save_graph, without_advice
from tml.projects.light_ranker.export.quantize import byte_graph
from tml.projects.light_ranker.export.rows import CheckRows, made_up_rows, read_rows
from tml.projects.light_ranker.export.tables import attach_tables, write_byte_tables, write_float_tables
from tml.projects.light_ranker.features.config import FeatureConfig
from tml.projects.light_ranker.features.encoder import ENCODER_FILES, TARGETS_FOLDER, VOCAB_FOLDER, Encoder
from tml.projects.light_ranker.features.kinds import (
    AnyFeature,
    CategoricalConfig,
    ContinuousConfig,
    IdsConfig,
    TargetEncodingConfig,
)
from tml.projects.light_ranker.models.build import Ranker
from tml.projects.light_ranker.models.mlp import MlpRanker
from tml.projects.light_ranker.models.objective import label_place
from tml.projects.light_ranker.serving.signature import (
    BYTE_TABLE_NAME,
    INT8_MODEL_NAME,
    MODEL_NAME,
    TABLE_NAME,
    FeatureInfo,
    Signature,
    files_below,
    without_nan,
    write_signature,
)

logger = logging.getLogger(__name__)

Points = Mapping[str, Mapping[str, list[float]]]

# Rows of the split that are compared with the trainer, beside made-up ones.
_SPLIT_ROWS = 2048
# Rows whose largest values say what bytes have to hold.
_RANGE_ROWS = 16384
_LIBRARIES = (
    "torch",
    "torchrec",
    "fbgemm-gpu-cpu",
    "fbgemm-gpu",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "numpy",
    "pyarrow",
)


def export_ranker(
    model: Ranker,
    out_dir: str | os.PathLike[str],
    *,
    features_dir: str | os.PathLike[str],
    isotonic: Points | None = None,
    settings: ExportConfig | None = None,
    facts: Mapping[str, Any] | None = None,
    evaluation_files: Sequence[str] = (),
    overwrite: bool = True,
) -> Path:
    """Write a folder that `Scorer` serves.

    Args:
        model: trained; all of it on this process and on the CPU.
        out_dir: where; an exported ranker that lies there stays untouched until the new one is complete.
        features_dir: folder with `encoding.json`, `features.yaml`, `vocab/` and `targets/`, which are copied.
        isotonic: points of the probability's calibration, `{"click": {"x": [...], "y": [...]}}`.
        settings: the `export` section.
        facts: what only the run knows, JSON-able: metrics, config, step, ...
        evaluation_files: encoded rows with labels, for the self-check and the AUC that 8 bits cost.
        overwrite: replace an exported ranker; False refuses.

    Returns:
        The folder.

    Raises:
        CheckpointError: the reloaded file does not score like the model; nothing is written.
        ConfigError: 8 bits are asked for without rows to say what they cost, or for a model without layers.
        DataError: the place is taken or cannot be written, the encoder's files are not those of the model, or the model
            has no candidate feature.
        NonFiniteError: an embedding is NaN or infinite.
    """
    settings = settings or ExportConfig()
    encoder = Encoder.load(features_dir)
    _check_request(model, encoder, settings, evaluation_files, Path(features_dir))
    calibration = isotonic_of(isotonic)
    graph = (MlpGraph if isinstance(model, MlpRanker) else LollyGraph)(model, calibration)  # type: ignore[arg-type]
    with new_export(out_dir, overwrite) as folder, without_advice():
        for name in ENCODER_FILES:
            _copy(Path(features_dir) / name, folder / name)
        _write_graph(graph, folder / MODEL_NAME)
        exported = check.ExportedGraph(folder / MODEL_NAME)
        samples = [_made_up(model), *read_rows(evaluation_files, model.spec, _SPLIT_ROWS)]
        found = check.compare(exported, model, calibration, samples)
        check.refuse_difference(found, settings.max_abs_difference, out_dir)
        result = {"float32": found | {"limit": settings.max_abs_difference}}
        if settings.int8:
            in_bytes = byte_graph(model, calibration, read_rows(evaluation_files, model.spec, _RANGE_ROWS))
            _write_graph(in_bytes, folder / INT8_MODEL_NAME)
            result["int8"] = _cost_of_int8(exported, folder, model, evaluation_files)
        described = {
            "kind": "mlp" if isinstance(model, MlpRanker) else "lolly_lr",
            "outputs": graph.outputs,
            "int8": settings.int8,
            "table_rows": {name: list(rows.shape) for name, rows in graph.tables.items()},
            "inputs": {name: columns for name, (_, columns) in graph.inputs.items()},
        }
        write_signature(
            folder,
            Signature(
                described,
                tuple(info for feature in encoder.config.features for info in _feature_info(feature, encoder.config)),
                _calibration(model, isotonic),
                without_nan(result),
                {name: file_info(folder / name) for name in files_below(folder)},
                without_nan(dict(facts or {})),
                _made_with(),
            ),
        )
    logger.info("exported to %s: %s", out_dir, check.described(found, settings.max_abs_difference, calibration))
    return Path(out_dir)


def _check_request(
    model: Ranker, encoder: Encoder, settings: ExportConfig, evaluation_files: Sequence[str], features_dir: Path
) -> None:
    if isinstance(model, MlpRanker) and not isinstance(model.tables, LocalTables | None):
        raise ConfigError(
            "a sharded model cannot be exported", where="export_ranker", value=type(model.tables).__name__,
            limit="all tables on this process", fix="export its checkpoint: tml light-ranker export SAVE_DIR",
        )  # fmt: skip
    if encoder.spec.fingerprint() != model.spec.fingerprint():
        raise ConfigError(
            "the features folder is not the one that the model was trained with", where=features_dir,
            value=encoder.spec.fingerprint(), limit=model.spec.fingerprint(),
            fix="give the folder that was prepared for this run",
        )  # fmt: skip
    if settings.int8 and not evaluation_files:
        raise ConfigError(
            "8 bits need rows with labels, to say what they cost in AUC", where="export.int8",
            fix="name validation_data or test_data in the config, or leave int8 out",
        )  # fmt: skip


def _write_graph(graph: ServingGraph, path: Path) -> None:
    """Write a graph and, beside it, its tables, if it has any."""
    tables = path.with_name(TABLE_NAME)
    recorded = record_graph(graph, graph.inputs, graph.outputs)
    if graph.row_steps:
        tables = path.with_name(BYTE_TABLE_NAME)
        attach_tables(recorded, write_byte_tables(tables, graph.tables, graph.row_steps), tables.name)
    elif graph.tables:
        attach_tables(recorded, write_float_tables(tables, graph.tables), tables.name)
    save_graph(recorded, path)


def _cost_of_int8(
    exported: check.ExportedGraph, folder: Path, model: Ranker, evaluation_files: Sequence[str]
) -> dict[str, float]:
    """AUC over the split with and without 8 bits; printed, as it is what one decides by."""
    quantized = check.ExportedGraph(folder / INT8_MODEL_NAME)
    objective = model.head.objective if isinstance(model, MlpRanker) else model.objective
    label = label_place(model.spec, objective.config.click_label, "loss.click_label", "binary")
    auc, auc_int8 = (
        check.auc_of(graph, read_rows(evaluation_files, model.spec), label) for graph in (exported, quantized)
    )
    found = {"auc": auc, "auc_int8": auc_int8, "auc_cost": auc - auc_int8}
    found |= check.spread(exported, quantized, _made_up(model))
    print(f"int8: AUC {auc_int8:.5f} instead of {auc:.5f}, a cost of {auc - auc_int8:.5f}")
    return found


def _made_up(model: Ranker) -> CheckRows:
    bins = model.slots.bins
    values = np.zeros((1, len(model.spec.continuous)), np.float32)
    if bins is not None and bins.boundaries.shape[1]:
        values = np.zeros((bins.boundaries.shape[1], len(model.spec.continuous)), np.float32)
        edges = bins.boundaries.T.numpy()
        values[:, bins.columns.numpy()] = np.where(np.isfinite(edges), edges, 0.0)
    return made_up_rows(model.spec, values)


def _feature_info(feature: AnyFeature, config: FeatureConfig) -> list[FeatureInfo]:
    """What a caller may pass for a feature: one column, or one for each key."""
    if isinstance(feature, TargetEncodingConfig):
        return [
            FeatureInfo(
                name=feature.name,
                column=key,
                side=config.key_side(feature, key),
                kind="key",
                dtype="int64" if kind == "int" else "string",
                default="a value of its own",
                vocabulary=f"{TARGETS_FOLDER}/{feature.name}.parquet",
            )
            for key, kind in zip(feature.keys, feature.types, strict=True)
        ]
    name, column, size = str(feature.name), feature.source, 1
    if isinstance(feature, CategoricalConfig | IdsConfig):
        kind, dtype = "id", "int64" if feature.type == "int" else "string"
        if isinstance(feature, IdsConfig):
            dtype, size = f"list<{dtype}>", feature.max_length
        by_hash = feature.hashed is not None or feature.identity is not None
        vocabulary = None if by_hash else f"{VOCAB_FOLDER}/{name}.parquet"
        default = "an embedding learnt for missing values" if feature.default is None else feature.default
        return [FeatureInfo(name, column, feature.side, kind, dtype, default, size, vocabulary)]
    if isinstance(feature, ContinuousConfig):
        default = "the mean, marked as missing" if feature.default is None else feature.default
        return [FeatureInfo(name, column, feature.side, "continuous", "float32", default)]
    return [FeatureInfo(name, column, feature.side, "vector", "list<float32>", feature.default, feature.dim)]


def _calibration(model: Ranker, isotonic: Points | None) -> dict[str, Any]:
    bins = model.slots.bins
    found: dict[str, Any] = {"isotonic_points": {name: len(points["x"]) for name, points in (isotonic or {}).items()}}
    names = [feature.name for feature in model.spec.continuous]
    if bins is not None:
        counts = torch.isfinite(bins.boundaries).sum(1).tolist()
        found["boundaries"] = {names[column]: n for column, n in zip(bins.columns.tolist(), counts, strict=True)}
    if isinstance(model, MlpRanker):
        found["scales"] = model.inputs.normalizer.to_dict()["features"]
    return found


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copyfile(source, target)


def _made_with() -> dict[str, Any]:
    versions = {"tml": tml.__version__, **library_versions(*_LIBRARIES)}
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"created": created, "versions": versions}
