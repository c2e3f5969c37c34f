"""Block files: the original's container of records, raw or compressed with gzip.

    block    = marker (16 bytes) | length of the payload (4 bytes, little endian) | payload
    payload  = 08 01 (version 1) | 12, length, class name | any number of (1a, length, record)

Lengths in the payload are varints, seven bits at a time, the low ones first. Blocks follow each other, so that
files may be joined end to end. Between blocks there is nothing; a reader that finds bytes there has found damage.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

MARKER = bytes.fromhex("29d8d50658cd4c29b2bc57992171bdff")
HEADER_BYTES = len(MARKER) + 4
CLASS_NAME = "com.twitter.ml.api.DataRecord"
RECORDS_PER_BLOCK = 100
MAX_BLOCK_BYTES = 64 << 20
MAX_CLASS_NAME_BYTES = 1022


def block_of(records: Sequence[bytes], class_name: str = CLASS_NAME) -> bytes:
    """A block."""
    name = class_name.encode()
    head = b"\x08\x01\x12" + varint(len(name)) + name
    payload = head + b"".join(b"\x1a" + varint(len(record)) + record for record in records)
    return MARKER + struct.pack("<i", len(payload)) + payload


def parse_payload(payload: bytes | memoryview) -> tuple[str, list[bytes]]:
    """The class name and the records of a block's payload.

    Raises:
        ValueError: it is damaged; says how and at which of its bytes.
    """
    if payload[:2] != b"\x08\x01":
        raise ValueError(f"it begins with {bytes(payload[:2]).hex(' ')} and not with version 1 (08 01)")
    begin, end = _piece(payload, 2, 0x12)
    if end - begin > MAX_CLASS_NAME_BYTES:
        raise ValueError(f"class name of {end - begin} bytes, longer than {MAX_CLASS_NAME_BYTES}")
    name = bytes(payload[begin:end]).decode("utf-8", "replace")
    pieces = []
    while end < len(payload):
        begin, end = _piece(payload, end, 0x1A)
        pieces.append((begin, end))
    # Copied only once the whole block is known to be sound.
    return name, [bytes(payload[begin:end]) for begin, end in pieces]


def _piece(payload: bytes | memoryview, position: int, tag: int) -> tuple[int, int]:
    """Where a length-prefixed field begins and ends, whose tag is at `position`."""
    found = payload[position] if position < len(payload) else None
    if found != tag:
        raise ValueError(f"tag {found} at byte {position} and not {tag}")
    length, begin = 0, position + 1
    for shift in range(0, 35, 7):
        if begin >= len(payload):
            raise ValueError(f"length cut off at byte {begin}")
        byte = payload[begin]
        length |= (byte & 0x7F) << shift
        begin += 1
        if byte < 0x80:
            break
    if byte >= 0x80 or begin + length > len(payload):
        raise ValueError(f"length {length} at byte {position + 1}, with {len(payload) - begin} bytes left")
    return begin, begin + length


def varint(number: int) -> bytes:
    """A number from 0 on as a varint."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
