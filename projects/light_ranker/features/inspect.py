"""`tml light-ranker inspect`: a proposal for features.yaml, from a sample of a table's rows.

Every guess stands with its reason behind it. Columns that may be known only after the event, that only name a row, or
that never change are commented out: to use one, remove the comment sign.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from tml.common.errors import DataError
from tml.projects.light_ranker.data.files import find_files
from tml.projects.light_ranker.features.config import TextConfig
from tml.projects.light_ranker.features.feature_file import feature_line
from tml.projects.light_ranker.features.kinds import feature_name
from tml.projects.light_ranker.features.profile import (
    Profile,
    constant_within,
    follows,
    numbers_of,
    profile_column,
    tells_sides,
)
from tml.projects.light_ranker.features.raw_columns import as_array
from tml.projects.light_ranker.features.spec import Side
from tml.projects.light_ranker.features.tables import Table, check_columns

_CLICK = re.compile(r"(^|[._])(is_?)?click(ed|s)?$|^(y|label|target)$", re.I)
_WATCH = re.compile(r"(watch|play|view|dwell|listen)_?(ed_?)?(time|seconds|secs|ms|duration)", re.I)
_AFTER = re.compile(
    r"click|like|favou?rit|repl(y|ied)|retweet|repost|shared?$|forward|comment|is_follow|hate|long_?view|purchas"
    r"|conver(t|sion)|engag|dwell|watch|play_?time|stay_?time|profile_enter|^duration$",
    re.I,
)
_WEIGHT = re.compile(r"(^|[._])((sample|record|example)_?)?weight$", re.I)
_TIME = re.compile(r"(^|_)(time|timestamp|date|datetime|ts|hourmin)(_|$)|_at$", re.I)
_ID = re.compile(r"(^|_)ids?(_|$)|^c\d+$|code|type|categor|hash|feat\d+$", re.I)
_NUMBER = re.compile(
    r"^i\d+$|(^|_)(num|count|cnt|age|days|hours|price|amount|score|rate|ratio|balance|length|size|ms|duration)(_|$)",
    re.I,
)
_REQUEST = re.compile(r"^(request|query|impression|session)_?(id|uuid)?$", re.I)
_USER = re.compile(r"^(user|viewer|member|customer|device|session|query|request)|_user(_|$)", re.I)
_FEW, _MANY, _EPOCHS = 20, 10_000, ((1e9, 2.2e9), (1e12, 2.2e12))


@dataclass
class _Proposal:
    """Lines of the sections, in the making."""

    features: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    ids: list[Profile] = field(default_factory=list)
    weight: str | None = None

    def comment_out(self, section: list[str], values: dict[str, Any], reason: str) -> None:
        """Adds a line that counts for nothing until its comment sign is removed."""
        section.append("  # " + feature_line(values, reason).strip() + "\n")


def propose(paths: list[str], group: str | None = None, max_rows: int = 200_000, text: TextConfig | None = None) -> str:
    """The text of a features.yaml for a table.

    Args:
        paths: files, patterns, folders or URLs.
        group: column of the request (or user): what is constant within a group is on the user's side. None for the
            column that is called as a request's and has requests of several rows; without one, names tell the sides.
        max_rows: rows to look at, from the beginning of the first files.
        text: how text files are read.

    Raises:
        DataError: the table cannot be read, is empty, or lacks the group column.
    """
    text = text or TextConfig()
    columns, where = _sample(find_files(paths), max_rows, text)
    if group is not None:
        check_columns(pa.schema([(name, column.type) for name, column in columns.items()]), [group], where)
    inspector = _Inspector(columns, group)
    proposal = inspector.propose()
    num_rows = len(next(iter(columns.values())))
    return _text(proposal, group, inspector.group, text, f"{where}, {num_rows:,} rows looked at")


def _sample(files: list[str], max_rows: int, text: TextConfig) -> tuple[dict[str, pa.Array], str]:
    pieces: list[pa.Table] = []
    for path in files:
        table = Table(path, text)
        for _, piece in table.batches(table.schema().names):
            pieces.append(piece.slice(0, max_rows - sum(map(len, pieces))))
            if sum(map(len, pieces)) >= max_rows:
                break
        if sum(map(len, pieces)) >= max_rows:
            break
    if not sum(map(len, pieces)):
        raise DataError("the table has no rows", where=files[0], limit="at least one")
    sample = pa.concat_tables(pieces, promote_options="permissive")
    return {name: as_array(sample.column(name), name) for name in sample.column_names}, files[0]


class _Inspector:
    """Guesses the role of each column.

    Attributes:
        group: the column that tells the sides: the one given or the one found; None without one.
    """

    def __init__(self, columns: dict[str, pa.Array], group: str | None) -> None:
        self._columns = columns
        self._profiles = {name: profile_column(name, column) for name, column in columns.items()}
        self._click = self._find_click()
        self.group = self._find_group() if group is None else group

    def propose(self) -> _Proposal:
        """One line per column, in the order of the table."""
        proposal = _Proposal()
        for name, profile in self._profiles.items():
            if name == self._click:
                proposal.labels.insert(0, feature_line(_label(profile), "guessed by its name and its two values"))
            elif _WEIGHT.search(profile.words) and profile.kind in ("int", "float") and profile.numbers.min() >= 0:
                proposal.weight = name
            elif _is_watch_time(profile) and not any("watch_time" in line for line in proposal.labels):
                column = {} if name == "watch_time" else {"column": name}
                watch = {"name": "watch_time", "kind": "nonnegative", **column, **_milliseconds(profile)}
                proposal.labels.append(feature_line(watch, "guessed by its name; known only after the event"))
            else:
                self._propose_feature(profile, proposal)
        self._propose_rate(proposal)
        return proposal

    def _find_click(self) -> str | None:
        found = [p.name for p in self._profiles.values() if _CLICK.search(p.words) and (p.is_binary or _is_yes_no(p))]
        return min(found, key=lambda name: ("click" not in name.lower(), len(name))) if found else None

    def _find_group(self) -> str | None:
        """The request's column by its name, if enough requests have several rows to tell the sides by."""
        profiles = self._profiles.items()
        named = [(match[1], name) for name, profile in profiles if (match := _REQUEST.match(profile.words))]
        found = [
            one for one in named
            if self._profiles[one[1]].kind in ("int", "text") and tells_sides(self._columns[one[1]])
        ]  # fmt: skip
        # The finest is what is scored together: a session may hold several requests.
        order = ("request", "query", "impression", "session")
        return min(found, key=lambda one: order.index(one[0]))[1] if found else None

    def _propose_feature(self, profile: Profile, proposal: _Proposal) -> None:
        reason = self._why_not(profile)
        if reason and profile.is_binary and (_AFTER.search(profile.words) or _CLICK.search(profile.words)):
            proposal.comment_out(proposal.labels, {**self._name(profile), "kind": "binary"}, reason)
            return
        values = {**self._name(profile), **_kind(profile), "side": self._side(profile)}
        values = {key: values[key] for key in ("name", "kind", "side", *values)}
        if reason:
            proposal.comment_out(proposal.features, values, reason)
        else:
            proposal.features.append(feature_line(values, _described(profile)))
            proposal.ids += [profile] if values["kind"] == "categorical" else []

    def _propose_rate(self, proposal: _Proposal) -> None:
        """A target encoding of the id with the most values, of those that occur often; commented out, as only the user
        knows whether rates of the training's time are of use in serving."""
        num_rows = len(next(iter(self._columns.values())))
        often = [profile for profile in proposal.ids if _FEW < profile.num_distinct <= num_rows / _FEW]
        if self._click is None or not often:
            return
        profile = max(often, key=lambda one: one.num_distinct)
        name = f"{feature_name(profile.name)}_rate"
        while name in self._columns:
            name += "_"
        values = {"name": name, "kind": "target_encoding", "side": self._side(profile), "keys": [profile.name]}
        values |= {"types": ["int"]} if profile.is_integer_text else {}
        reason = "past clicks of an id: good if the same ids come again"
        proposal.comment_out(proposal.features, {**values, "label": "click"}, reason)

    def _name(self, profile: Profile) -> dict[str, str]:
        """The feature's name, and the column's where that cannot be one."""
        name = feature_name(profile.name)
        if name == profile.name:
            return {"name": name}
        while name in self._columns:
            name += "_"
        return {"name": name, "column": profile.name}

    def _why_not(self, profile: Profile) -> str | None:
        """Why a column is no feature, or None."""
        num_rows = len(self._columns[profile.name])
        if profile.kind in ("empty", "other"):
            return "no values" if profile.kind == "empty" else f"of a type that is no feature: {profile.examples[0]}"
        if profile.num_distinct == 1 and not profile.null_share:
            return "has one value only"
        if _AFTER.search(profile.words) or _CLICK.search(profile.words) or self._follows_click(profile):
            return "may be known only after the event; if it is known before, remove the comment sign"
        if profile.kind == "time" or _TIME.search(profile.words) or _is_epoch(profile):
            return "a time: good for --split-time, no feature by itself"
        if profile.kind in ("int", "text") and profile.num_distinct > 0.95 * num_rows and num_rows >= 100:
            return "differs in nearly every row: names the row, and cannot be learnt from"
        if _REQUEST.match(profile.words):
            return "names a request: good for --group, no feature by itself"
        return None

    def _follows_click(self, profile: Profile) -> bool:
        if self._click is None or profile.kind not in ("int", "float", "bool"):
            return False
        clicks, values = numbers_of(self._columns, self._click), numbers_of(self._columns, profile.name)
        return clicks is not None and values is not None and follows(np.nan_to_num(clicks) > 0, values)

    def _side(self, profile: Profile) -> Side:
        if self.group is not None:
            same = constant_within(self._columns[self.group], self._columns[profile.name])
            return "user" if same else "candidate"
        return "user" if _USER.search(profile.words) else "candidate"


