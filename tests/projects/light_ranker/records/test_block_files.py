"""Block files hold the original's bytes, come back as they were, and damage is an error or a counted skip."""

from __future__ import annotations

import contextlib
import gzip
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tml.common.errors import ConfigError, DataError
from tml.projects.light_ranker.records.block_format import MARKER, block_of, parse_payload, varint
from tml.projects.light_ranker.records.block_reader import BlockCounts, BlockReader
from tml.projects.light_ranker.records.block_writer import BlockWriter

RECORDS = [bytes([n % 256]) * (n % 150) for n in range(250)]


def _slow_file(records: list[bytes], class_name: bytes, per_block: int) -> bytes:
    """The format once more, byte by byte."""

    def length(number: int) -> list[int]:
        digits = [number & 127]
        while number := number >> 7:
            digits[-1] |= 128
            digits.append(number & 127)
        return digits

    out = []
    for start in range(0, len(records), per_block):
        payload = [0x08, 1, 0x12, *length(len(class_name)), *class_name]
        for record in records[start : start + per_block]:
            payload += [0x1A, *length(len(record)), *record]
        marker = [0x29, 0xD8, 0xD5, 0x06, 0x58, 0xCD, 0x4C, 0x29, 0xB2, 0xBC, 0x57, 0x99, 0x21, 0x71, 0xBD, 0xFF]
        out += [*marker, *(len(payload) >> shift & 255 for shift in (0, 8, 16, 24)), *payload]
    return bytes(out)


def _write(path, records=RECORDS, **options) -> str:
    with BlockWriter(str(path), **options) as writer:
        for record in records:
            writer.write(record)
    return str(path)


def _read(path, **options) -> list[bytes]:
    return [record for block in BlockReader(str(path), **options) for record in block]


def _read_skipping(path) -> tuple[list[bytes], BlockCounts]:
    reader = BlockReader(str(path), "skip")
    return [record for block in reader for record in block], reader.counts


def test_a_raw_file_holds_the_bytes_of_the_format(tmp_path):
    path = _write(tmp_path / "part-0", class_name="C" * 200, records_per_block=100)
    assert (tmp_path / "part-0").read_bytes() == _slow_file(RECORDS, b"C" * 200, 100)
    reader = BlockReader(path)
    assert [len(block) for block in reader] == [100, 100, 50]
    assert reader.class_name == "C" * 200
    assert reader.counts == BlockCounts(blocks=3, records=250)


def test_a_gzip_file_holds_the_same_and_is_the_same_each_time(tmp_path):
    first, second = _write(tmp_path / "a.gz"), _write(tmp_path / "b.gz")
    raw = _write(tmp_path / "a")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()) == (tmp_path / "a").read_bytes()
    assert _read(first) == _read(second) == _read(raw) == RECORDS


def test_blocks_and_files_may_be_joined(tmp_path):
    raw = block_of([b"a"]) + block_of([]) + block_of([b"b", b""])
    (tmp_path / "joined").write_bytes(raw)
    (tmp_path / "joined.gz").write_bytes(gzip.compress(raw[:30]) + gzip.compress(raw[30:]))
    assert _read(tmp_path / "joined") == _read(tmp_path / "joined.gz") == [b"a", b"b", b""]
    (tmp_path / "empty").touch()
    assert _read(tmp_path / "empty") == []


def test_the_last_block_is_written_when_the_context_ends(tmp_path):
    # The original forgot it when the writer was destroyed, and added what an earlier run had left behind.
    with BlockWriter(str(tmp_path / "part")) as writer:
        writer.write(b"x")
    assert _read(tmp_path / "part") == [b"x"]
    assert _read(_write(tmp_path / "part", [b"y"])) == [b"y"]
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_a_file_that_failed_does_not_appear(tmp_path):
    def fail() -> None:
        with BlockWriter(str(tmp_path / "part"), records_per_block=1) as writer:
            writer.write(b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_remote_files_are_read_and_written(tmp_path):
    path = _write("memory://blocks/part-0.gz")
    assert _read(path) == RECORDS
    with pytest.raises(DataError, match="part-9"):
        _read("memory://blocks/part-9")


@pytest.mark.parametrize("at", [*range(1, 22), 500, 5000, -1])
def test_a_file_cut_off_anywhere_is_an_error_or_a_counted_skip(tmp_path, at):
    whole = _slow_file(RECORDS, b"C", 100)
    (tmp_path / "cut").write_bytes(whole[:at])
    with pytest.raises(DataError, match=r"cut, byte \d"):
        _read(tmp_path / "cut")
    records, counts = _read_skipping(tmp_path / "cut")
    assert records == RECORDS[: len(records)]
    assert counts.records == len(records) == 100 * counts.blocks
    assert counts.skipped_bytes + len(_slow_file(records, b"C", 100)) == len(whole[:at])


def test_a_gzip_file_cut_off_gives_what_lies_before(tmp_path):
    whole = (tmp_path / _write(tmp_path / "part.gz")).read_bytes()
    (tmp_path / "part.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut off or damaged[\s\S]*part\.gz"):
        _read(tmp_path / "part.gz")
    records, counts = _read_skipping(tmp_path / "part.gz")
    assert 0 < len(records) < len(RECORDS)
    assert records == RECORDS[: len(records)]
    assert counts.broken_files == 1


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 0, "belong to no block"),
        (16 + 3, 0x7F, "length of a block is impossible"),
        (16 + 3, 0x80, "length of a block is impossible"),
        (20, 0x10, "version 1"),  # the right tag with the wrong type of field, which the original let pass
        (20, 0x0A, "version 1"),
        (21, 2, "version 1"),
        (22, 0x10, "tag 16 at byte 2"),
        (22, 0x0A, "tag 10 at byte 2"),
        (23, 0xFF, "length .* at byte 3|class name of"),
        (25, 0x18, "tag 24 at byte 5"),
        (26, 0x7F, "tag|length"),
    ],
)
def test_a_damaged_block_is_an_error_or_skipped(tmp_path, place, value, message):
    # The records of the first block are empty.
    data = bytearray(_slow_file([b""] * 3 + RECORDS[:6], b"C", 3))
    data[place] = value
    (tmp_path / "part").write_bytes(data)
    with pytest.raises(DataError, match=message):
        _read(tmp_path / "part")
    records, counts = _read_skipping(tmp_path / "part")
    assert records == RECORDS[:6]
    assert (counts.blocks, counts.bad_blocks) == (2, int(place > 0))
    assert counts.skipped_bytes == len(_slow_file([b""] * 3, b"C", 3))


