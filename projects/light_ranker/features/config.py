"""features.yaml: which columns of a table are features, labels, weight and group, and what happens to odd values.

    features:
      - {name: user_id, kind: categorical, side: user, vocabulary: {min_count: 2}}
      - {match: "C.*", kind: categorical, side: candidate, hashed: {num_buckets: 100000}}
      - {name: topics, kind: ids, side: candidate, max_length: 5, pooling: mean}
      - {name: age, kind: continuous, side: user, discretizer: {kind: percentile}}
      - {name: image, kind: vector, side: candidate, dim: 64}
    labels:
      - {name: click, kind: binary}
      - {name: watch_time, kind: nonnegative, column: play_time_ms, scale: 0.001}

Every regular expression has to match the whole name or value.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tml.core.config.base_config import BaseConfig
from tml.projects.light_ranker.features.spec import (
    BinEncoding,
    DiscretizerKind,
    LabelKind,
    Pooling,
    Side,
    Transform,
)

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^/\\\x00-\x1f]+$")]
Column = Annotated[str, Field(min_length=1)]
Value = str | int | float | bool
IdType = Literal["auto", "int", "string"]

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


def _regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return pattern


Regex = Annotated[str, Field(min_length=1), AfterValidator(_regex)]


class VocabularyConfig(BaseConfig):
    """Every value seen often enough in the training rows gets a row of its own."""

    max_size: int | None = Field(default=None, ge=1, lt=2**40, description="Keep the most frequent values only.")
    min_count: int = Field(default=1, ge=1, description="Values seen in fewer training rows count as unknown.")


class HashedConfig(BaseConfig):
    """A value's row is its hash: no vocabulary, and values may share a row."""

    num_buckets: int = Field(ge=1, lt=2**40, description="Number of rows that values are spread over.")


class IdentityConfig(BaseConfig):
    """Values are row numbers already."""

    num_ids: int = Field(ge=1, lt=2**40, description="Values are integers from 0 to num_ids - 1.")


class PretrainedConfig(BaseConfig):
    """Values are ids of a table that `tml twhin export` wrote; its embeddings are used."""

    folder: str = Field(min_length=1, description="The exported model's folder.")
    table: str = Field(min_length=1, description="Name of the table in it, such as user.")
    trainable: bool = Field(default=False, description="Fine-tune the embeddings, or keep them as they are.")


class _BaseFeature(BaseConfig):
    """What features of all kinds have."""

    one_of: ClassVar[tuple[tuple[str, ...], ...]] = (("name", "match"),)

    name: Name | None = Field(default=None, description="Name of the feature.")
    match: Regex | None = Field(
        default=None, description="Instead of a name: stands for all columns whose name matches, each a feature."
    )
    column: Column | None = Field(default=None, description="Column of the table; by default the feature's name.")
    side: Side = Field(description="user: the same for all candidates of a request; candidate: differs among them.")
    missing_values: list[Value] = Field(
        default_factory=list, description="Values that stand for a missing one, such as -1 or 'unknown'."
    )

    @model_validator(mode="after")
    def _match_has_no_column(self) -> Self:
        if self.match is not None and self.column is not None:
            raise ValueError("column goes with a name, not with match: a matching column is its own name")
        return self

    @property
    def source(self) -> str:
        """The column that holds it."""
        return self.column or self.name or ""


class _IdConfig(_BaseFeature):
    """What single-valued and multi-valued ids have."""

    at_most_one_of: ClassVar[tuple[tuple[str, ...], ...]] = (("vocabulary", "hashed", "identity", "pretrained"),)

    vocabulary: VocabularyConfig | None = Field(default=None, description="The default, of all values.")
    hashed: HashedConfig | None = Field(default=None, description="Instead of a vocabulary.")
    identity: IdentityConfig | None = Field(default=None, description="Instead of a vocabulary.")
    pretrained: PretrainedConfig | None = Field(default=None, description="Instead of a vocabulary.")
    type: IdType = Field(default="auto", description="Of the values; auto: as in the table, and string in text files.")
    default: Value | None = Field(default=None, description="Value in place of a missing one; null keeps it missing.")

    @model_validator(mode="after")
    def _identity_is_of_integers(self) -> Self:
        if self.identity is not None and self.type == "string":
            raise ValueError("identity ids are integers, not strings")
        return self


class CategoricalConfig(_IdConfig):
    """One id per row."""

    kind: Literal["categorical"] = Field(description="One id.")


class IdsConfig(_IdConfig):
    """A list of ids per row."""

    kind: Literal["ids"] = Field(description="A list of ids.")
    max_length: int = Field(ge=1, le=1000, description="Ids beyond are cut off, and counted.")
    pooling: Pooling = Field(default="mean", description="How the embeddings of a list become one.")
    separator: str | None = Field(
        default=None, min_length=1, description="Splits a text column into ids, such as '|'; needed in text files."
    )


class DiscretizerConfig(BaseConfig):
    """Bins of a continuous feature, fitted in the calibration phase."""

    kind: DiscretizerKind = Field(description="percentile (equal mass), its hashed forms, or mdlp (supervised).")
    num_bins: int = Field(default=20, ge=1, le=100_000, description="Number of bins.")
    output_bits: int = Field(default=22, ge=1, le=40, description="Hashed kinds spread over 2**output_bits ids.")
    encoding: BinEncoding = Field(
        default="embedding",
        description="How bins enter an mlp. embedding: a row for each bin. piecewise_linear: num_bins numbers, each "
        "the share of its bin below the value, so that neighbouring values stay alike. lolly_lr takes ids always.",
    )

    @model_validator(mode="after")
    def _numbers_have_no_hash(self) -> Self:
        if self.encoding == "piecewise_linear" and self.kind in ("hashed_percentile", "hashing"):
            raise ValueError(f"a piecewise-linear encoding hashes nothing: kind percentile or mdlp, not {self.kind}")
        return self


class ContinuousConfig(_BaseFeature):
    """A number per row."""

    kind: Literal["continuous"] = Field(description="A number.")
    transform: Transform = Field(
        default="log_z_score", description="Of the value that enters the network; fitted in the calibration phase."
    )
    discretizer: DiscretizerConfig | None = Field(default=None, description="Its bins enter too.")
    keep_value: bool = Field(default=True, description="false: its bins enter alone.")
    default: float | None = Field(
        default=None, allow_inf_nan=False, description="Number in place of a missing one; null keeps it missing."
    )

    @model_validator(mode="after")
    def _enters_somehow(self) -> Self:
        if not self.keep_value and self.discretizer is None:
            raise ValueError("keep_value: false without a discretizer leaves nothing of the feature")
        return self


class VectorConfig(_BaseFeature):
    """A dense vector of fixed length per row."""

    kind: Literal["vector"] = Field(description="A list of numbers, always as many.")
    dim: int = Field(ge=1, le=8192, description="Length of the vector.")
    default: float = Field(
        default=0.0, allow_inf_nan=False, description="Fills a missing vector, and takes the place of a NaN in one."
    )


AnyFeature = Annotated[
    CategoricalConfig | IdsConfig | ContinuousConfig | VectorConfig, Field(discriminator="kind")
]  # fmt: skip


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
        default="error", description="Infinite, or no number at all; missing: as if there were none."
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
        leaking = [feature.name for feature in self.features if feature.name is not None and feature.source in labels]
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
