"""Feature ids follow MurmurHash3 over UTF-16, and mixed keys the original's integer arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tml.common.errors import DataError
from tml.projects.light_ranker.records import feature_ids
from tml.projects.light_ranker.records.feature_ids import feature_id, mix_discrete, mix_string, text_hashes

I64 = st.integers(-(2**63), 2**63 - 1)


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _murmur3_first_half(data: bytes) -> bytes:
    """MurmurHash3_x64_128 with seed 0 in plain integers, from its published description; the first 8 bytes."""
    mask, c1, c2 = 2**64 - 1, 0x87C37B91114253D5, 0x4CF5AD432745937F

    def rotated(x: int, by: int) -> int:
        return (x << by | x >> (64 - by)) & mask

    def final(x: int) -> int:
        x = (x ^ x >> 33) * 0xFF51AFD7ED558CCD & mask
        x = (x ^ x >> 33) * 0xC4CEB9FE1A85EC53 & mask
        return x ^ x >> 33

    h1 = h2 = 0
    whole = len(data) // 16 * 16
    for start in range(0, whole, 16):
        k1, k2 = (int.from_bytes(data[start + at : start + at + 8], "little") for at in (0, 8))
        h1 ^= rotated(k1 * c1 & mask, 31) * c2 & mask
        h1 = ((rotated(h1, 27) + h2) * 5 + 0x52DCE729) & mask
        h2 ^= rotated(k2 * c2 & mask, 33) * c1 & mask
        h2 = ((rotated(h2, 31) + h1) * 5 + 0x38495AB5) & mask
    k1, k2 = (int.from_bytes(data[whole:][at : at + 8], "little") for at in (0, 8))
    h2 ^= rotated(k2 * c2 & mask, 33) * c1 & mask
    h1 ^= rotated(k1 * c1 & mask, 31) * c2 & mask
    h1, h2 = h1 ^ len(data), h2 ^ len(data)
    h1 = (h1 + h2) & mask
    h2 = (h2 + h1) & mask
    return ((final(h1) + final(h2)) & mask).to_bytes(8, "little")


def _slow_id(name: str) -> int:
    data = name.encode("utf-16-le")
    at = name.find("#")
    if at > 0:
        data = _murmur3_first_half(name[:at].encode("utf-16-le")) + name[at + 1 :].encode("utf-16-le")
    return int.from_bytes(_murmur3_first_half(data), "little", signed=True)


@given(st.text(st.characters(codec="utf-8"), max_size=40))
@settings(max_examples=60, deadline=None)
def test_an_id_is_the_first_half_of_the_hash_of_utf16(name):
    assert feature_id(name) == _slow_id(name)


@pytest.mark.parametrize("name", ["a#b", "user.age#v2", "#start", "#a#b", "a#b#c", "a#", "#", "", "日本#語"])
def test_a_name_with_a_sharp_sign_is_hashed_in_two_steps(name):
    assert feature_id(name) == _slow_id(name)


def test_a_sharp_sign_at_the_start_splits_nothing():
    assert feature_id("#ab") != feature_id("ab")
    assert len({feature_id(name) for name in ("a#b", "ab", "a", "b", "b#a")}) == 5


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(DataError, match="not valid text"):
        feature_id("a\udcff")


@given(I64, I64)
@settings(max_examples=60, deadline=None)
def test_discrete_keys_mix_as_wrapping_integers(key, value):
    mixed = mix_discrete(np.array([key]), np.array([value]))
    assert mixed.dtype == np.int64
    assert mixed[0] == key ^ _signed((17 + value) * 2654435761, 64)


@given(st.lists(st.tuples(I64, st.binary(max_size=40)), max_size=12), st.sampled_from([1, 16, 1 << 22]))
@settings(max_examples=60, deadline=None)
def test_string_keys_mix_with_the_sum_of_bytes(pairs, bytes_at_once):
    data = b"??" + b"".join(text for _, text in pairs)
    lengths = np.array([len(text) for _, text in pairs], np.int64)
    starts = 2 + np.cumsum(lengths) - lengths
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_ids, "_BYTES_AT_ONCE", bytes_at_once)
        hashes = text_hashes(np.frombuffer(data, np.uint8), starts, lengths)
    expected = []
    for key, text in pairs:
        hashed = 0
        for byte in text:
            hashed = _signed(31 * hashed + byte, 32)
        expected.append(key ^ hashed)
    assert mix_string(np.array([key for key, _ in pairs], np.int64), hashes).tolist() == expected


def test_a_string_hash_worked_by_hand():
    # (97 * 31 + 98) * 31 + 99, as Java's "abc".hashCode(); bytes above 127 count as they are, not as negative.
    hashes = text_hashes(np.frombuffer(b"abc\xff", np.uint8), np.array([0, 3]), np.array([3, 1]))
    assert hashes.tolist() == [96354, 255]