def test_a_length_that_swallows_good_blocks_costs_only_its_own(tmp_path):
    data = bytearray(b"".join(block_of([bytes([n])]) for n in range(5)))
    struct.pack_into("<i", data, len(MARKER), len(data) - 40)
    (tmp_path / "part").write_bytes(data)
    records, counts = _read_skipping(tmp_path / "part")
    assert records == [b"\1", b"\2", b"\3", b"\4"]
    assert counts.bad_blocks == 1


@given(st.binary(max_size=80), st.binary(max_size=3), st.integers(0, 60), st.booleans())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_is_a_data_error_and_good_blocks_are_found_in_it(tmp_path, noise, change, place, marked):
    good = block_of([b"good", b""])
    bad = bytearray(block_of([b"12345678"]))
    bad[place : place + len(change)] = change
    (tmp_path / "part").write_bytes((MARKER if marked else b"") + noise + bad + good)
    with contextlib.suppress(DataError):
        _read(tmp_path / "part")
    try:
        records, _ = _read_skipping(tmp_path / "part")
    except DataError:  # the noise may look like lzo or gzip
        return
    if not noise.startswith(b"\x1f\x8b") or marked:
        assert records[-2:] == [b"good", b""]


@given(st.binary(max_size=60))
@settings(max_examples=80, deadline=None)
def test_a_garbage_payload_is_a_value_error(data):
    for payload in (data, b"\x08\x01" + data, b"\x08\x01\x12\x00" + data):
        try:
            _, records = parse_payload(payload)
        except ValueError:
            continue
        assert sum(map(len, records)) <= len(payload)


@pytest.mark.parametrize(("number", "digits"), [(0, [0]), (127, [127]), (128, [128, 1]), (300, [0xAC, 2])])
def test_varints(number, digits):
    assert list(varint(number)) == digits


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_the_compression_may_be_named(tmp_path, compression):
    path = _write(tmp_path / "part.anything", compression=compression)
    assert (tmp_path / "part.anything").read_bytes().startswith(b"\x1f\x8b") == (compression == "gzip")
    assert _read(path) == _read(path, compression=compression) == RECORDS


def test_compressions_that_are_not_known_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"\.lzo"):
        _write(tmp_path / "part.lzo")
    with pytest.raises(ConfigError, match="bz2"):
        _write(tmp_path / "part", compression="bz2")
    (tmp_path / "part.lzo").write_bytes(b"\x89LZO\0\r\n\x1a\n....")
    with pytest.raises(DataError, match="lzop -d"):
        _read(tmp_path / "part.lzo")
    (tmp_path / "raw").write_bytes(block_of([b"a"]))
    with pytest.raises(DataError, match="BadGzipFile"):
        _read(tmp_path / "raw", compression="gzip")


def test_files_that_are_not_there_or_no_files_are_errors(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        _read(tmp_path / "nothing")
    with pytest.raises(DataError, match="cannot open file"):
        _read(tmp_path)


@pytest.mark.parametrize("options", [{"class_name": "C" * 1023}, {"records_per_block": 0}])
def test_settings_that_no_reader_takes_are_refused(tmp_path, options):
    with pytest.raises(ConfigError, match="out of range"):
        BlockWriter(str(tmp_path / "part"), **options)


def test_a_block_that_no_reader_takes_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("tml.projects.light_ranker.records.block_writer.MAX_BLOCK_BYTES", 1000)
    with pytest.raises(DataError, match="block is too long"):
        _write(tmp_path / "part", [bytes(600), bytes(600)])
    assert list(tmp_path.iterdir()) == []
