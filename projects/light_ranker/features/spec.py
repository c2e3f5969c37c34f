"""What an encoded data set holds and what a model is built from: features, labels and the columns they lie in.

Letters: `S` slots of ids, `C` continuous features, `V` values of all vectors, `L` labels, `B` rows.

    id.<feature>        row of a single-valued id feature in its own table: 0 missing, 1 unknown, known values from 2 on
    id.<feature>.<k>    the same for slot k of a multi-valued one; -1 pads
    x.<feature>         continuous, float32; NaN where missing
    v.<feature>.<k>     value k of a dense vector, float32
    y.<label>, w        labels and the example's weight, float32
    group               int64, only if the data has groups (requests, users)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from tml.common.errors import DataError
from tml.common.filesystem import atomic_write, open_file

Side = Literal["user", "candidate"]  # the user side is the same for all candidates of a request
Pooling = Literal["sum", "mean"]
Transform = Literal["none", "z_score", "log_z_score", "max_norm"]
DiscretizerKind = Literal["percentile", "hashed_percentile", "hashing", "mdlp"]
BinEncoding = Literal["embedding", "piecewise_linear"]
LabelKind = Literal["binary", "nonnegative"]

MISSING, UNKNOWN, FIRST_KNOWN, PADDING = 0, 1, 2, -1
ENCODING_FILE = "encoding.json"
FORMAT_VERSION = 1

# Rows of a table whose ids fit into 32 bits: half the memory to read and shuffle.
_INT32_ROWS = 2**31


@dataclass(frozen=True)
class IdFeature:
    """A feature whose values are rows of an embedding table.

    Args:
        name: of the feature and of its table.
        side: user or candidate.
        num_rows: rows of the table, with the rows for missing (0) and unknown (1).
        num_slots: ids per example, 1 for a single-valued feature.
        pooling: how the embeddings of several slots become one.
        embedding: pretrained table `<folder>#<table>` of a `tml twhin export`: row `i` of the file
            `<folder>/embeddings/<table>.parquet` (id, embedding) is row `i + 2` here. None for a table of its own.
        trainable: whether a pretrained table is fine-tuned; a table of its own always learns.
        vocabulary_hash: digest of the vocabulary; empty for hashed and identity ids.
    """

    name: str
    side: Side
    num_rows: int
    num_slots: int = 1
    pooling: Pooling = "sum"
    embedding: str | None = None
    trainable: bool = True
    vocabulary_hash: str = ""

    def columns(self) -> list[str]:
        """The encoded columns of its slots."""
        return [f"id.{self.name}"] if self.num_slots == 1 else [f"id.{self.name}.{k}" for k in range(self.num_slots)]


@dataclass(frozen=True)
class DiscretizerSpec:
    """How a continuous feature is cut into bins by calibrated boundaries, and how its bins enter an mlp: the id of one,
    or `num_bins` columns of a piecewise-linear encoding."""

    kind: DiscretizerKind
    num_bins: int = 20
    output_bits: int = 22
    encoding: BinEncoding = "embedding"


@dataclass(frozen=True)
class ContinuousFeature:
    """A number. With a discretizer its bins enter too, and without `keep_value` only its bins."""

    name: str
    side: Side
    transform: Transform = "log_z_score"
    discretizer: DiscretizerSpec | None = None
    keep_value: bool = True

    @property
    def has_bin_ids(self) -> bool:
        """Whether the bin of a value is an id of an embedding table."""
        return self.discretizer is not None and self.discretizer.encoding == "embedding"

    @property
    def num_pieces(self) -> int:
        """Columns of its piecewise-linear encoding; 0 without one."""
        return 0 if self.discretizer is None or self.has_bin_ids else self.discretizer.num_bins

    def columns(self) -> list[str]:
        """Its encoded column."""
        return [f"x.{self.name}"]


@dataclass(frozen=True)
class VectorFeature:
    """A dense vector of `dim` values.

    Args:
        name: of the feature.
        side: user or candidate.
        dim: number of values.
        table_hash: digest of the target table and of the settings that a target encoding is made by; empty for others.
    """

    name: str
    side: Side
    dim: int
    table_hash: str = ""

    def columns(self) -> list[str]:
        """The encoded columns of its values."""
        return [f"v.{self.name}.{k}" for k in range(self.dim)]


@dataclass(frozen=True)
class LabelSpec:
    """A label: `binary` (0 or 1) or `nonnegative` (such as the watch time in seconds)."""

    name: str
    kind: LabelKind


@dataclass(frozen=True)
class FeatureSpec:
    """All features and labels, in the order in which a model sees them.

    Raises:
        DataError: names clash, a size or choice is out of range, or nothing is described.
    """

    ids: tuple[IdFeature, ...]
    continuous: tuple[ContinuousFeature, ...]
    vectors: tuple[VectorFeature, ...]
    labels: tuple[LabelSpec, ...]
    has_group: bool = False

    def __post_init__(self) -> None:
        _check(self)

    @property
    def features(self) -> tuple[IdFeature | ContinuousFeature | VectorFeature, ...]:
        """Ids, then continuous features, then vectors."""
        return (*self.ids, *self.continuous, *self.vectors)

    @property
    def num_slots(self) -> int:
        """S: ids of an example."""
        return sum(feature.num_slots for feature in self.ids)

    @property
    def num_vector_values(self) -> int:
        """V: values of all vectors of an example."""
        return sum(feature.dim for feature in self.vectors)

    def slot_features(self) -> np.ndarray:
        """int64 [S]: index into `ids` of each slot's feature."""
        return np.repeat(np.arange(len(self.ids)), [feature.num_slots for feature in self.ids]).astype(np.int64)

    def of_side(self, side: Side) -> FeatureSpec:
        """The same with one side's features only; labels stay."""
        ids, continuous, vectors = (
            tuple(feature for feature in features if feature.side == side)
            for features in (self.ids, self.continuous, self.vectors)
        )
        return FeatureSpec(ids, continuous, vectors, self.labels, self.has_group)  # type: ignore[arg-type]

    def columns(self) -> dict[str, pa.DataType]:
        """Name -> type of the encoded columns: ids (of 32 bits where they fit), continuous, vectors, labels, weight and
        group."""
        columns = {
            name: pa.int32() if feature.num_rows <= _INT32_ROWS else pa.int64()
            for feature in self.ids
            for name in feature.columns()
        }
        columns |= {
            name: pa.float32()
            for features in (self.continuous, self.vectors)
            for feature in features
            for name in feature.columns()  # type: ignore[attr-defined]
        }
        columns.update({f"y.{label.name}": pa.float32() for label in self.labels})
        columns["w"] = pa.float32()
        if self.has_group:
            columns["group"] = pa.int64()
        return columns

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `save` writes them."""
        values = {"format_version": FORMAT_VERSION, **json.loads(json.dumps(dataclasses.asdict(self)))}
        for vector in values["vectors"]:
            # Vectors of a column are described as they were before there were target encodings.
            if not vector["table_hash"]:
                del vector["table_hash"]
        return values

    def fingerprint(self) -> str:
        """A digest in hex of features, labels, vocabularies and target tables; not of where pretrained ones lie."""
        values = self.to_dict()
        for feature in values["ids"]:
            feature["embedding"] = feature["embedding"] is not None
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON to a file, or to `encoding.json` of an existing folder; whole or not at all."""
        with atomic_write(_file(path), "w") as file:
            json.dump(self.to_dict(), file, indent=1)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureSpec:
        """Reads what `save` wrote: a file, or a folder with an `encoding.json`.

        Raises:
            DataError: it is missing, no JSON, of another version, or describes no valid spec.
        """
        where = _file(path)
        with open_file(where, "r") as file:
            text = file.read()
        try:
            return cls.from_dict(json.loads(text), where=where)
        except json.JSONDecodeError as error:
            raise _unreadable(where, str(error)) from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "feature spec") -> FeatureSpec:
        """The spec of `to_dict`'s values.

        Raises:
            DataError: they are of another version, or describe no valid spec.
        """
        version = values.get("format_version") if isinstance(values, Mapping) else None
        if version != FORMAT_VERSION:
            raise DataError(
                "feature spec of an unknown version", where=where, value=version, limit=f"version {FORMAT_VERSION}",
                fix="prepare the data again with this version of tml",
            )  # fmt: skip
        try:
            return cls(
                tuple(IdFeature(**feature) for feature in values["ids"]),
                tuple(_continuous(feature) for feature in values["continuous"]),
                tuple(VectorFeature(**feature) for feature in values["vectors"]),
                tuple(LabelSpec(**label) for label in values["labels"]),
                bool(values["has_group"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise _unreadable(where, f"{type(error).__name__}: {error}") from None


def _continuous(values: Mapping[str, Any]) -> ContinuousFeature:
    discretizer = values["discretizer"]
    return ContinuousFeature(**{**values, "discretizer": DiscretizerSpec(**discretizer) if discretizer else None})


def _file(path: str | os.PathLike[str]) -> str:
    return str(Path(path) / ENCODING_FILE) if os.path.isdir(path) else os.fspath(path)


def _unreadable(where: str, why: str) -> DataError:
    return DataError("feature spec cannot be read", where=where, value=why, fix="prepare the data again")


def _check(spec: FeatureSpec) -> None:
    _check_unique("feature names", (feature.name for feature in spec.features))
    _check_unique("label names", (label.name for label in spec.labels))
    _check_unique("columns", (name for feature in spec.features for name in feature.columns()))
    for feature in spec.features:
        _check_choice(feature.name, feature.side, Side)
    for feature in spec.ids:
        _check_choice(feature.name, feature.pooling, Pooling)
        _check_size(feature.name, "num_rows", feature.num_rows, FIRST_KNOWN)
        _check_size(feature.name, "num_slots", feature.num_slots, 1)
    for feature in spec.continuous:
        _check_choice(feature.name, feature.transform, Transform)
        if feature.discretizer is not None:
            _check_choice(feature.name, feature.discretizer.kind, DiscretizerKind)
            _check_size(feature.name, "num_bins", feature.discretizer.num_bins, 1)
            _check_size(feature.name, "output_bits", feature.discretizer.output_bits, 1)
            _check_choice(feature.name, feature.discretizer.encoding, BinEncoding)
        elif not feature.keep_value:
            raise _invalid(feature.name, "keep_value false without a discretizer", "the value, a discretizer, or both")
    for feature in spec.vectors:
        _check_size(feature.name, "dim", feature.dim, 1)
    for label in spec.labels:
        _check_choice(label.name, label.kind, LabelKind)


def _check_unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen or not name:
            raise _invalid(what, name, f"{what} that are all different and not empty")
        seen.add(name)


def _check_size(name: str, field: str, value: object, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise _invalid(f"{name}, {field}", value, f"an integer of at least {least}")


def _check_choice(name: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        raise _invalid(name, value, f"one of {', '.join(get_args(choices))}")


def _invalid(where: str, value: object, limit: str) -> DataError:
    return DataError("a feature spec that cannot be", where=where, value=value, limit=limit, fix="check features.yaml")
