"""features.yaml: which columns are features (of which kinds, says `kinds`), labels, weight and group, and what happens
to odd values.

    features:
      - {name: user_id, kind: categorical, side: user, vocabulary: {min_count: 2}}
      - {match: "C.*", kind: categorical, side: candidate, hashed: {num_buckets: 100000}}
      - {name: topics, kind: ids, side: candidate, max_length: 5, pooling: mean}
      - {name: age, kind: continuous, side: user, discretizer: {kind: percentile}}
      - {name: image, kind: vector, side: candidate, dim: 64}
      - {name: author_rate, kind: target_encoding, side: candidate, keys: [author, country], label: click}
    labels:
      - {name: click, kind: binary}
      - {name: watch_time, kind: nonnegative, column: play_time_ms, scale: 0.001}

Every regular expression has to match the whole name or value.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tml.core.config.base_config import BaseConfig
from tml.projects.light_ranker.features.kinds import AnyFeature, Column, Name, Regex, TargetEncodingConfig, Value
from tml.projects.light_ranker.features.spec import LabelKind, Side

# The weights that Earlybird's record weight already holds, by the last part of the engagement's name.
EARLYBIRD_WEIGHTS = {
    "is_clicked": 0.3,
    "is_favorited": 1.0,
    "is_open_linked": 0.1,
    "is_photo_expanded": 0.03,
    "is_profile_clicked": 1.0,
    "is_replied": 9.0,
    "is_retweeted": 1.0,
    "is_video_playback_50": 0.01,
}


class LabelConfig(BaseConfig):
    """What is predicted."""

    name: Name = Field(description="Name of the label, such as click.")
    kind: LabelKind = Field(description="binary: 0 or 1. nonnegative: a quantity such as seconds watched.")
    column: Column | None = Field(default=None, description="Column of the table; by default the label's name.")
    scale: float = Field(
        default=1.0, gt=0, allow_inf_nan=False,
        description="Factor of a nonnegative label: 0.001 makes seconds of milliseconds.",
    )  # fmt: skip
    positive: list[Value] | None = Field(
        default=None, description="Values of a binary label that mean 1, such as [yes]; all others then mean 0."
    )
    default: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="In place of a missing label; null makes it a bad value."
    )

    @property
    def source(self) -> str:
        """The column that holds it."""
        return self.column or self.name

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.kind == "binary" and self.scale != 1.0:
            raise ValueError("scale is for nonnegative labels")
        if self.kind == "nonnegative" and self.positive is not None:
            raise ValueError("positive is for binary labels")
        if self.kind == "binary" and self.default not in (None, 0.0, 1.0):
            raise ValueError("the default of a binary label is 0 or 1")
        return self


class EngagementConfig(BaseConfig):
    """Re-weighting of rows by one label."""

    label: Name = Field(description="One of the labels.")
    weight: float = Field(ge=0, allow_inf_nan=False, description="The weight wished for.")
    default: float | None = Field(
        default=None, ge=0, allow_inf_nan=False,
        description="The weight that the record's weight already holds; null: Earlybird's, by the label's name.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _default_is_known(self) -> Self:
        if self.default is None and self.label.rsplit(".", 1)[-1] not in EARLYBIRD_WEIGHTS:
            raise ValueError(
                f"Earlybird has no default weight for {self.label!r}, only for {', '.join(EARLYBIRD_WEIGHTS)}; "
                "give a default (0 if the record's weight holds none)"
            )
        return self

    @property
    def difference(self) -> float:
        """What a row with the label gains in weight."""
        default = EARLYBIRD_WEIGHTS[self.label.rsplit(".", 1)[-1]] if self.default is None else self.default
        return self.weight - default


class WeightConfig(BaseConfig):
    """Weight of a row: `w = w_record + sum over engagements l of (weight_l - default_l) * y_l`."""

    column: Column | None = Field(default=None, description="Column of the record's weight; without one it is 1.")
    default: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="In place of a missing weight; null makes it a bad value."
    )
    engagements: list[EngagementConfig] = Field(default_factory=list, description="Labels that change the weight.")


class RowFilterConfig(BaseConfig):
    """Rows to keep or drop by one column's value as text; a missing value matches nothing."""

    one_of: ClassVar[tuple[tuple[str, ...], ...]] = (("matches", "equals"),)

    column: Column = Field(description="Column of the table.")
    matches: Regex | None = Field(default=None, description="Regular expression (RE2) for the whole value.")
    equals: list[Value] | None = Field(default=None, min_length=1, description="One of these values.")
    drop: bool = Field(default=False, description="Drop the rows that match; by default they alone are kept.")


class FiltersConfig(BaseConfig):
    """What is left out, of columns and of rows."""

    include: list[Regex] = Field(
        default_factory=list, description="If any are given, only features whose column matches one of them."
    )
    exclude: list[Regex] = Field(default_factory=list, description="No features whose column matches one of them.")
    rows: list[RowFilterConfig] = Field(default_factory=list, description="A row has to pass all of them.")

    def keeps_column(self, column: str) -> bool:
        """Whether the column may be a feature."""
        included = not self.include or any(re.fullmatch(pattern, column) for pattern in self.include)
        return included and not any(re.fullmatch(pattern, column) for pattern in self.exclude)