def _label(profile: Profile) -> dict[str, Any]:
    values: dict[str, Any] = {"name": "click", "kind": "binary"}
    if profile.name != "click":
        values["column"] = profile.name
    if profile.kind == "text":
        values["positive"] = [one for one in profile.examples if one.lower() in ("yes", "true", "y", "t")]
    return values


def _is_yes_no(profile: Profile) -> bool:
    pairs = ({"yes", "no"}, {"true", "false"}, {"y", "n"}, {"t", "f"})
    return profile.kind == "text" and {one.lower() for one in profile.examples} in pairs


def _is_watch_time(profile: Profile) -> bool:
    return bool(_WATCH.search(profile.words)) and profile.kind in ("int", "float") and profile.numbers.min() >= 0


def _milliseconds(profile: Profile) -> dict[str, float]:
    return {"scale": 0.001} if re.search(r"(^|_)(ms|millis|milliseconds)($|_)", profile.words, re.I) else {}


def _is_epoch(profile: Profile) -> bool:
    if profile.kind != "int" or not len(profile.numbers):
        return False
    low, high = profile.numbers.min(), profile.numbers.max()
    return any(first <= low and high <= last for first, last in _EPOCHS) and profile.num_distinct > _FEW


def _kind(profile: Profile) -> dict[str, Any]:
    """Kind and settings of a feature."""
    if profile.kind == "vector":
        return {"kind": "vector", "dim": profile.length}
    if profile.kind == "ids":
        separator = {"separator": profile.separator} if profile.separator else {}
        return {"kind": "ids", "max_length": min(50, profile.length), **separator, **_ids(profile)}
    if profile.kind in ("text", "bool", "time") or (profile.kind == "int" and _looks_like_ids(profile)):
        return {"kind": "categorical", **_ids(profile)}
    return {"kind": "continuous"}


