"""Bodies of requests and responses: JSON, and Arrow IPC streams.

JSON asks with `{"user": {...}, "candidates": [{...}, ...] or {"feature": [...]}, "top_k": 10}` and is answered with
`{"probabilities": [...], "watch_time": [...], "top_k": [...], "model": "<version>"}`.

Arrow asks with a stream of the candidates' features whose schema metadata holds `user` (JSON) and perhaps `top_k`, and
is answered with a stream of `probability` and `watch_time` whose metadata holds `top_k` and `model`.

Letters: `N` candidates.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import pyarrow as pa
from flatbuffers.table import Table as FlatTable

from tml.projects.light_ranker.serving.columns import Candidates
from tml.projects.light_ranker.serving.limits import RequestError
from tml.projects.light_ranker.serving.scores import Scores

Format = Literal["json", "arrow"]

JSON_TYPE, ARROW_TYPE = "application/json", "application/vnd.apache.arrow.stream"
FORMATS: dict[str, Format] = {JSON_TYPE: "json", ARROW_TYPE: "arrow"}

# Places in a flatbuffer's vtable: 4 + 2 * the field's number.
_HEADER_FIELD, _COMPRESSION_FIELD = 4 + 2 * 2, 4 + 2 * 3

_KEYS = ("user", "candidates", "top_k")


@dataclass(frozen=True)
class ScoreRequest:
    """What is to be scored."""

    user: Mapping[str, Any]
    candidates: Candidates
    top_k: int | None

    @property
    def num_candidates(self) -> int:
        """N, as far as it shows before the columns are looked at."""
        if isinstance(self.candidates, pa.Table):
            return self.candidates.num_rows
        if isinstance(self.candidates, Mapping):
            return max((len(values) for values in self.candidates.values() if isinstance(values, list)), default=0)
        return len(self.candidates)


def read_request(body: bytes, form: Format, max_candidates: int) -> ScoreRequest:
    """Understand a body.

    Raises:
        RequestError: it is malformed (400), of a wrong shape (422) or has too many candidates (413).
    """
    request = _read_json(body) if form == "json" else _read_arrow(body, max_candidates)
    check_count(request.num_candidates, max_candidates)
    return request


def check_count(num_candidates: int, limit: int) -> None:
    """Refuse too many candidates (413)."""
    if num_candidates > limit:
        raise RequestError(
            413, "too many candidates", where="candidates", value=num_candidates, limit=limit,
            fix="send them in several requests, or raise --max-candidates",
        )  # fmt: skip


def write_response(scores: Scores, form: Format, model: str) -> bytes:
    """The answer as a body."""
    if form == "arrow":
        return _write_arrow(scores, model)
    answer: dict[str, Any] = {"probabilities": scores.probabilities.tolist()}
    if scores.watch_time is not None:
        answer["watch_time"] = scores.watch_time.tolist()
    if scores.top_k is not None:
        answer["top_k"] = scores.top_k.tolist()
    return json.dumps(answer | {"model": model}, allow_nan=False).encode()


def _read_json(body: bytes) -> ScoreRequest:
    found = _parse_json(body, "body")
    if not isinstance(found, dict):
        raise RequestError(422, "a request must be an object", where="body", value=_type(found), limit=", ".join(_KEYS))
    unknown = [name for name in found if name not in _KEYS]
    if unknown:
        raise RequestError(422, "unknown key", where="body", value=unknown[0], limit=f"one of {', '.join(_KEYS)}")
    candidates = found.get("candidates")
    if not isinstance(candidates, list | dict):
        raise RequestError(
            422, "candidates are missing or of the wrong type", where="candidates", value=_type(candidates),
            limit="a list of objects, or an object of lists",
        )  # fmt: skip
    return ScoreRequest(_user(found.get("user")), candidates, _top_k(found.get("top_k")))


def _read_arrow(body: bytes, max_candidates: int) -> ScoreRequest:
    try:
        batches, metadata = _read_batches(body, max_candidates)
    except (pa.ArrowException, OSError, ValueError, TypeError, IndexError, NotImplementedError, struct.error) as error:
        raise RequestError(
            400, "the body is no sound Arrow stream", where="body", value=str(error),
            fix="write it with pyarrow.ipc.new_stream, uncompressed",
        ) from error  # fmt: skip
    user = _parse_json(metadata.get(b"user", b"{}"), "schema metadata, user")
    top_k = _parse_json(metadata.get(b"top_k", b"null"), "schema metadata, top_k")
    return ScoreRequest(_user(user), batches, _top_k(top_k))


def _read_batches(body: bytes, max_candidates: int) -> tuple[pa.Table, Mapping[bytes, bytes]]:
    _check_messages(body)
    batches, num_rows = [], 0
    with pa.ipc.open_stream(pa.BufferReader(body)) as stream:
        for name, kind in zip(stream.schema.names, stream.schema.types, strict=True):
            if not _is_plain(kind):
                raise RequestError(
                    422, "a column of a type that no feature has", where=name, value=str(kind),
                    limit="numbers, booleans, strings, and lists of these",
                )  # fmt: skip
        if len(set(stream.schema.names)) < len(stream.schema.names):
            raise RequestError(422, "two columns have one name", where="body", value=stream.schema.names)
        for batch in stream:
            num_rows += batch.num_rows
            # Before anything is decoded: a column of nulls claims rows without sending them.
            check_count(num_rows, max_candidates)
            batch.validate(full=True)
            batches.append(batch)
        return pa.Table.from_batches(batches, stream.schema), stream.schema.metadata or {}


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_scalar(kind.value_type)
    return _is_scalar(kind) or pa.types.is_null(kind)


def _is_scalar(kind: pa.DataType) -> bool:
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return is_number or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _check_messages(body: bytes) -> None:
    """Refuse what can claim more memory than was sent: compressed buffers, and dictionaries whose words repeat."""
    for message in pa.ipc.MessageReader.open_stream(pa.BufferReader(body)):
        if message.type not in ("schema", "record batch") or _is_compressed(message):
            raise RequestError(
                415, "compressed or dictionary-encoded columns", where="body", value=message.type,
                limit="plain, uncompressed columns", fix="decode dictionaries and write without compression",
            )  # fmt: skip


def _is_compressed(message: pa.Message) -> bool:
    """Whether a record batch's header names a codec; pyarrow does not tell (format/Message.fbs of Apache Arrow)."""
    if message.type != "record batch":
        return False
    buffer = message.metadata.to_pybytes()
    root = FlatTable(buffer, struct.unpack_from("<I", buffer)[0])
    header = FlatTable(buffer, root.Indirect(root.Pos + root.Offset(_HEADER_FIELD)))
    return header.Offset(_COMPRESSION_FIELD) != 0


def _write_arrow(scores: Scores, model: str) -> bytes:
    columns = {"probability": scores.probabilities}
    if scores.watch_time is not None:
        columns["watch_time"] = scores.watch_time
    metadata = {"model": model}
    if scores.top_k is not None:
        metadata["top_k"] = json.dumps(scores.top_k.tolist())
    table = pa.table(columns).replace_schema_metadata(metadata)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _parse_json(text: bytes, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "the body is no sound JSON", where=where, value=str(error)) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number; send null for a missing value")


def _user(user: Any) -> Mapping[str, Any]:
    if user is None:
        return {}
    if not isinstance(user, dict):
        raise RequestError(422, "user must be an object of features", where="user", value=_type(user))
    return user


def _type(value: Any) -> str:
    # Of a body of megabytes, the type says enough.
    return type(value).__name__


def _top_k(top_k: Any) -> int | None:
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k < 2**31):
        raise RequestError(422, "top_k must be a positive whole number", where="top_k", value=top_k, limit=">= 1")
    return top_k
