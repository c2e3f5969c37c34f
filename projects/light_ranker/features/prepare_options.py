"""What a preparation is told: input files, split, shares of rows, form of the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tml.common.errors import ConfigError
from tml.common.split_fractions import check_split_fractions
from tml.projects.light_ranker.data.files import DateRange, check_no_overlap, find_files, keep_files
from tml.projects.light_ranker.features.rows import SPLITS


@dataclass(frozen=True)
class PrepareOptions:
    """Settings of `prepare`.

    Args:
        features: the feature config's file.
        inputs: split -> paths, patterns, folders or URLs. `train` alone may be split by `split_fractions`.
        dates: split -> dates of patterns with date codes.
        split_fractions: shares of train, valid and test, by chance (groups stay together) or by time.
        split_time: column to split by instead of chance.
        keep_rate: share of the rows of `train` inputs; the others are taken whole.
        file_keep_rate: share of the `train` files.
        seed: of all draws.
        row_group_size: rows of a row group of the output.
        compression: of the output: lz4 (the faster to read), zstd (a fifth smaller) or none.
        memory_limit: of the database that adds up vocabularies and target tables; beyond it the disk is used.
    """

    features: str
    inputs: Mapping[str, Sequence[str]]
    dates: Mapping[str, DateRange] = field(default_factory=dict)
    split_fractions: tuple[float, ...] | None = None
    split_time: str | None = None
    keep_rate: float = 1.0
    file_keep_rate: float = 1.0
    seed: int = 0
    row_group_size: int = 50_000
    compression: Literal["lz4", "zstd", "none"] = "lz4"
    memory_limit: str = "2GB"

    def __post_init__(self) -> None:
        strangers = set(self.inputs) - set(SPLITS)
        _require(not strangers and bool(self.inputs.get("train")), "inputs", list(self.inputs), "train, and others")
        _require(0 < self.keep_rate <= 1, "--keep-rate", self.keep_rate, "above 0, up to 1")
        _require(0 < self.file_keep_rate <= 1, "--file-keep-rate", self.file_keep_rate, "above 0, up to 1")
        _require(self.row_group_size >= 1, "--row-group-size", self.row_group_size, "at least 1")
        _require(self.compression in ("lz4", "zstd", "none"), "--compression", self.compression, "lz4, zstd or none")
        shares = self.split_fractions
        if shares is None:
            _require(self.split_time is None, "--split-time", self.split_time, "together with --split-fractions")
            return
        check_split_fractions(shares)
        others = [split for split in SPLITS[1:] if self.inputs.get(split)]
        _require(not others, "--split-fractions", others, "--train alone, or a file for each split and no fractions")

    def find_files(self) -> dict[str, list[str]]:
        """The files of each split.

        Raises:
            DataError: there are none, or a file is in two splits.
        """
        files = {s: find_files(list(self.inputs[s]), self.dates.get(s)) for s in SPLITS if self.inputs.get(s)}
        check_no_overlap(files)
        return files | {"train": keep_files(files["train"], self.file_keep_rate, self.seed)}

    def as_json(self) -> dict[str, Any]:
        """What the result depends on, as plain values; the files found are told apart from this."""
        values = asdict(self)
        for name in ("features", "inputs", "dates", "memory_limit"):
            del values[name]
        return values


def _require(condition: bool, where: str, value: object, limit: str) -> None:
    if not condition:
        raise ConfigError("the data cannot be prepared like this", where=where, value=value, limit=limit)