class BadValuesConfig(BaseConfig):
    """What to do about values that cannot be: stop with an error, or leave the row out and count it."""

    labels: Literal["error", "skip"] = Field(default="error", description="Missing, outside {0, 1}, or negative.")
    weights: Literal["error", "skip"] = Field(default="error", description="Missing, negative or not finite.")
    numbers: Literal["error", "skip", "missing"] = Field(
        default="error",
        description="Infinite, no number at all, or a hole in a vector; missing: as if there were none.",
    )
    ids: Literal["error", "skip", "unknown"] = Field(
        default="error", description="Identity ids outside the table; unknown: as an unknown value."
    )
    rows: Literal["error", "skip"] = Field(
        default="error", description="Lines of a text file with too few or too many fields, rows without a group."
    )


class TextConfig(BaseConfig):
    """How CSV and TSV files are read; the first line names the columns."""

    delimiter: str | None = Field(
        default=None, min_length=1, max_length=1, description="By default a tab in .tsv files and else a comma."
    )
    quote: str | None = Field(default='"', min_length=1, max_length=1, description="null: quotes mean nothing.")
    missing_values: list[str] = Field(default_factory=lambda: [""], description="Texts that mean a missing value.")


class FeatureConfig(BaseConfig):
    """The whole file."""

    features: list[AnyFeature] = Field(min_length=1, description="In the order in which the model sees them.")
    labels: list[LabelConfig] = Field(min_length=1, description="The first binary one is the click.")
    weight: WeightConfig = Field(default_factory=WeightConfig, description="By default every row weighs 1.")
    group: Column | None = Field(
        default=None, description="Column of the request or user, for ranking losses and NDCG."
    )
    filters: FiltersConfig = Field(default_factory=FiltersConfig, description="By default nothing is left out.")
    bad_values: BadValuesConfig = Field(default_factory=BadValuesConfig, description="By default errors.")
    text: TextConfig = Field(default_factory=TextConfig, description="Of CSV and TSV files.")

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        for what, names in (
            ("features", [feature.name for feature in self.features if feature.name is not None]),
            ("labels", [label.name for label in self.labels]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"two {what} have the name {twice[0]!r}")
        return self

    @model_validator(mode="after")
    def _labels_are_no_features(self) -> Self:
        labels = {label.source for label in self.labels}
        leaking = [one.name for one in self.features if one.name is not None and labels.intersection(one.columns)]
        if leaking:
            raise ValueError(f"feature {leaking[0]!r} is the column of a label: the model would see the answer")
        return self

    @model_validator(mode="after")
    def _engagements_are_labels(self) -> Self:
        labels = [label.name for label in self.labels]
        for engagement in self.weight.engagements:
            if engagement.label not in labels:
                raise ValueError(f"weight.engagements names {engagement.label!r}, which is no label; labels: {labels}")
        return self

    @model_validator(mode="after")
    def _target_encodings_fit(self) -> Self:
        labels = [label.name for label in self.labels]
        candidate, user = self._columns_of("candidate"), self._columns_of("user")
        for feature in self.target_encodings():
            if feature.label not in labels:
                raise ValueError(
                    f"feature {feature.name!r} encodes {feature.label!r}, which is no label; labels: {labels}"
                )
            stray = [key for key in feature.keys if key in candidate - user]
            if feature.side == "user" and stray:
                raise ValueError(
                    f"feature {feature.name!r} is of the user's side, and its key {stray[0]!r} a candidate's column: "
                    "make it side: candidate"
                )
        return self

    def target_encodings(self) -> list[TargetEncodingConfig]:
        """The features that are rates of their keys, in order."""
        return [feature for feature in self.features if isinstance(feature, TargetEncodingConfig)]

    def encoded_label(self, feature: TargetEncodingConfig) -> LabelConfig:
        """The label whose rates a feature is."""
        return next(label for label in self.labels if label.name == feature.label)

    def key_side(self, feature: TargetEncodingConfig, key: str) -> Side:
        """With whom a request passes a key: with the user if it is a column of the user's side and of no candidate's
        feature, else with the side of the feature."""
        keys = {column for one in self.target_encodings() if one.side == "user" for column in one.keys}
        users = (self._columns_of("user") | keys) - self._columns_of("candidate")
        return "user" if key in users else feature.side

    def _columns_of(self, side: Side) -> set[str]:
        """Columns that are features themselves."""
        return {
            column
            for feature in self.features
            if feature.side == side and feature.name is not None and not isinstance(feature, TargetEncodingConfig)
            for column in feature.columns
        }

    def reserved_columns(self) -> set[str]:
        """Columns that a regular expression never turns into a feature: labels and the weight."""
        return {label.source for label in self.labels} | ({self.weight.column} if self.weight.column else set())

    def dumped(self) -> dict[str, Any]:
        """Plain values without what is at its default, names first, for a file that reads well."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        first = ("name", "match", "kind", "side")
        values["features"] = [
            {key: feature[key] for key in (*first, *feature) if key in feature} for feature in values["features"]
        ]
        return values
