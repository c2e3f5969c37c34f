"""From raw columns to ids and numbers, the same way for training data and for requests.

An encoder lives in a folder: `encoding.json` (the spec), `features.yaml` (with regular expressions and types resolved)
`vocab/` and `targets/`. `prepare` makes such a folder, and an export holds a copy.

Letters: `B` rows, `S` slots of ids, `C` continuous features, `V` values of all vectors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from tml.common.errors import DataError
from tml.core.config.base_config import did_you_mean
from tml.projects.light_ranker.features.column_encoders import (
    IdEncoder,
    IdListEncoder,
    NumberEncoder,
    VectorEncoder,
    label_of,
)
from tml.projects.light_ranker.features.config import FeatureConfig
from tml.projects.light_ranker.features.faults import RowFaults
from tml.projects.light_ranker.features.feature_file import read_resolved
from tml.projects.light_ranker.features.kinds import (
    AnyFeature,
    CategoricalConfig,
    ContinuousConfig,
    IdsConfig,
    TargetEncodingConfig,
    VectorConfig,
)
from tml.projects.light_ranker.features.lookup import HashedLookup, IdentityLookup, Lookup
from tml.projects.light_ranker.features.raw_columns import Raw
from tml.projects.light_ranker.features.spec import (
    ENCODING_FILE,
    ContinuousFeature,
    DiscretizerSpec,
    FeatureSpec,
    IdFeature,
    LabelSpec,
    Side,
    VectorFeature,
)
from tml.projects.light_ranker.features.target_encoder import (
    TARGET_ENCODING_DIM,
    TargetEncoder,
    encoding_digest,
    load_target_tables,
)
from tml.projects.light_ranker.features.target_table import TargetTable
from tml.projects.light_ranker.features.vocabulary import Vocabulary, load_vocabularies

FEATURES_FILE, VOCAB_FOLDER, TARGETS_FOLDER = "features.yaml", "vocab", "targets"
ENCODER_FILES = (ENCODING_FILE, FEATURES_FILE, VOCAB_FOLDER, TARGETS_FOLDER)  # what an export copies
SIDES: tuple[Side, ...] = ("user", "candidate")


@dataclass(frozen=True)
class EncodedRows:
    """Rows as a model takes them, features in the order of the spec.

    Args:
        ids: int64 [B, S]; rows of the features' own tables, -1 pads.
        continuous: float32 [B, C]; NaN where missing.
        vectors: float32 [B, V].
        truncated: multi-valued features of which lists were cut off, and which lists: bool [B].
    """

    ids: np.ndarray
    continuous: np.ndarray
    vectors: np.ndarray
    truncated: dict[str, np.ndarray] = field(default_factory=dict)


class Encoder:
    """Encodes rows by a feature config.

    Args:
        config: without regular expressions, and with the types of ids resolved.
        vocabularies: of the features that have one.
        embeddings: pretrained table as `<folder>#<table>`, by feature; None for none.
        target_tables: of the features that are target encodings.
    """

    def __init__(
        self,
        config: FeatureConfig,
        vocabularies: Mapping[str, Vocabulary],
        embeddings: Mapping[str, str | None],
        target_tables: Mapping[str, TargetTable] | None = None,
    ) -> None:
        self.config = config
        lookups = {str(f.name): _lookup(f, vocabularies) for f in id_features(config)}
        tables = target_tables or {}
        self.spec = _spec(config, lookups, embeddings, tables)
        self._by_side = {side: _SideEncoder(self._features(side), lookups, tables, config) for side in (None, *SIDES)}

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Encoder:
        """Reads an encoder's folder.

        Raises:
            DataError: a file is missing or damaged, or the files are not of one encoding.
            ConfigError: features.yaml is not as `prepare` wrote it.
        """
        folder = Path(folder)
        spec = FeatureSpec.load(folder / ENCODING_FILE)
        config = read_resolved(folder / FEATURES_FILE)
        hashes = {feature.name: feature.vocabulary_hash for feature in spec.ids if feature.vocabulary_hash}
        vocabularies = load_vocabularies(folder / VOCAB_FOLDER, hashes)
        tables = load_target_tables(folder / TARGETS_FOLDER, config, {one.name: one.table_hash for one in spec.vectors})
        encoder = cls(config, vocabularies, {feature.name: feature.embedding for feature in spec.ids}, tables)
        if encoder.spec != spec:
            raise DataError(
                f"{FEATURES_FILE} and {ENCODING_FILE} disagree", where=str(folder), value=encoder.spec.fingerprint(),
                limit=spec.fingerprint(), fix="put the folder back as `prepare` wrote it, or prepare the data again",
            )  # fmt: skip
        return encoder

    def columns(self, side: Side | None = None) -> list[str]:
        """The raw columns that `encode` needs; keys of a candidate's target encoding may be columns of the user."""
        return list(dict.fromkeys(column for feature in self._features(side) for column in feature.columns))

    def encode(self, columns: Mapping[str, Raw], side: Side | None = None) -> EncodedRows:
        """Encodes the rows of a request; nothing can be left out here, so `skip` in `bad_values` is an error too.

        Args:
            columns: raw column name -> B values: a sequence, or an array of NumPy or Arrow, with None (or NaN) where
                missing; others are ignored.
            side: only this side's features, in the order of `spec.of_side(side)`; both by default.

        Raises:
            DataError: a column is missing or of a wrong type or length, or a value is bad; names row and feature.
        """
        num_rows = self.num_rows(columns, side)
        return self._by_side[side].encode(columns, RowFaults(num_rows, "columns"), num_rows, "C")

    def encode_batch(
        self, columns: Mapping[str, Raw], faults: RowFaults, fold_draws: np.ndarray | None = None
    ) -> EncodedRows:
        """Encodes rows of training data column by column; rows to leave out are noted in `faults`, and hold anything.

        Args:
            columns: as for `encode`.
            faults: of these rows.
            fold_draws: float64 [B], for training rows the draw of `rows.fold_draws`, NaN for others; None: all NaN.

        Raises:
            DataError: as for `encode`, where `bad_values` says error.
        """
        return self._by_side[None].encode(columns, faults, self.num_rows(columns), "F", fold_draws)

    def num_rows(self, columns: Mapping[str, Raw], side: Side | None = None) -> int:
        """The common length of the columns.

        Raises:
            DataError: a column is missing, or their lengths differ.
        """
        lengths: dict[str, int] = {}
        for feature, column in ((one, column) for one in self._features(side) for column in one.columns):
            if column not in columns:
                raise DataError(
                    "a column is missing", where=label_of(feature.name, column), value=column,
                    fix=f"give the column, with None for missing values{did_you_mean(column, columns)}",
                )  # fmt: skip
            lengths[column] = len(columns[column])
        if len(set(lengths.values())) > 1:
            raise DataError("columns differ in length", value=lengths, limit="one value per row in every column")
        return next(iter(lengths.values()), 0)

    def _features(self, side: Side | None) -> list[AnyFeature]:
        return [feature for feature in self.config.features if side is None or feature.side == side]


