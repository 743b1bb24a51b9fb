"""Walks through a GGUF header, checking every step against the end of the file."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.checkpoint._faults import MAX_HEADER_NBYTES
from qconv.errors import UnreadableInput

if TYPE_CHECKING:
    from pathlib import Path

    from qconv.checkpoint._mapped import MappedFile

_ANEW = "the file is damaged or hostile, get it anew from its publisher"

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderBytes:
    """A header in memory, in the place of a mapped file. path: for messages."""

    path: Path
    buffer: bytes

    @property
    def size(self) -> int:
        """Bytes of it."""
        return len(self.buffer)


class Cursor:
    """A position in the header of a GGUF file, mapped or in memory. Numbers are little-endian."""

    def __init__(self, file: MappedFile | HeaderBytes) -> None:
        self.file = file
        self.position = 0
        self._buffer = file.buffer
        self._end = min(file.size, MAX_HEADER_NBYTES)

    @property
    def remaining(self) -> int:
        """Bytes that the header may still take."""
        return self._end - self.position

    def u32(self, what: str) -> int:
        """An unsigned 32-bit number; ``what`` names it in the error."""
        return int(_U32.unpack_from(self._buffer, self._step(4, what))[0])

    def u64(self, what: str) -> int:
        """An unsigned 64-bit number."""
        return int(_U64.unpack_from(self._buffer, self._step(8, what))[0])

    def count(self, what: str, least_nbytes: int) -> int:
        """A 64-bit number of things that take at least ``least_nbytes`` bytes each."""
        number = self.u64(what)
        if number > self.remaining // least_nbytes:
            raise self.fault(
                f"{what} is {number}, more than the {self.remaining} bytes that remain can hold"
            )
        return number

    def take(self, nbytes: int, what: str) -> bytes:
        """The next bytes."""
        start = self._step(nbytes, what)
        return self._buffer[start : start + nbytes]

    def text(self, what: str) -> str:
        """A string: its length as 64-bit number, then UTF-8."""
        raw = self.take(self.u64(f"length of {what}"), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fault(f"{what} is not UTF-8") from error

    def texts(self, count: int, what: str) -> tuple[str, ...]:
        """Many strings. Kept flat: a vocabulary has some 10^5."""
        buffer, position, end = self._buffer, self.position, self._end
        length_at = _U64.unpack_from
        found: list[str] = []
        try:
            for _ in range(count):
                (nbytes,) = length_at(buffer, position)
                position += 8
                if nbytes > end - position:
                    raise self.fault(f"{what}: string of {nbytes} bytes goes beyond the file")
                found.append(str(buffer[position : position + nbytes], "utf-8"))
                position += nbytes
        except struct.error as error:
            raise self.fault(f"{what} goes beyond the file") from error
        except UnicodeDecodeError as error:
            raise self.fault(f"{what}: string {len(found)} is not UTF-8") from error
        self.position = position
        return tuple(found)

    def fault(self, problem: str) -> UnreadableInput:
        """An error that names the file and the position."""
        return UnreadableInput(f"{self.file.path}: at byte {self.position}: {problem}; {_ANEW}")

    def _step(self, nbytes: int, what: str) -> int:
        if nbytes > self.remaining:
            limit = (
                f"the file's {self.file.size} bytes"
                if self._end == self.file.size
                else f"the {MAX_HEADER_NBYTES} bytes a header may take"
            )
            raise self.fault(f"{what} ({nbytes} bytes) goes beyond {limit}")
        start = self.position
        self.position += nbytes
        return start
