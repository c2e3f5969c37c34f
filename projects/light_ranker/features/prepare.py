"""`tml light-ranker prepare`: a raw table becomes encoded rows, vocabularies and a starter config.

    <out>/{train,valid,test}/*.parquet   encoded rows (see `spec`), one file per input file and split
    <out>/encoding.json, features.yaml, vocab/, targets/   the encoder, as `Encoder.load` reads it
    <out>/config.yaml                    a config that trains as it is
    <out>/meta.json                      the plan and what was counted; written last

Files are read twice, in batches of bounded size: once to count (values of vocabularies, labels of target encodings),
once to encode. A run that was killed continues with the file it was at.
"""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from tml.common.errors import ConfigError, DataError, TmlError
from tml.common.filesystem import write_text
from tml.common.workspace import Workspace
from tml.core.config.loading import load_config
from tml.projects.light_ranker.features.config import FeatureConfig
from tml.projects.light_ranker.features.counting import FirstPass
from tml.projects.light_ranker.features.encoded_files import EncodedFile, SplitCounts, to_table
from tml.projects.light_ranker.features.encoder import (
    ENCODER_FILES,
    FEATURES_FILE,
    TARGETS_FOLDER,
    VOCAB_FOLDER,
    EncodedRows,
    Encoder,
)
from tml.projects.light_ranker.features.faults import RowFaults
from tml.projects.light_ranker.features.feature_file import feature_text
from tml.projects.light_ranker.features.inputs import Inputs
from tml.projects.light_ranker.features.labels import TargetReader, Targets
from tml.projects.light_ranker.features.prepare_options import PrepareOptions
from tml.projects.light_ranker.features.resolve import check_types, resolve, with_types
from tml.projects.light_ranker.features.rows import SPLITS, TRAIN, fold_draws
from tml.projects.light_ranker.features.spec import ENCODING_FILE
from tml.projects.light_ranker.features.starter import starter_config
from tml.projects.light_ranker.features.target_table import TargetTable
from tml.projects.light_ranker.features.vocabulary import Vocabulary

FORMAT_VERSION = 1
PUBLISHED = (*ENCODER_FILES, *SPLITS, "config.yaml")
_HEADER = "# Written by `tml light-ranker prepare`: the features of the encoded rows beside this file.\n"

_log = logging.getLogger(__name__)