SomeFeature = TypeVar("SomeFeature", bound=AnyFeature)


class _SideEncoder:
    """The encoders of one side's columns, and their places in the encoded rows."""

    def __init__(
        self,
        features: list[AnyFeature],
        lookups: Mapping[str, Lookup],
        tables: Mapping[str, TargetTable],
        config: FeatureConfig,
    ) -> None:
        actions = config.bad_values
        ids = [feature for feature in features if isinstance(feature, CategoricalConfig | IdsConfig)]
        self._ids = [
            (str(f.name), slots, (IdEncoder if isinstance(f, CategoricalConfig) else IdListEncoder)(f, lookup, actions))  # type: ignore[arg-type]
            for f, slots in _slices(ids)
            for lookup in (lookups[str(f.name)],)
        ]
        self._numbers = [NumberEncoder(f, actions) for f in features if isinstance(f, ContinuousConfig)]
        vectors = [feature for feature in features if isinstance(feature, VectorConfig | TargetEncodingConfig)]
        places = list(_slices(vectors))
        self._vectors = [(values, VectorEncoder(f, actions)) for f, values in places if isinstance(f, VectorConfig)]
        self._targets = [
            (values, TargetEncoder(f, config.encoded_label(f).kind, tables[f.name]))
            for f, values in places
            if isinstance(f, TargetEncodingConfig)
        ]
        self._num_slots = sum(_width(feature) for feature in ids)
        self._num_values = sum(_width(feature) for feature in vectors)

    def encode(
        self,
        columns: Mapping[str, Raw],
        faults: RowFaults,
        num_rows: int,
        order: str,
        fold_draws: np.ndarray | None = None,
    ) -> EncodedRows:
        """Encodes B rows into arrays of C or Fortran order."""
        ids = np.empty((num_rows, self._num_slots), np.int64, order=order)  # type: ignore[call-overload]
        continuous = np.empty((num_rows, len(self._numbers)), np.float32, order=order)  # type: ignore[call-overload]
        vectors = np.empty((num_rows, self._num_values), np.float32, order=order)  # type: ignore[call-overload]
        truncated = {}
        for name, slots, encoder in self._ids:
            cut = encoder.encode(columns[encoder.column], faults, ids[:, slots])
            if cut is not None:
                truncated[name] = cut
        for place, number in enumerate(self._numbers):
            number.encode(columns[number.column], faults, continuous[:, place])
        for values, vector in self._vectors:
            vector.encode(columns[vector.column], faults, vectors[:, values])
        for values, target in self._targets:
            target.encode(columns, faults, vectors[:, values], fold_draws)
        return EncodedRows(ids, continuous, vectors, truncated)


