"""The data that a trainer is given, whatever form it has: prepared folders, tables, or block files of DataRecords.

Raw data is prepared below the run's folder, once:

    <work>/records/{train,eval}/    tables made of block files
    <work>/features.yaml            the feature config in effect: the one given or the one proposed, with the weights
    <work>/prepared/                what `tml light-ranker prepare` would write
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tml.common.errors import ConfigError, DataError
from tml.common.filesystem import atomic_write, exists, open_file
from tml.core.config import load_config
from tml.machines.environment import task_environment
from tml.ml_logging import get_logger
from tml.projects.light_ranker.data.files import DateRange, FilesList, cached_files, find_files, keep_files
from tml.projects.light_ranker.features.config import EARLYBIRD_WEIGHTS, FeatureConfig
from tml.projects.light_ranker.features.feature_file import feature_text
from tml.projects.light_ranker.features.inspect import propose
from tml.projects.light_ranker.features.prepare import prepare
from tml.projects.light_ranker.features.prepare_options import PrepareOptions
from tml.projects.light_ranker.features.spec import ENCODING_FILE, FeatureSpec
from tml.projects.light_ranker.records.block_format import MARKER
from tml.projects.light_ranker.records.table import records_to_table
from tml.projects.light_ranker.records.table_config import RecordTableConfig

logger = get_logger(__name__)

PREPARED, FEATURES, RECORDS, TABLES = "prepared", "features.yaml", "records", "tables"
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class DataSource:
    """Rows of one split.

    Args:
        path: a prepared folder or one of its splits, else files, patterns, folders or URLs of raw data; or a table in
            memory.
        start, end: first and last date of a pattern with date codes, both included.
        date_format: of the two; see `DateRange.parse`.
        hour_resolution: hours from one folder to the next.
        files_list: JSON file that keeps the files found, so that a later run takes the same ones.
        overwrite_files_list: find them again.
        file_keep_rate: share of the files that is used.
    """

    path: str | os.PathLike[str] | pa.Table
    start: str | None = None
    end: str | None = None
    date_format: str | None = None
    hour_resolution: int = 1
    files_list: str | None = None
    overwrite_files_list: bool = False
    file_keep_rate: float = 1.0

    @property
    def selects_files(self) -> bool:
        """Whether it says which raw files to take, apart from their path."""
        return (self.start, self.end, self.files_list) != (None, None, None) or self.file_keep_rate < 1

    def files(self, seed: int) -> list[str]:
        """The raw files.

        Raises:
            ConfigError, DataError: there are none, or dates and pattern do not fit.
        """
        if (self.start is None) != (self.end is None):
            raise ConfigError("dates come in pairs", value=(self.start, self.end), limit="start and end, or neither")
        if self.files_list is not None:
            wanted = FilesList([], str(self.path), self.start, self.end, self.date_format, self.hour_resolution)
            files = cached_files(wanted, self.files_list, self.overwrite_files_list)
        else:
            dates = None
            if self.start is not None and self.end is not None:
                dates = DateRange.parse(self.start, self.end, self.hour_resolution, self.date_format)
            files = find_files(str(self.path), dates)
        return files if self.file_keep_rate == 1 else keep_files(files, self.file_keep_rate, seed)


@dataclass(frozen=True)
class PreparedData:
    """Encoded rows.

    Args:
        features_dir: the prepared folder.
        train_root, eval_root: folders of encoded rows; `eval_root` is None without evaluation rows.
    """

    features_dir: str
    train_root: str
    eval_root: str | None


@dataclass(frozen=True)
class RawDataOptions:
    """How raw data is read.

    Args:
        feature_config: a features.yaml; None to use a proposal.
        group: column of the request or user; None for the one of features.yaml, or none.
        record_config: of block files, which features become which columns.
        example_weights: engagement -> weight, instead of what the record's weight holds.
        allow_overlap: evaluate on the rows that are trained on.
        seed: of the draws of files.
    """

    feature_config: str | None = None
    group: str | None = None
    record_config: str | None = None
    example_weights: Mapping[str, float] | None = None
    allow_overlap: bool = False
    seed: int = 0


def prepared_data(
    train: DataSource, evaluation: DataSource | None, work: Path, options: RawDataOptions
) -> PreparedData:
    """Encoded rows of both sources, prepared below `work` if they are raw.

    Raises:
        ConfigError: options do not fit the data, or the same rows would be trained and evaluated on.
        DataError: data is missing or bad.
    """
    folders = [_prepared_folder(source) for source in (train, evaluation) if source is not None]
    if any(folders) and not all(folders):
        raise ConfigError(
            "prepared and raw data are mixed", where="train and eval data", value=folders,
            fix="prepare both with `tml light-ranker prepare`, or give both raw",
        )  # fmt: skip
    if all(folders):
        return _from_prepared(train, evaluation, options)
    return _from_raw(train, evaluation, work, options)


def _prepared_folder(source: DataSource) -> str | None:
    """The prepared folder that a path lies in or is."""
    if isinstance(source.path, pa.Table):
        return None
    path = os.fspath(source.path).rstrip("/")
    for folder in (path, os.path.dirname(path)):
        if folder and exists(f"{folder}/{ENCODING_FILE}"):
            return folder
    return None


def _from_prepared(train: DataSource, evaluation: DataSource | None, options: RawDataOptions) -> PreparedData:
    given = [name for name in ("feature_config", "group", "record_config", "example_weights") if getattr(options, name)]
    if given or train.selects_files or (evaluation is not None and evaluation.selects_files):
        raise ConfigError(
            "option is for raw data, and the data is prepared already", where=str(train.path),
            value=given[0] if given else "dates, list or share of files", fix="leave it out, or give the raw data",
        )  # fmt: skip
    folder = _prepared_folder(train)
    assert folder is not None
    eval_root = None if evaluation is None else _root(evaluation, ("valid", "test"))
    result = PreparedData(folder, _root(train, ("train",)), eval_root)
    other = folder if evaluation is None else _prepared_folder(evaluation)
    assert other is not None
    if FeatureSpec.load(folder).fingerprint() != FeatureSpec.load(other).fingerprint():
        raise ConfigError(
            "train and eval data were prepared differently", value=[folder, other],
            fix="prepare both in one run of `tml light-ranker prepare`, with --train and --valid",
        )  # fmt: skip
    if result.train_root == result.eval_root and not options.allow_overlap:
        raise _overlap(result.train_root)
    return result


def _root(source: DataSource, splits: tuple[str, ...]) -> str:
    path = os.fspath(source.path).rstrip("/")
    if _prepared_folder(source) != path:
        return path
    for split in splits:
        if exists(f"{path}/{split}"):
            return f"{path}/{split}"
    raise DataError("prepared folder has no such rows", where=path, limit=" or ".join(splits))


def _overlap(where: str) -> ConfigError:
    return ConfigError(
        "the same rows would be trained and evaluated on", where=where, fix="give others, or --allow_train_eval_overlap"
    )


def _from_raw(train: DataSource, evaluation: DataSource | None, work: Path, options: RawDataOptions) -> PreparedData:
    num_ranks = task_environment().world_size
    if num_ranks > 1:
        raise ConfigError(
            "raw data is prepared by one process", where=f"{num_ranks} ranks",
            fix="prepare it first with `tml light-ranker prepare`, and give the prepared folder",
        )  # fmt: skip
    overlaps = evaluation is not None and _is_same(train, evaluation)
    if overlaps and not options.allow_overlap:
        raise _overlap(str(train.path))
    inputs = {"train": _tables(train, "train", work, options)}
    if evaluation is not None and not overlaps:
        inputs["valid"] = _tables(evaluation, "eval", work, options)
    features = _feature_config(inputs["train"], work, options)
    out = work / PREPARED
    prepare(PrepareOptions(features=str(features), inputs=inputs, seed=options.seed), out)
    eval_root = str(out / ("train" if overlaps else "valid")) if evaluation is not None else None
    return PreparedData(str(out), str(out / "train"), eval_root)


def _is_same(train: DataSource, evaluation: DataSource) -> bool:
    if isinstance(train.path, pa.Table) or isinstance(evaluation.path, pa.Table):
        return train.path is evaluation.path
    return os.fspath(train.path) == os.fspath(evaluation.path) and train.start == evaluation.start


def _tables(source: DataSource, split: str, work: Path, options: RawDataOptions) -> list[str]:
    """Files that `prepare` reads: as they are, or made of a table in memory or of block files."""
    if isinstance(source.path, pa.Table):
        (work / TABLES).mkdir(parents=True, exist_ok=True)
        path = work / TABLES / f"{split}.parquet"
        with atomic_write(path) as file:
            pq.write_table(source.path, file)
        return [str(path)]
    files = source.files(options.seed)
    blocks = [file for file in files if is_block_file(file)]
    if not blocks:
        if options.record_config is not None:
            raise ConfigError("record_config is for block files", where=files[0], fix="leave it out")
        return files
    if len(blocks) < len(files):
        stranger = next(file for file in files if file not in blocks)
        raise DataError("block files and others are mixed", where=str(source.path), value=[blocks[0], stranger])
    if options.record_config is None:
        raise ConfigError(
            "block files need a list of their features", where=blocks[0],
            fix="give --record_config records.yaml: names, types and columns (see tml light-ranker records-to-table)",
        )  # fmt: skip
    out = work / RECORDS / split
    records_to_table(files, out, load_config(RecordTableConfig, options.record_config))
    return [f"{out}/*.parquet"]


def is_block_file(path: str) -> bool:
    """Whether a file begins as block files do, raw or compressed."""
    if path.lower().removesuffix(".gz").endswith((".csv", ".tsv", ".txt")):
        return False
    with open_file(path) as file:
        head = file.read(len(MARKER))
    if head.startswith(_GZIP):
        try:
            with open_file(path) as file, gzip.open(file) as unpacked:
                head = unpacked.read(len(MARKER))
        except (OSError, EOFError):
            return False
    return head == MARKER


def _feature_config(train: list[str], work: Path, options: RawDataOptions) -> Path:
    """Writes the feature config in effect, and says so if it is a proposal."""
    if options.feature_config is not None:
        config = _grouped(load_config(FeatureConfig, options.feature_config), options)
        text = feature_text(_weighted(config, options).dumped())
    else:
        text = propose(train, options.group)
        if options.example_weights:
            values = yaml.safe_load(text)
            text = feature_text(_weighted(FeatureConfig.model_validate(values), options).dumped())
        print(f"# no --feature_config: this proposal is used, from {work / FEATURES}\n{text}")
    path = work / FEATURES
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        file.write(text)
    return path


def _grouped(config: FeatureConfig, options: RawDataOptions) -> FeatureConfig:
    if options.group is None:
        return config
    return FeatureConfig.model_validate(config.model_dump(mode="json") | {"group": options.group})


def _weighted(config: FeatureConfig, options: RawDataOptions) -> FeatureConfig:
    """The config with the engagements' weights; labels are told by the last part of their names."""
    wanted = dict(options.example_weights or {})
    if not wanted:
        return config
    labels = {label.name.rsplit(".", 1)[-1]: label.name for label in config.labels}
    unknown = sorted(name for name in wanted if name.rsplit(".", 1)[-1] not in labels)
    if unknown:
        raise ConfigError(
            "weight of an engagement that is no label", where="example weights", value=unknown[0],
            limit=", ".join(labels.values()), fix="add the label to features.yaml",
        )  # fmt: skip
    engagements = {one.label: one.model_dump() for one in config.weight.engagements}
    for name, weight in wanted.items():
        last = name.rsplit(".", 1)[-1]
        unknown_default = {"label": labels[last], "default": None if last in EARLYBIRD_WEIGHTS else 0.0}
        engagements.setdefault(labels[last], unknown_default)["weight"] = weight
    values = config.model_dump(mode="json")
    values["weight"]["engagements"] = list(engagements.values())
    return FeatureConfig.model_validate(values)
