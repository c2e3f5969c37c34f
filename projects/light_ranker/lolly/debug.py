"""Debug lines of a replicated lolly model: `[[logit]][[lolly logit]][[ids]][[values]]` of one example.

They hold the logit of the model that was trained, the logged logit of the lolly model it replicates, and the example's
features as ids with their values. With the text model the same example can be scored again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tml.common.errors import DataError
from tml.projects.light_ranker.lolly.model import LollyModel
from tml.projects.light_ranker.records.feature_ids import feature_id

_LINE = re.compile(r"\[\[([^\]]*)\]\]\[\[([^\]]*)\]\]\[\[([^\]]*)\]\]\[\[([^\]]*)\]\]")
_FORM = "[[logit]][[lolly logit]][[ids separated by spaces]][[values separated by spaces]]"


@dataclass(frozen=True)
class DebugLine:
    """One printed example.

    Args:
        logit: of the trained model.
        lolly_logit: logged, of the lolly model.
        values: feature id -> value.
    """

    logit: float
    lolly_logit: float
    values: Mapping[int, float]


def parse_debug_line(line: str, where: str = "debug line") -> DebugLine:
    """The example of one line; numbers may be negative, have exponents, or be inf or nan.

    Raises:
        DataError: the line has another form, a field is no number, or ids and values differ in number.
    """
    found = _LINE.search(line)
    if found is None:
        raise DataError("not a debug line of a lolly model", where=where, value=line.strip(), limit=_FORM)
    logit, lolly_logit, ids, values = found.groups()
    try:
        keys, numbers = [int(key) for key in ids.split()], [float(number) for number in values.split()]
        parsed = DebugLine(float(logit), float(lolly_logit), dict(zip(keys, numbers, strict=True)))
    except ValueError as error:
        raise DataError("debug line cannot be read", where=where, value=str(error), limit=_FORM) from None
    if len(parsed.values) < len(keys):
        raise DataError("id comes twice in a debug line", where=where, value=ids)
    return parsed


def format_debug_line(line: DebugLine) -> str:
    """The line that `parse_debug_line` reads, bit by bit."""
    ids = " ".join(str(key) for key in line.values)
    values = " ".join(repr(value) for value in line.values.values())
    return f"[[{line.logit!r}]][[{line.lolly_logit!r}]][[{ids}]][[{values}]]"


def name_features(line: DebugLine, model: LollyModel) -> tuple[dict[str, float], list[int]]:
    """Feature name -> value, and the ids that belong to no feature of the model."""
    names = {feature_id(name): name for name in model.feature_names()}
    known = {names[key]: value for key, value in line.values.items() if key in names}
    return known, [key for key in line.values if key not in names]


def score_debug_line(line: DebugLine, model: LollyModel) -> float:
    """The text model's logit of the example; ids it does not know add nothing.

    Raises:
        NoBucketError: no bucket holds a value.
    """
    return model.score(name_features(line, model)[0])