def id_features(config: FeatureConfig) -> list[CategoricalConfig | IdsConfig]:
    """The features that are ids, in order."""
    return [feature for feature in config.features if isinstance(feature, CategoricalConfig | IdsConfig)]


def _lookup(feature: CategoricalConfig | IdsConfig, vocabularies: Mapping[str, Vocabulary]) -> Lookup:
    if feature.hashed is not None:
        return HashedLookup(feature.hashed)
    if feature.identity is not None:
        return IdentityLookup(feature.identity)
    vocabulary = vocabularies[str(feature.name)]
    if vocabulary.value_type != feature.type:
        raise DataError(
            "a vocabulary is not of its feature's type", where=label_of(feature.name, feature.source),
            value=vocabulary.value_type, limit=feature.type, fix=f"set `type: {vocabulary.value_type}` for the feature",
        )  # fmt: skip
    return vocabulary


def _spec(
    config: FeatureConfig,
    lookups: Mapping[str, Lookup],
    embeddings: Mapping[str, str | None],
    tables: Mapping[str, TargetTable],
) -> FeatureSpec:
    ids = tuple(_id_feature(f, lookups[str(f.name)], embeddings.get(str(f.name))) for f in id_features(config))
    continuous = tuple(_continuous_feature(f) for f in config.features if isinstance(f, ContinuousConfig))
    vectors = tuple(
        _vector_feature(f, config, tables)
        for f in config.features
        if isinstance(f, VectorConfig | TargetEncodingConfig)
    )
    labels = tuple(LabelSpec(label.name, label.kind) for label in config.labels)
    return FeatureSpec(ids, continuous, vectors, labels, config.group is not None)


def _id_feature(feature: CategoricalConfig | IdsConfig, lookup: Lookup, embedding: str | None) -> IdFeature:
    return IdFeature(
        str(feature.name),
        feature.side,
        lookup.num_rows,
        num_slots=_width(feature),
        pooling=feature.pooling if isinstance(feature, IdsConfig) else "sum",
        embedding=embedding,
        trainable=feature.pretrained is None or feature.pretrained.trainable,
        vocabulary_hash=lookup.hash() if isinstance(lookup, Vocabulary) else "",
    )


def _continuous_feature(feature: ContinuousConfig) -> ContinuousFeature:
    bins = feature.discretizer
    discretizer = None if bins is None else DiscretizerSpec(bins.kind, bins.num_bins, bins.output_bits, bins.encoding)
    return ContinuousFeature(str(feature.name), feature.side, feature.transform, discretizer, feature.keep_value)


def _vector_feature(
    feature: VectorConfig | TargetEncodingConfig, config: FeatureConfig, tables: Mapping[str, TargetTable]
) -> VectorFeature:
    digest = ""
    if isinstance(feature, TargetEncodingConfig):
        digest = encoding_digest(feature, config.encoded_label(feature).kind, tables[feature.name])
    return VectorFeature(str(feature.name), feature.side, _width(feature), digest)


def _width(feature: AnyFeature) -> int:
    if isinstance(feature, TargetEncodingConfig):
        return TARGET_ENCODING_DIM
    if isinstance(feature, VectorConfig):
        return feature.dim
    return feature.max_length if isinstance(feature, IdsConfig) else 1


def _slices(features: Sequence[SomeFeature]) -> Iterator[tuple[SomeFeature, slice]]:
    start = 0
    for feature in features:
        yield feature, slice(start, start + _width(feature))
        start += _width(feature)
