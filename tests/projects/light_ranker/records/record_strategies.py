"""Records of every kind, and bytes that are nearly records, for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from tml.projects.light_ranker.records.codec import encode_record
from tml.projects.light_ranker.records.data_record import DataRecord, OrderedSet
from tml.projects.light_ranker.records.tensors import DataType, ListKind, ListTensor, RawTensor, SparseTensor

I64 = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
NUMBERS = st.floats(allow_nan=False)
SHAPES = st.none() | st.lists(I64, max_size=3).map(tuple)


def _lists(kind: ListKind, values: st.SearchStrategy) -> st.SearchStrategy[ListTensor]:
    return st.builds(ListTensor, st.just(kind), st.lists(values, max_size=4).map(tuple), SHAPES)


LISTS = st.one_of(
    _lists(ListKind.STRING, TEXTS),
    _lists(ListKind.INT32, st.integers(-(2**31), 2**31 - 1)),
    _lists(ListKind.INT64, I64),
    _lists(ListKind.FLOAT, NUMBERS),
    _lists(ListKind.DOUBLE, NUMBERS),
    _lists(ListKind.BOOL, st.booleans()),
)
TENSORS = LISTS | st.builds(RawTensor, st.sampled_from(DataType), st.binary(max_size=16), SHAPES)
SPARSE = st.builds(SparseTensor, st.lists(I64, max_size=2).map(tuple), _lists(ListKind.INT64, I64), TENSORS)


def _map(values: st.SearchStrategy) -> st.SearchStrategy[dict]:
    return st.dictionaries(I64, values, max_size=4)


RECORDS = st.builds(
    DataRecord,
    binary=st.lists(I64, max_size=5).map(OrderedSet),
    continuous=_map(NUMBERS),
    discrete=_map(I64),
    string=_map(TEXTS),
    sparse_binary=_map(st.lists(TEXTS, max_size=4).map(OrderedSet)),
    sparse_continuous=_map(st.dictionaries(TEXTS, NUMBERS, max_size=4)),
    blobs=_map(st.binary(max_size=6)),
    tensors=st.dictionaries(I64, TENSORS, max_size=2),
    sparse_tensors=st.dictionaries(I64, SPARSE, max_size=1),
)


@st.composite
def damaged_records(draw: st.DrawFn) -> bytes:
    """A record's bytes with some changed, cut off or added; now and then still a record."""
    data = bytearray(encode_record(draw(RECORDS)))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(["set", "cut", "add", "grow"])):
            case "set" if data:
                data[place] = draw(st.sampled_from([0, 1, 2, 4, 10, 11, 12, 13, 14, 15, 127, 128, 255]))
            case "cut":
                del data[place:]
            case "add":
                data += draw(st.binary(max_size=3))
            case "grow":
                data[place:place] = draw(st.binary(max_size=8))
    return bytes(data)


BYTES = damaged_records() | st.binary(max_size=64)