def _looks_like_ids(profile: Profile) -> bool:
    """Names first; then few values, or values spread over their range as ids are and counts are not."""
    if _NUMBER.search(profile.words):
        return False
    if _ID.search(profile.words) or profile.num_distinct <= _FEW:
        return True
    low, high = profile.numbers.min(), profile.numbers.max()
    return bool(low >= 0 and high > 1_000 and np.median(profile.numbers) > 0.2 * high)


def _ids(profile: Profile) -> dict[str, Any]:
    """Their type, where a text file does not tell it, and which of them are known."""
    found: dict[str, Any] = {"type": "int"} if profile.is_integer_text else {}
    return found | ({"vocabulary": {"min_count": 2}} if profile.num_distinct > _MANY else {})


def _described(profile: Profile) -> str:
    parts = [f"{profile.null_share:.1%} missing"] if profile.null_share else []
    if profile.kind in ("int", "float") and len(profile.numbers):
        shown = ",.0f" if profile.kind == "int" else ".6g"
        parts.append(f"{profile.numbers.min():{shown}} to {profile.numbers.max():{shown}}")
    if profile.num_distinct:
        parts.append(f"{profile.num_distinct:,} values")
    if profile.examples and profile.kind in ("text", "ids"):
        parts.append("such as " + ", ".join(profile.examples))
    return "; ".join(parts).replace("\n", " ")


def _text(proposal: _Proposal, group: str | None, found: str | None, text: TextConfig, source: str) -> str:
    sides = "guessed by names; with --group they are read from the data"
    if found is not None:
        by_name = "" if group else ", which by its name is the request; --group names another"
        sides = f"constant within {found}{by_name}"
    lines = [f"# Proposed by `tml light-ranker inspect` from {source}.\n", f"# Sides: {sides}.\n"]
    lines += ["features:\n", *proposal.features]
    lines += ["labels:\n" if any(not line.lstrip().startswith("#") for line in proposal.labels) else _NO_LABEL]
    lines += proposal.labels
    if proposal.weight:
        lines.append(feature_line({"column": proposal.weight}, None).replace("  - ", "weight: ", 1))
    if group:
        lines.append(yaml.safe_dump({"group": group}, allow_unicode=True, width=2**31))
    if changed := text.model_dump(exclude_defaults=True):
        lines.append(feature_line(changed, None).replace("  - ", "text: ", 1))
    return "".join(lines)


_NO_LABEL = "labels: []  # no click was found: name a column, such as - {name: click, kind: binary, column: ...}\n"
