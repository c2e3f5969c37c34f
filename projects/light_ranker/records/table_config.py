"""Which features of DataRecords become which columns of a table, and back.

features:
  - {name: user.followers, type: continuous}
  - {name: user.topics, type: sparse_binary, column: topics}
  - {name: tweet.embedding, type: tensor, dtype: float32}
labels:
  - {name: recap.engagement.is_favorited}
  - {name: watch_time_ms, type: continuous}
weight: {name: meta.record_weight/type=earlybird, column: weight}
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tml.core.config.base_config import BaseConfig
from tml.projects.light_ranker.records.feature_ids import feature_id

FeatureKind = Literal[
    "binary", "continuous", "discrete", "string", "sparse_binary", "sparse_continuous", "blob", "tensor"
]
TensorDtype = Literal["float32", "float64", "int32", "int64"]


class NamedId(BaseConfig):
    """A feature of the records and its column."""

    name: str = Field(min_length=1, description="The feature's full name in the records, from which its id follows.")
    id: int | None = Field(default=None, ge=-(2**63), lt=2**63, description="Its id, where that is not the name's.")
    column: str | None = Field(default=None, min_length=1, description="The column's name; the feature's when None.")

    @property
    def key(self) -> int:
        """The id in the records."""
        return feature_id(self.name) if self.id is None else self.id

    @property
    def column_name(self) -> str:
        """The column in the table."""
        return self.column or self.name


class FeatureColumn(NamedId):
    """A feature as a column."""

    type: FeatureKind = Field(description="Kind of the feature in the records.")
    dtype: TensorDtype = Field(default="float32", description="Elements of a tensor's column.")


class LabelColumn(NamedId):
    """A label as a column of float64."""

    type: Literal["binary", "continuous"] = Field(
        default="binary", description="How it is written to records; read, it may be either."
    )


class WeightColumn(NamedId):
    """The example's weight as a column of float64, a continuous feature of the records."""


class RecordTableConfig(BaseConfig):
    """The columns of a table of records."""

    features: tuple[FeatureColumn, ...] = Field(description="In the order of the table's columns.")
    labels: tuple[LabelColumn, ...] = Field(default=(), description="Targets, after the features.")
    weight: WeightColumn | None = Field(default=None, description="Weight of each example; none when None.")
    default_label: float = Field(
        default=0.0, allow_inf_nan=False, description="Of records without the label, or with NaN for it."
    )

    @property
    def all_columns(self) -> tuple[NamedId, ...]:
        """Features, labels and weight."""
        return (*self.features, *self.labels, *(() if self.weight is None else (self.weight,)))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.all_columns:
            raise ValueError("there are neither features nor labels")
        for what in ("key", "column_name"):
            owners: dict[int | str, str] = {}
            for each in self.all_columns:
                value = getattr(each, what)
                if value in owners:
                    raise ValueError(f"{owners[value]!r} and {each.name!r} share the {what.split('_')[0]} {value!r}")
                owners[value] = each.name
        return self
