"""The original's records as thriftpy2 structs: an independent reader and writer for the tests."""

from __future__ import annotations

from typing import Any

from thriftpy2.protocol.binary import TBinaryProtocol  # the one in pure Python
from thriftpy2.thrift import TPayload, TType
from thriftpy2.transport.memory import TMemoryBuffer

from tml.projects.light_ranker.records.data_record import DataRecord
from tml.projects.light_ranker.records.tensors import ListKind, RawTensor


def _struct(name: str, **fields: tuple[Any, ...]) -> type:
    spec = {number: (kind, field, *extra, False) for field, (number, kind, *extra) in fields.items()}
    members = {"thrift_spec": spec, "default_spec": [(field, None) for field in fields], "__module__": __name__}
    made = type(name, (TPayload,), members)
    made.__init__ = lambda self, **given: [setattr(self, field, given.get(field)) for field in fields] and None
    made._tspec = {spec[1]: (False, spec[0]) for spec in spec.values()}
    return made


I64_LIST = (TType.LIST, TType.I64)
Raw = _struct("Raw", dtype=(1, TType.I32), content=(2, TType.BINARY), shape=(3, *I64_LIST))
Strings = _struct("Strings", values=(1, TType.LIST, TType.STRING), shape=(2, *I64_LIST))
Int32s = _struct("Int32s", values=(1, TType.LIST, TType.I32), shape=(2, *I64_LIST))
Int64s = _struct("Int64s", values=(1, *I64_LIST), shape=(2, *I64_LIST))
Floats = _struct("Floats", values=(1, TType.LIST, TType.DOUBLE), shape=(2, *I64_LIST))
Doubles = _struct("Doubles", values=(1, TType.LIST, TType.DOUBLE), shape=(2, *I64_LIST))
Bools = _struct("Bools", values=(1, TType.LIST, TType.BOOL), shape=(2, *I64_LIST))
ARMS = {
    ListKind.STRING: ("strings", Strings), ListKind.INT32: ("int32s", Int32s), ListKind.INT64: ("int64s", Int64s),
    ListKind.FLOAT: ("floats", Floats), ListKind.DOUBLE: ("doubles", Doubles), ListKind.BOOL: ("bools", Bools),
}  # fmt: skip
General = _struct(
    "General", raw=(1, TType.STRUCT, Raw), **{arm: (int(kind), TType.STRUCT, of) for kind, (arm, of) in ARMS.items()}
)
Coo = _struct(
    "Coo", shape=(1, *I64_LIST), indices=(2, TType.STRUCT, Int64s), values=(3, TType.STRUCT, General)
)  # fmt: skip
Sparse = _struct("Sparse", coo=(1, TType.STRUCT, Coo))
Record = _struct(
    "Record",
    binary=(1, TType.SET, TType.I64),
    continuous=(2, TType.MAP, (TType.I64, TType.DOUBLE)),
    discrete=(3, TType.MAP, (TType.I64, TType.I64)),
    string=(4, TType.MAP, (TType.I64, TType.STRING)),
    sparse_binary=(5, TType.MAP, (TType.I64, (TType.SET, TType.STRING))),
    sparse_continuous=(6, TType.MAP, (TType.I64, (TType.MAP, (TType.STRING, TType.DOUBLE)))),
    blobs=(7, TType.MAP, (TType.I64, TType.BINARY)),
    tensors=(8, TType.MAP, (TType.I64, (TType.STRUCT, General))),
    sparse_tensors=(9, TType.MAP, (TType.I64, (TType.STRUCT, Sparse))),
)
Request = _struct("Request", individual=(1, TType.LIST, (TType.STRUCT, Record)), common=(2, TType.STRUCT, Record))
Response = _struct("Response", predictions=(1, TType.LIST, (TType.STRUCT, Record)))


def thrift_bytes(struct: TPayload) -> bytes:
    transport = TMemoryBuffer()
    TBinaryProtocol(transport).write_struct(struct)
    return transport.getvalue()


def thrift_read(kind: type, data: bytes) -> TPayload:
    found = kind()
    TBinaryProtocol(TMemoryBuffer(data)).read_struct(found)
    return found


def general(tensor: Any) -> TPayload:
    if isinstance(tensor, RawTensor):
        return General(raw=Raw(dtype=int(tensor.dtype), content=tensor.content, shape=_list(tensor.shape)))
    arm, of = ARMS[tensor.kind]
    return General(**{arm: of(values=list(tensor.values), shape=_list(tensor.shape))})


def thrift_record(record: DataRecord) -> TPayload:
    """The same record as a thriftpy2 struct; empty fields are unset."""
    given: dict[str, Any] = {
        "binary": list(record.binary),
        "sparse_binary": {key: list(texts) for key, texts in record.sparse_binary.items()},
        "tensors": {key: general(tensor) for key, tensor in record.tensors.items()},
        "sparse_tensors": {
            key: Sparse(
                coo=Coo(
                    shape=list(tensor.shape),
                    indices=Int64s(values=list(tensor.indices.values), shape=_list(tensor.indices.shape)),
                    values=general(tensor.values),
                )
            )
            for key, tensor in record.sparse_tensors.items()
        },
    }
    for kind in ("continuous", "discrete", "string", "sparse_continuous", "blobs"):
        given[kind] = getattr(record, kind)
    return Record(**{kind: features or None for kind, features in given.items()})


def _list(shape: tuple[int, ...] | None) -> list[int] | None:
    return None if shape is None else list(shape)
