"""The folder of an exported ranker: what lies where, what it promises, and how it is trusted again.

    <export>/
      model.onnx       the graph: user and candidate features in, probability [N] and perhaps watch_time [N] out
      table.bin        every embedding table, one after the other, mapped into memory by ONNX Runtime
      model.int8.onnx, table.int8.bin   the same in 8 bits, if asked for
      encoding.json, features.yaml, vocab/, targets/   how raw features become ids and numbers (features/encoder.py)
      signature.json   features, outputs, calibration, metrics, versions, and size and SHA-256 of every other file

Letters: `N` candidates of a request.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tml.common.errors import DataError
from tml.common.filesystem.digest import FileInfo, file_info

FORMAT = "tml-light-ranker"
FORMAT_VERSION = 1
SIGNATURE_NAME = "signature.json"
MODEL_NAME = "model.onnx"
INT8_MODEL_NAME = "model.int8.onnx"
TABLE_NAME = "table.bin"
BYTE_TABLE_NAME = "table.int8.bin"


@dataclass(frozen=True)
class FeatureInfo:
    """What a caller may pass for one feature, or for one key of a target encoding.

    Args:
        name: of the feature.
        column: under which a request passes it; the feature's name unless features.yaml says otherwise.
        side: user or candidate.
        kind: id, continuous, vector or key.
        dtype: of a raw value: `string`, `int64`, `float32`; `list<...>` for several ids or a vector.
        default: what an absent value stands for, in words or as a value.
        size: most ids of a multi-valued feature, values of a vector, else 1.
        vocabulary: file of its vocabulary or target table inside the folder; its hash is among `Signature.files`.
    """

    name: str
    column: str
    side: str
    kind: str
    dtype: str
    default: Any = None
    size: int = 1
    vocabulary: str | None = None


@dataclass(frozen=True)
class Signature:
    """What `signature.json` says.

    Args:
        model: `kind` (mlp, lolly_lr), `outputs`, `int8`, and the sizes of tables and inputs.
        features: every feature of the model.
        calibration: boundaries' and isotonic points' counts, per feature and head.
        self_check: rows compared with the trainer and the largest differences found; for 8 bits also what they cost.
        files: every other file by its path inside the folder.
        facts: what only the run knows: metrics, config, step, ...
        made_with: versions, commit and time.
    """

    model: dict[str, Any]
    features: tuple[FeatureInfo, ...]
    calibration: dict[str, Any]
    self_check: dict[str, Any]
    files: dict[str, FileInfo]
    facts: dict[str, Any] = field(default_factory=dict)
    made_with: dict[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """SHA-256 over the hashes of all files: two exports with one version score alike."""
        return _digest({name: file.sha256 for name, file in self.files.items()})

    @property
    def outputs(self) -> list[str]:
        """Of the graph: `probability`, `logit`, and `watch_time` (seconds) if the model predicts it."""
        return self.model["outputs"]

    def to_json(self) -> dict[str, Any]:
        """The content of `signature.json`; `digest` covers all of it but itself."""
        body = {"format": FORMAT, "format_version": FORMAT_VERSION, "version": self.version}
        body = json.loads(json.dumps(body | asdict(self)))
        return body | {"digest": _digest(body)}

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> Signature:
        """The inverse of `to_json`."""
        return Signature(
            body["model"],
            tuple(FeatureInfo(**feature) for feature in body["features"]),
            body["calibration"],
            body["self_check"],
            {name: FileInfo(**file) for name, file in body["files"].items()},
            body["facts"],
            body["made_with"],
        )


def is_export(folder: Path) -> bool:
    """Whether an exported ranker lies here."""
    return (folder / SIGNATURE_NAME).is_file()


def read_signature(folder: Path, *, verify: bool = True) -> Signature:
    """Read `signature.json` and compare the folder with it.

    Args:
        folder: written by `export_ranker`.
        verify: compare the SHA-256 of every file; False looks at their sizes only.

    Raises:
        DataError: this is no exported ranker, a newer format, or a file is missing, cut off, changed or foreign.
    """
    path = folder / SIGNATURE_NAME
    if not path.is_file():
        raise DataError(
            "not an exported ranker", where=folder, limit=f"a folder with {SIGNATURE_NAME}",
            fix="export one with `tml light-ranker export`",
        )  # fmt: skip
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["format"] != FORMAT or body["format_version"] > FORMAT_VERSION:
            raise DataError(
                "a model of another format", where=path, value=f"{body['format']} {body['format_version']}",
                limit=f"{FORMAT} up to {FORMAT_VERSION}", fix="use the version of tml that exported it, or a newer one",
            )  # fmt: skip
        found = _digest({name: value for name, value in body.items() if name != "digest"})
        if body["digest"] != found:
            raise _changed(path, found, body["digest"])
        signature = Signature.from_json(body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "signature.json is damaged", where=path, value=repr(error), fix="export the model again"
        ) from error
    _check_files(folder, signature, verify)
    return signature


def write_signature(folder: Path, signature: Signature) -> None:
    """Write `signature.json`, the last file of an export."""
    text = json.dumps(signature.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / SIGNATURE_NAME).write_text(text + "\n", encoding="utf-8")


def files_below(folder: Path) -> Iterator[str]:
    """Every file of the folder but the signature, by its path inside it."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != SIGNATURE_NAME:
            yield name


def without_nan(value: Any) -> Any:
    """The same JSON-able value with None in place of NaN and infinite numbers, which JSON has not."""
    if isinstance(value, Mapping):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_files(folder: Path, signature: Signature, verify: bool) -> None:
    for name, expected in signature.files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != expected.size:
            raise DataError(
                "a file of the model is missing or cut off", where=path,
                value="missing" if size is None else f"{size} bytes", limit=f"{expected.size} bytes",
                fix="copy the folder again, or export the model again",
            )  # fmt: skip
        if verify and (found := file_info(path)) != expected:
            raise _changed(path, found.sha256, expected.sha256)
    # A file that nobody vouches for could stand in for one that was left out, such as a vocabulary.
    foreign = sorted(set(files_below(folder)) - set(signature.files))
    if foreign:
        raise DataError(
            "a file that the model does not know lies in its folder", where=folder / foreign[0],
            limit=f"the {len(signature.files)} files of {SIGNATURE_NAME}", fix="move it elsewhere",
        )  # fmt: skip


def _changed(path: Path, found: str, expected: str) -> DataError:
    return DataError(
        "a file of the model has changed since its export", where=path, value=found, limit=expected,
        fix="copy the folder again, or export the model again",
    )  # fmt: skip


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
