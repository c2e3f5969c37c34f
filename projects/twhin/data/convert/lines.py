"""Blocks of whole text lines, and what is wrong with each line, found with numpy and without a loop over lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import IO

import numpy as np

from tml.common.errors import DataError
from tml.projects.twhin.data.convert.rejects import CODES

BLOCK_BYTES = 16 << 20
_LF, _CR, _QUOTE = ord("\n"), ord("\r"), ord('"')
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class LineBlock:
    """Consecutive whole lines of a file.

    Args:
        text: the bytes, line ends included (the last line of a file may lack its own).
        first_line: number of the first line, from 1.
    """

    text: bytes
    first_line: int

    @cached_property
    def data(self) -> np.ndarray:
        """The bytes, uint8 [n]."""
        return np.frombuffer(self.text, np.uint8)

    @cached_property
    def stops(self) -> np.ndarray:
        """int64 [num_lines]: the place after each line, its line end included."""
        stops = np.flatnonzero(self.data == _LF) + 1
        if self.text and not self.text.endswith(b"\n"):
            stops = np.append(stops, len(self.text))
        return stops

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 [num_lines]: the place of each line's first byte."""
        return np.concatenate([np.zeros(1, np.int64), self.stops[:-1]]) if len(self.stops) else self.stops

    @cached_property
    def ends(self) -> np.ndarray:
        """int64 [num_lines]: the place after each line's last byte, its line end (LF or CR LF) excluded."""
        ends = self.stops - (self.data[self.stops - 1] == _LF)
        before = np.maximum(ends - 1, 0)
        return ends - ((ends > self.starts) & (ends < self.stops) & (self.data[before] == _CR))

    @property
    def line_numbers(self) -> np.ndarray:
        """int64 [num_lines], from 1 at the start of the file."""
        return self.first_line + np.arange(len(self.stops), dtype=np.int64)

    def content(self, line: int) -> str:
        """The line's text, with bytes that are no UTF-8 shown as escapes."""
        return self.text[self.starts[line] : self.ends[line]].decode("utf-8", "backslashreplace")

    def line_of(self, places: np.ndarray) -> np.ndarray:
        """The line that each byte place lies in."""
        return np.searchsorted(self.stops, places, side="right")

    def keep(self, good: np.ndarray) -> bytes:
        """The text of the lines where `good` (bool [num_lines]) holds."""
        if good.all():
            return self.text
        return self.data[np.repeat(good, self.stops - self.starts)].tobytes()


def read_blocks(stream: IO[bytes], path: str, block_bytes: int = BLOCK_BYTES) -> Iterator[LineBlock]:
    """Cuts a stream into blocks of whole lines; a byte order mark at its start is dropped.

    Raises:
        DataError: a single line is longer than a block.
    """
    rest, next_line, piece = b"", 1, stream.read(block_bytes)
    piece = piece.removeprefix(_BOM)
    while piece:
        cut = piece.rfind(b"\n") + 1
        if not cut and len(rest) > block_bytes:
            raise DataError(
                "line too long",
                where=f"{path}, line {next_line}",
                value=rest[:80],
                limit=f"{block_bytes} bytes",
                fix="check that this is a text file with one edge per line",
            )
        if cut:
            block = LineBlock(rest + piece[:cut], next_line)
            next_line += len(block.stops)
            yield block
            rest = piece[cut:]
        else:
            rest += piece
        piece = stream.read(block_bytes)
    if rest:
        yield LineBlock(rest, next_line)


def line_faults(block: LineBlock, delimiter: str, quoting: bool, num_columns: int) -> np.ndarray:
    """What is wrong with the form of each line, as codes of `rejects.FAULTS`: int8 [num_lines]."""
    separators = np.flatnonzero(block.data == ord(delimiter))
    faults = np.zeros(len(block.stops), np.int8)
    misquoted = np.empty(0, np.int64)
    if quoting and b'"' in block.text:
        inside, misquoted = _quotes(block, delimiter)
        separators = separators[~inside[separators]]
    # A line's columns are counted from running totals, so that the cost does not depend on the number of bad lines.
    before = np.searchsorted(separators, block.starts)
    found = np.searchsorted(separators, block.ends) - before + 1
    faults[found < num_columns] = CODES["too few columns"]
    faults[found > num_columns] = CODES["too many columns"]
    faults[misquoted] = CODES["misplaced quote"]
    faults[_stray_returns(block)] = CODES["carriage return inside a line"]
    faults[_undecodable(block)] = CODES["not valid UTF-8"]
    faults[block.starts == block.ends] = CODES["blank line"]
    return faults


def _stray_returns(block: LineBlock) -> np.ndarray:
    if b"\r" not in block.text:
        return np.empty(0, np.int64)
    places = np.flatnonzero(block.data == _CR)
    lines = block.line_of(places)
    return lines[places < block.ends[lines]]


def _undecodable(block: LineBlock) -> list[int]:
    bad: list[int] = []
    start = 0
    while True:
        try:
            block.text[start:].decode("utf-8") if start else block.text.decode("utf-8")
            return bad
        except UnicodeDecodeError as error:
            line = int(block.line_of(np.array([start + error.start]))[0])
            bad.append(line)
            start = int(block.stops[line])


def _quotes(block: LineBlock, delimiter: str) -> tuple[np.ndarray, np.ndarray]:
    """Which bytes lie inside quotes (bool [n]) and which lines use quotes against RFC 4180.

    A quote opens only at the start of a value and closes only at its end; inside, it is doubled. A value that spans
    lines is refused: no id needs a line end, and a lost quote would otherwise swallow the rest of the file.
    """
    is_quote = block.data == _QUOTE
    total = np.cumsum(is_quote)
    lengths = block.stops - block.starts
    at_start = np.where(block.starts > 0, total[np.maximum(block.starts - 1, 0)], 0)
    parity = (total - np.repeat(at_start, lengths)) & 1  # quotes of the line up to and with this byte
    odd = np.flatnonzero((total[block.stops - 1] - at_start) & 1)
    places = np.flatnonzero(is_quote)
    lines = block.line_of(places)
    opening = parity[places] == 1
    sep = ord(delimiter)
    left = block.data[np.maximum(places - 1, 0)]
    right = block.data[np.minimum(places + 1, len(block.data) - 1)]
    left_fine = (places == block.starts[lines]) | (left == sep) | (left == _QUOTE)
    right_fine = (places + 1 >= block.ends[lines]) | (right == sep) | (right == _QUOTE)
    wrong = np.where(opening, ~left_fine, ~right_fine)
    return parity == 1, np.union1d(odd, lines[wrong])
