"""The kinds of features that features.yaml may hold, and their settings."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tml.core.config.base_config import BaseConfig
from tml.projects.light_ranker.features.spec import BinEncoding, DiscretizerKind, Pooling, Side, Transform

_NOT_IN_NAMES = re.compile(r"[/\\\x00-\x1f]")


def feature_name(column: str) -> str:
    """A column's name as that of a feature: files are named by features, so slashes become underscores."""
    return _NOT_IN_NAMES.sub("_", column)


def _name(name: str) -> str:
    if feature_name(name) != name:
        raise ValueError(
            f"a name holds no slash, backslash or control character: write name: {feature_name(name)!r} and the "
            "table's own name as `column`"
        )
    return name


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_name)]
Column = Annotated[str, Field(min_length=1)]
Value = str | int | float | bool
IdType = Literal["auto", "int", "string"]


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

    @property
    def columns(self) -> list[str]:
        """All columns that it is made of."""
        return [self.source]


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
        default=0.0,
        allow_inf_nan=False,
        description="Fills a missing vector, and takes the place of missing_values in one.",
    )


class TargetEncodingConfig(BaseConfig):
    """What the label was in training rows with the same values of the keys: how far their smoothed mean lies from that
    of all rows, and how many they are.

    Each training row is encoded by rows of other folds than its own, so that its label is not in it (`target_table`).
    """

    name: Name = Field(description="Name of the feature.")
    kind: Literal["target_encoding"] = Field(description="Past rates of the keys: two numbers.")
    side: Side = Field(description="candidate, or user if all keys are known of the user.")
    keys: list[Column] = Field(min_length=1, description="Columns of ids; their values together are the key.")
    types: list[IdType] = Field(
        default_factory=list,
        description="Of the keys, one for each; auto: as in the table, and string in text files. None given: all auto.",
    )
    label: Name = Field(description="The label whose mean is taken; a nonnegative one as log(1 + value).")
    folds: int = Field(default=5, ge=2, le=100, description="Parts of the training rows, drawn by chance.")
    smoothing: float = Field(
        default=4.0, gt=0, allow_inf_nan=False, description="Rows of the mean label that are added to those of a key."
    )
    min_count: int = Field(default=1, ge=1, description="Keys seen in fewer training rows count as never seen.")

    @property
    def columns(self) -> list[str]:
        """All columns that it is made of."""
        return self.keys

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        twice = sorted({key for key in self.keys if self.keys.count(key) > 1})
        if twice:
            raise ValueError(f"two keys are {twice[0]!r}")
        if self.types and len(self.types) != len(self.keys):
            raise ValueError(f"types gives {len(self.types)} types for {len(self.keys)} keys")
        return self


AnyFeature = Annotated[
    CategoricalConfig | IdsConfig | ContinuousConfig | VectorConfig | TargetEncodingConfig,
    Field(discriminator="kind"),
]