def prepare(options: PrepareOptions, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Prepares a data set in the folder `out`.

    When the same preparation is complete there, nothing is done; when it was cut off, it continues.

    Args:
        overwrite: replace an earlier preparation in `out`.

    Returns:
        the content of `meta.json`.

    Raises:
        DataError: input is missing or bad. ConfigError: settings do not fit, or `out` holds something else.
    """
    if set("*?[") & set(str(out.resolve())):
        raise ConfigError(
            "the out folder's path holds a pattern", where="--out", value=str(out), limit="a path without * ? ["
        )
    config = load_config(FeatureConfig, options.features)
    inputs = Inputs(options, config)
    plan = {
        "format_version": FORMAT_VERSION,
        "options": options.as_json(),
        "features": config.dumped(),
        "files": inputs.fingerprints,
    }
    workspace = Workspace(out, PUBLISHED, work=".prepare", what="preparation")
    if not workspace.begin(plan, overwrite):
        _log.info("%s is complete already", out)
        return workspace.meta()
    try:
        return _Preparation(options, config, inputs, workspace).run(plan)
    except TmlError:
        workspace.fail()
        raise
    except (OSError, duckdb.IOException) as error:
        raise DataError(
            "the preparation cannot write", where=str(out), value=str(error),
            fix="mend this and run it again: it continues",
        ) from error  # fmt: skip
    finally:
        workspace.release()


class _Preparation:
    """The stages of one run, in order; each file of each pass leaves its mark in the workspace."""

    def __init__(self, options: PrepareOptions, config: FeatureConfig, inputs: Inputs, workspace: Workspace) -> None:
        self.options, self.inputs, self.workspace, self.result = options, inputs, workspace, workspace.result
        first = inputs.paths[0]
        self.config = resolve(config, inputs.schema(first), first)
        self.targets = TargetReader(self.config)

    def run(self, plan: dict[str, Any]) -> dict[str, Any]:
        # The mark comes before anything is moved: a run that is cut off in moving goes on moving.
        self.workspace.publish(self.workspace.stage("result", lambda: self._make(plan)))
        return self.workspace.meta()

    def _make(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Fills the result folder; gives the content of `meta.json`."""
        self.result.mkdir(exist_ok=True)
        first_pass = FirstPass(self.config, self.inputs, self.options, self.workspace)
        self.splitter = first_pass.splitter()
        first_pass.count(self.splitter)
        vocabularies, tables = first_pass.vocabularies(self.result), first_pass.target_tables(self.result)
        encoder = self._encoder(vocabularies, tables)
        counts = [
            self.workspace.stage(f"encode-{n}", partial(self._encode_file, n, path, encoder))
            for n, path in enumerate(self.inputs.paths)
        ]
        self.inputs.check_unchanged()
        meta = {**_summary(encoder, counts), "vocabularies": vocabularies, "target_tables": tables, "plan": plan}
        num_rows = {split: int(meta["splits"][split]["rows"]) for split in SPLITS}
        write_text(self.result / "config.yaml", starter_config(self.workspace.out, encoder.spec, num_rows))
        return meta

    def _encoder(self, vocabularies: dict[str, Any], tables: dict[str, Any]) -> Encoder:
        """The encoder, and its folder in the result."""
        self.config = with_types(self.config, {name: one["type"] for name, one in vocabularies.items()})
        known = {name: Vocabulary.load(self.result / VOCAB_FOLDER / f"{name}.parquet") for name in vocabularies}
        embeddings = {name: one["embedding"] for name, one in vocabularies.items()}
        targets = {name: TargetTable.load(self.result / TARGETS_FOLDER / f"{name}.parquet") for name in tables}
        encoder = Encoder(self.config, known, embeddings, targets)
        encoder.spec.save(self.result / ENCODING_FILE)
        write_text(self.result / FEATURES_FILE, feature_text(self.config.dumped(), _HEADER))
        return encoder

    def _encode_file(self, number: int, path: str, encoder: Encoder) -> dict[str, Any]:
        _log.info("encoding %s", path)
        check_types(list(self.config.features), self.inputs.schema(path), path)
        name = f"{number:05d}-{_stem(path)}.parquet"
        options, spec = self.options, encoder.spec
        files = [EncodedFile(self.result / s / name, spec, options.row_group_size, options.compression) for s in SPLITS]
        counts, left_out = [SplitCounts(spec) for _ in SPLITS], Counter[str]()
        columns = list(dict.fromkeys(encoder.columns() + self.targets.columns() + self.splitter.columns()))
        for batch in self.inputs.rows(path, columns, left_out):
            faults = RowFaults(len(batch.numbers), path, batch.numbers, may_skip=True)
            split = self.splitter.assign(batch, path)
            draws = np.where(split == TRAIN, fold_draws(path, batch.numbers, options.seed), np.nan)
            rows = encoder.encode_batch(batch.columns, faults, draws)
            targets = self.targets.read(batch.columns, faults)
            left_out.update(faults.counts)
            good = np.ones(len(split), bool) if faults.good is None else faults.good
            for s in range(len(SPLITS)):
                chosen = good & (split == s)
                if chosen.any():
                    table = to_table(spec, *_chosen(rows, targets, chosen))
                    files[s].write(table)
                    counts[s].add(table, {name: cut[chosen] for name, cut in rows.truncated.items()})
        for file in files:
            file.close()
        return {"splits": [count.values for count in counts], "left_out": left_out}


def _summary(encoder: Encoder, counts: list[Any]) -> dict[str, Any]:
    """What was counted in all files."""
    totals = [SplitCounts(encoder.spec) for _ in SPLITS]
    left_out = Counter[str]()
    for count in counts:
        left_out.update(count["left_out"])
        for total, values in zip(totals, count["splits"], strict=True):
            total.add_values(values)
    _check_labels(encoder, totals[0])
    return {
        "splits": {split: total.summary() for split, total in zip(SPLITS, totals, strict=True)},
        "rows_read": left_out.pop("rows read", 0),
        "left_out": {reason: count for reason, count in sorted(left_out.items()) if count},
        "fingerprint": encoder.spec.fingerprint(),
    }


def _chosen(rows: EncodedRows, targets: Targets, chosen: np.ndarray) -> tuple[EncodedRows, Targets]:
    if chosen.all():
        return rows, targets
    group = None if targets.group is None else targets.group[chosen]
    # Columns stay contiguous: each is written by itself.
    ids, continuous, vectors, labels = (
        np.asfortranarray(part[chosen]) for part in (rows.ids, rows.continuous, rows.vectors, targets.labels)
    )
    return EncodedRows(ids, continuous, vectors), Targets(labels, targets.weight[chosen], group)


def _check_labels(encoder: Encoder, train: SplitCounts) -> None:
    rows = train.values["rows"]
    if not rows:
        raise DataError(
            "no training rows are left", limit="at least one", fix="check the filters, the keep rates and the split"
        )
    for label in encoder.spec.labels:
        positive = train.values.get(f"label:{label.name}", 0)
        if positive not in (0, rows) or (label.kind == "nonnegative" and positive):
            continue
        message = f"label {label.name!r} is {'0' if not positive else '1'} in all {rows:,.0f} training rows"
        if label.kind == "binary" and label == next(one for one in encoder.spec.labels if one.kind == "binary"):
            raise DataError(
                message, where="training rows", limit="both values: there is nothing to learn otherwise",
                fix="check the label's column, its `positive` values, the filters and the split",
            )  # fmt: skip
        _log.warning("%s", message)


def _stem(path: str) -> str:
    name = path.replace("\\", "/").rsplit("/", 1)[-1].split(".", 1)[0]
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)[:80] or "part"
