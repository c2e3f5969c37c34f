"""What `tml convert` is asked to do: one frozen record, checked as a whole before anything is read."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from tml.common.errors import ConfigError
from tml.common.split_fractions import check_split_fractions

TABLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
RELATIONS_FILE = "relations"  # vocab/relations.parquet, so no table may have this name
DEFAULT_FRACTIONS = (0.9, 0.05, 0.05)

CHOICES = {
    "id_type": ("auto", "string", "int"),
    "vocab_from": ("all", "train"),
    "vocab_order": ("count", "random"),
    "on_error": ("fail", "skip"),
    "compression": ("zstd", "none"),
}


@dataclass(frozen=True)
class RelationType:
    """A relation and the tables of its two ends."""

    name: str
    lhs: str
    rhs: str

    @classmethod
    def parse(cls, text: str) -> RelationType:
        """Reads `fav=user:tweet`; the name may itself hold `=` and `:`."""
        name, equals, tables = text.rpartition("=")
        lhs, colon, rhs = tables.partition(":")
        if not (name and equals and colon):
            raise ConfigError(
                "a relation cannot be read",
                where="--relation",
                value=text,
                limit="NAME=LHS_TABLE:RHS_TABLE",
                fix="write for example --relation fav=user:tweet",
            )
        return cls(name, check_table_name(lhs, "--relation"), check_table_name(rhs, "--relation"))


@dataclass(frozen=True)
class ConvertOptions:
    """The settings of one conversion; docs/data.md describes each.

    Args:
        inputs: paths of edge files, or of folders of them.
        relation_inputs: pairs (relation, path): files that hold one relation each, without a relation column.
        valid, test: given validation and test files, as paths or `RELATION=PATH`.
        relations: the typed relations; with none, `typed_ids` or `single_table` says how ids are typed.
        typed_ids: separator between the table's name and the id, as in `user:17`.
        single_table: the one table that all ids belong to.
        columns: names, or positions from 0, of lhs, relation and rhs (of lhs and rhs where files hold one relation).
        header: whether text files have a header line; None looks.
        delimiter, quoting: None goes by the file's name: .csv has commas and quotes, all others tabs and no quotes.
        time_column, valid_from, test_from: split by time; from `test_from` on test, from `valid_from` on validation.
        id_type: `string`, `int`, or `auto`: text gives strings, parquet keeps what it has.
    """

    inputs: tuple[str, ...] = ()
    relation_inputs: tuple[tuple[str, str], ...] = ()
    valid: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    relations: tuple[RelationType, ...] = ()
    typed_ids: str | None = None
    single_table: str | None = None
    columns: tuple[str, ...] | None = None
    header: bool | None = None
    delimiter: str | None = None
    quoting: bool | None = None
    split_fractions: tuple[float, float, float] | None = None
    time_column: str | None = None
    valid_from: str | None = None
    test_from: str | None = None
    seed: int = 0
    id_type: str = "auto"
    vocab_from: str = "all"
    vocab_order: str = "count"
    min_degree: int = 1
    drop_duplicates: bool = False
    drop_self_loops: bool = False
    on_error: str = "fail"
    row_group_size: int = 200_000
    rows_per_file: int = 16_000_000
    compression: str = "zstd"
    memory_limit: str = "4GB"

    def __post_init__(self) -> None:
        for field, choices in CHOICES.items():
            _require(
                getattr(self, field) in choices, _flag(field), getattr(self, field), f"one of {', '.join(choices)}"
            )
        for field in ("min_degree", "row_group_size", "rows_per_file"):
            _require(getattr(self, field) >= 1, _flag(field), getattr(self, field), "at least 1")
        self._check_inputs()
        self._check_meaning()
        self._check_splits()

    def _check_inputs(self) -> None:
        _require(self.inputs or self.relation_inputs, "INPUT", None, "at least one file to convert")
        widths = {len(self.columns)} if self.columns else set()
        _require(widths <= {2, 3}, "--columns", self.columns, "lhs,relation,rhs or lhs,rhs")
        tells_relation = not (self.inputs and widths == {2}) or self._one_relation()
        _require(tells_relation, "--columns", self.columns, "three columns: rows must say which relation they are of")
        _require(
            self.delimiter is None or _is_delimiter(self.delimiter),
            "--delimiter",
            self.delimiter,
            "one ASCII character",
        )
        _require(re.fullmatch(r"\d+(\.\d+)?\s*[KMGT]i?B", self.memory_limit), "--memory-limit", self.memory_limit,
                 "a size such as 4GB or 500MB")  # fmt: skip

    def _check_meaning(self) -> None:
        given = [flag for flag, value in self._meanings().items() if value]
        _require(
            len(given) == 1, " / ".join(self._meanings()), given or None, "exactly one way to say what a row means"
        )
        names = [relation.name for relation in self.relations]
        twice = sorted({name for name in names if names.count(name) > 1})
        _require(not twice, "--relation", twice, "each relation named once")
        if self.relations:
            strangers = sorted({name for name, _ in self.relation_inputs} - set(names))
            _require(not strangers, "--input", strangers, f"a relation that --relation declares: {', '.join(names)}")
        if self.single_table:
            check_table_name(self.single_table, "--single-table")

    def _check_splits(self) -> None:
        given = bool(self.valid or self.test)
        timed = any(v is not None for v in (self.time_column, self.valid_from, self.test_from))
        ways = (self.split_fractions is not None) + given + timed
        _require(
            ways <= 1, "--split-fractions / --valid, --test / --time-column", f"{ways} of them", "one way to split"
        )
        if timed:
            whole = self.time_column is not None and self.test_from is not None
            _require(
                whole,
                "--time-column",
                self.time_column,
                "--time-column with --test-from (and, if wanted, --valid-from)",
            )
        if self.split_fractions is not None:
            check_split_fractions(self.split_fractions)

    def _meanings(self) -> dict[str, Any]:
        return {"--relation": self.relations, "--typed-ids": self.typed_ids, "--single-table": self.single_table}

    def _one_relation(self) -> bool:
        return len(self.relations) == 1

    @property
    def only_relation(self) -> str | None:
        """The relation of rows without a relation column when there is just one to choose from."""
        two_columns = self.columns is not None and len(self.columns) == 2
        return self.relations[0].name if two_columns and self._one_relation() else None

    @property
    def fractions(self) -> tuple[float, float, float] | None:
        """The shares to split by, or None when files or times say which row goes where."""
        if self.valid or self.test or self.time_column is not None:
            return None
        return self.split_fractions or DEFAULT_FRACTIONS

    def as_json(self) -> dict[str, Any]:
        """The settings as plain JSON values, for the plan that a restart is compared with."""
        return {key: _plain(value) for key, value in dataclasses.asdict(self).items()}


PRESETS: dict[str, dict[str, Any]] = {
    # Both graphs are published as bipartite: user and author (or Tweet) indices count from zero separately.
    "twitter-follow": {
        "relations": (RelationType("follow", "user", "author"),),
        "columns": ("user_index", "author_index"),
        "id_type": "int",
    },
    "twitter-fave": {
        "relations": (RelationType("fav", "user", "tweet"),),
        "columns": ("user_index", "tweet_index"),
        "id_type": "int",
    },
}
PRESET_TIME_COLUMN = "time_chunk"


def with_preset(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The preset's settings, overridden by those that were given (None and empty ones count as not given)."""
    _require(name in PRESETS, "--preset", name, f"one of {', '.join(PRESETS)}")
    settings = PRESETS[name] | {key: value for key, value in given.items() if value not in (None, ())}
    if settings.get("test_from") is not None:
        settings.setdefault("time_column", PRESET_TIME_COLUMN)
    return settings


def check_table_name(name: str, where: str) -> str:
    """Gives the name back if it can be the name of a table, which is the name of a file too."""
    _require(TABLE_NAME.fullmatch(name), where, name, f"a table name like {TABLE_NAME.pattern}")
    _require(
        name != RELATIONS_FILE, where, name, "a table name other than 'relations', which names the relations' own file"
    )
    return name


def _is_delimiter(text: str) -> bool:
    return len(text) == 1 and text.isascii() and text not in '\r\n"\x00'


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _require(condition: Any, where: str, value: object, limit: str) -> None:
    if not condition:
        raise ConfigError(
            "the conversion's settings do not fit",
            where=where,
            value=value,
            limit=limit,
            fix="see `tml convert --help`",
        )
