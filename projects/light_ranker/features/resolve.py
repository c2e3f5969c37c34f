"""A feature config against a table: regular expressions become columns, types definite, contradictions errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from tml.common.errors import ConfigError, DataError
from tml.core.config.loading import parse_config
from tml.projects.light_ranker.features import raw_columns
from tml.projects.light_ranker.features.column_encoders import label_of
from tml.projects.light_ranker.features.config import FeatureConfig
from tml.projects.light_ranker.features.kinds import (
    AnyFeature,
    CategoricalConfig,
    ContinuousConfig,
    IdsConfig,
    TargetEncodingConfig,
    VectorConfig,
    VocabularyConfig,
    feature_name,
)
from tml.projects.light_ranker.features.tables import check_columns


def resolve(config: FeatureConfig, schema: pa.Schema, where: str) -> FeatureConfig:
    """The config for tables of a schema, with one named feature per column and the types of ids decided.

    Args:
        schema: of the first training file.
        where: that file, for messages.

    Raises:
        ConfigError: a regular expression matches nothing, or nothing is left.
        DataError: a column is missing, or its type contradicts the kind of its feature.
    """
    features = [f for f in _expanded(config, schema, where) if all(map(config.filters.keeps_column, f.columns))]
    if not features:
        raise ConfigError(
            "no feature is left", where="filters", value=config.filters.model_dump(), limit="at least one"
        )
    check_types(features, schema, where)
    resolved = [_resolved(feature, schema) for feature in features]
    values = config.model_dump(mode="json", exclude={"features", "filters"})
    filters = config.filters.model_dump(mode="json", exclude={"include", "exclude"})
    return parse_config(FeatureConfig, {"features": resolved, "filters": filters, **values}, "features.yaml")


def _expanded(config: FeatureConfig, schema: pa.Schema, where: str) -> Iterator[AnyFeature]:
    """The features with every `match` replaced by a feature per column; the first that names a column has it."""
    named = [f for f in config.features if f.name is not None and not isinstance(f, TargetEncodingConfig)]
    taken = {column for feature in named for column in feature.columns} | config.reserved_columns()
    for feature in config.features:
        if isinstance(feature, TargetEncodingConfig) or feature.match is None:
            yield feature
            continue
        found = [name for name in schema.names if re.fullmatch(feature.match, name) and name not in taken]
        if not found:
            raise ConfigError(
                "a regular expression matches no column", where="features, match", value=feature.match,
                limit=f"columns of {where} that are no label, weight or named feature: "
                f"{', '.join(name for name in schema.names if name not in taken)}",
            )  # fmt: skip
        taken.update(found)
        for name in found:
            column = {"column": name} if feature_name(name) != name else {}
            yield feature.model_copy(update={"name": feature_name(name), **column, "match": None})


def check_types(features: list[AnyFeature], schema: pa.Schema, where: str) -> None:
    """Holds the kinds of features against the types of their columns.

    Raises:
        DataError: a column is missing or of a type that its feature cannot be of.
    """
    for feature, column in ((one, column) for one in features for column in one.columns):
        check_columns(schema, [column], where)
        kind = schema.field(column).type
        why = _contradiction(feature, kind)
        if why:
            raise DataError(
                "a feature contradicts its column", where=f"{where}, {label_of(feature.name, column)}",
                value=f"kind: {feature.kind} for a column of type {kind}", limit=why[0], fix=why[1],
            )  # fmt: skip


def _contradiction(feature: AnyFeature, kind: pa.DataType) -> tuple[str, str] | None:
    """What the column should be and how to mend it, or None if it fits."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    many, text = raw_columns.is_list(kind), raw_columns.is_text(kind)
    if pa.types.is_null(kind):
        return None
    if isinstance(feature, IdsConfig) and text and feature.separator is None:
        return "lists, or text with a separator", "name the `separator` between the ids, such as '|'"
    if isinstance(feature, IdsConfig | VectorConfig):
        fits = many or (text and isinstance(feature, IdsConfig))
        return None if fits else ("lists", "declare the feature as categorical or continuous")
    if isinstance(feature, TargetEncodingConfig) and (many or pa.types.is_decimal(kind)):
        return "one integer or text per row", "leave the key out, or convert the column"
    if many:
        return "one value per row", "declare the feature with kind: ids, or kind: vector"
    if isinstance(feature, ContinuousConfig) and pa.types.is_temporal(kind):
        return "numbers", "convert the column to a number, such as an age in hours"
    if isinstance(feature, CategoricalConfig) and pa.types.is_decimal(kind):
        return "integers or text", "declare the feature as continuous, or convert the column"
    return None


def _resolved(feature: AnyFeature, schema: pa.Schema) -> dict[str, Any]:
    values = feature.model_dump(mode="json")
    if isinstance(feature, TargetEncodingConfig):
        values["types"] = [
            raw_columns.value_type(schema.field(key).type, label_of(feature.name, key)) if kind == "auto" else kind
            for key, kind in zip(feature.keys, feature.types or ["auto"] * len(feature.keys), strict=True)
        ]
        return values
    if not isinstance(feature, CategoricalConfig | IdsConfig):
        return values
    if all(values[key] is None for key in ("vocabulary", "hashed", "identity", "pretrained")):
        values["vocabulary"] = VocabularyConfig().model_dump()
    if feature.identity is not None:
        values["type"] = "int"
    elif feature.type == "auto":
        values["type"] = raw_columns.value_type(
            schema.field(feature.source).type, label_of(feature.name, feature.source)
        )
    return values


def with_types(config: FeatureConfig, types: dict[str, raw_columns.ValueType]) -> FeatureConfig:
    """The config with the types of the vocabularies: a pretrained table's ids may be text where the column holds
    integers, or the other way round."""
    features = [
        feature.model_copy(update={"type": types[str(feature.name)]}) if feature.name in types else feature
        for feature in config.features
    ]
    return config.model_copy(update={"features": features})
