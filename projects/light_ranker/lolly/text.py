r"""Lolly text models: tab-separated lines of a linear model over present and discretised features.

    <model>\tbias\t<w>
    <model>\t<feature>\t<w>                                          weight of a feature that is present
    <model>\t<feature>.dz/dz_model=mdl/dz_range=<lo>_<hi>\t<w>       weight of the bucket lo <= value < hi

The score is a logit: the bias, the weight of every feature that is present, and for every discretised feature that is
present the weight of its value's bucket.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tml.common.errors import ConfigError, DataError
from tml.common.filesystem import atomic_write, open_file
from tml.ml_logging import get_logger
from tml.projects.light_ranker.lolly.model import Bucket, LollyModel

logger = get_logger(__name__)

BIAS = "bias"
_NUMBER = r"[+-]?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|[iI][nN][fF](?:[iI][nN][iI][tT][yY])?)"
_IS_NUMBER = re.compile(_NUMBER)
_RANGE = re.compile(rf"(?P<feature>.+)\.dz/dz_model=mdl/dz_range=(?P<lo>{_NUMBER})_(?P<hi>{_NUMBER})")
_LINE_FORMS = "<model> TAB bias|<feature>|<feature>.dz/dz_model=mdl/dz_range=<lo>_<hi> TAB <weight>"


@dataclass
class _Lines:
    """What has been read of one model."""

    name: str
    bias: float | None = None
    plain: dict[str, float] = field(default_factory=dict)
    buckets: dict[str, list[Bucket]] = field(default_factory=dict)
    line_of: dict[tuple[str, ...], int] = field(default_factory=dict)
    num_empty: int = 0


def read_lolly(path: str | os.PathLike[str], name: str | None = None) -> LollyModel:
    """Read a model from a file, local or remote; see `parse_lolly`."""
    with open_file(path, "rb") as file:
        data: bytes = file.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            "lolly model is not UTF-8 text", where=f"{os.fspath(path)}, byte {error.start}",
            value=data[error.start : error.start + 8], fix="give the text model, not a compressed or binary file",
        ) from None  # fmt: skip
    return parse_lolly(text.splitlines(), name, source=os.fspath(path))


def parse_lolly(lines: Iterable[str], name: str | None = None, source: str = "lolly model") -> LollyModel:
    """The model that the lines hold.

    Empty lines are skipped, and buckets that hold no number (`lo == hi`, which rounding for display leaves behind) are
    dropped and counted in the log. The plain line of a discretised feature is dropped too, as the original does where
    it makes a model of the text: with a warning, unless its weight is 0 as interpreters write it.

    Args:
        lines: of the file, in order.
        name: of the model to take; needed if the lines hold several.
        source: for messages.

    Raises:
        DataError: a line is malformed or comes twice, buckets overlap, the bias is missing, or the name is unknown.
    """
    models: dict[str, _Lines] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{source}, line {number}"
            model_name, feature, weight = _fields(line.rstrip("\r\n"), where)
            _add(models.setdefault(model_name, _Lines(model_name)), feature, weight, number, where)
    return _finished(_chosen(models, name, source), source)


def format_lolly(model: LollyModel) -> Iterator[str]:
    """The lines of a model, without line ends: bias, present features, then buckets, all sorted by name.

    Numbers are written so that they are read back bit by bit. A discretised feature also gets the plain line with
    weight 0 without which the original's importer fails.
    """
    if not model.name or _breaks_line(model.name):
        raise ConfigError("a lolly model needs a name without tabs and line ends", value=model.name)
    yield f"{model.name}\t{BIAS}\t{model.bias!r}"
    plain = {**dict.fromkeys(model.discretized, 0.0), **model.binary}
    for feature in sorted(plain):
        _check_name(feature)
        yield f"{model.name}\t{feature}\t{plain[feature]!r}"
    for feature in sorted(model.discretized):
        for bucket in model.discretized[feature]:
            span = f"{bucket.lo!r}_{bucket.hi!r}"
            yield f"{model.name}\t{feature}.dz/dz_model=mdl/dz_range={span}\t{bucket.weight!r}"


def write_lolly(model: LollyModel, path: str | os.PathLike[str]) -> None:
    """Write a model to a local file, whole or not at all."""
    lines = list(format_lolly(model))
    with atomic_write(path, "w") as file:
        file.writelines(f"{line}\n" for line in lines)


def _fields(line: str, where: str) -> tuple[str, str, float]:
    parts = line.split("\t")
    if len(parts) != 3 or not all(part.strip() for part in parts):
        raise _malformed("not three fields", where, line)
    weight = _number(parts[2].strip())
    if weight is None or not math.isfinite(weight):
        raise _malformed("weight is no finite number", where, line)
    return parts[0], parts[1], weight


def _add(model: _Lines, feature: str, weight: float, number: int, where: str) -> None:
    if feature == BIAS:
        _once(model, (BIAS,), number, where)
        # Not "if weight": a bias of exactly 0.0 is a bias, not a feature of that name.
        model.bias = weight
        return
    if "/dz_" not in feature:
        _once(model, ("plain", feature), number, where)
        model.plain[feature] = weight
        return
    found = _RANGE.fullmatch(feature)
    if found is None:
        raise _malformed("not a range of an mdl discretizer", where, feature)
    name, lo, hi = found["feature"], float(found["lo"]), float(found["hi"])
    if lo > hi:
        raise _malformed("bucket ends before it begins", where, feature)
    buckets = model.buckets.setdefault(name, [])
    if lo == hi:
        model.num_empty += 1
        return
    _once(model, ("bucket", name, repr(lo), repr(hi)), number, where)
    buckets.append(Bucket(lo, hi, weight))


def _once(model: _Lines, key: tuple[str, ...], number: int, where: str) -> None:
    first = model.line_of.setdefault(key, number)
    if first != number:
        raise DataError(
            "line comes twice in a lolly model", where=where, value=" ".join(key[1:] or key),
            limit=f"once per model; first seen on line {first}", fix="remove one of the lines",
        )  # fmt: skip


def _number(text: str) -> float | None:
    # float() alone would also read 1_0 and nan.
    return float(text) if _IS_NUMBER.fullmatch(text) else None


def _chosen(models: Mapping[str, _Lines], name: str | None, source: str) -> _Lines:
    if not models:
        raise DataError("empty lolly model", where=source, limit=f"lines {_LINE_FORMS}")
    if name is None and len(models) == 1:
        return next(iter(models.values()))
    if name is None or name not in models:
        raise DataError(
            "several lolly models in one file" if name is None else "no such lolly model", where=source, value=name,
            limit=", ".join(sorted(models)), fix="name one of them",
        )  # fmt: skip
    return models[name]


def _finished(lines: _Lines, source: str) -> LollyModel:
    if lines.bias is None:
        raise DataError(
            "lolly model without a bias", where=f"{source}, model {lines.name!r}",
            fix=f"add the line {lines.name} TAB bias TAB 0.0 if there is none",
        )  # fmt: skip
    dropped = {feature: lines.plain.pop(feature) for feature in lines.buckets if feature in lines.plain}
    unequal_zero = sorted(feature for feature, weight in dropped.items() if weight)
    if unequal_zero:
        logger.warning(
            "%s: %d discretised features also have a plain weight, which is dropped: %s",
            source, len(unequal_zero), ", ".join(unequal_zero[:5]),
        )  # fmt: skip
    if lines.num_empty:
        logger.warning("%s: %d buckets hold no number (lo equals hi) and are dropped", source, lines.num_empty)
    return LollyModel(
        lines.name, lines.bias, lines.plain, {name: tuple(buckets) for name, buckets in lines.buckets.items()}, source
    )


def _breaks_line(name: str) -> bool:
    return "\t" in name or name.splitlines() != [name]


def _check_name(feature: str) -> None:
    if not feature.strip() or feature == BIAS or "/dz_" in feature or _breaks_line(feature):
        raise ConfigError(
            "feature name cannot be written to a lolly model", value=feature,
            limit="no tabs, line ends or /dz_, and not the word bias", fix="rename the feature",
        )  # fmt: skip


def _malformed(what: str, where: str, value: str) -> DataError:
    return DataError(f"malformed line of a lolly model: {what}", where=where, value=value, limit=_LINE_FORMS)
