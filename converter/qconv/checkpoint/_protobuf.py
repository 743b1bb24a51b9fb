"""Walks through serialized protobuf messages in place, checking every step against their ends.

The wire format: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.errors import UnreadableInput

if TYPE_CHECKING:
    from qconv.checkpoint._mapped import MappedFile

_ANEW = "the file is damaged or hostile, get it anew from its publisher"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

#: Bytes of a 64-bit number at seven bits each.
_LONGEST = 10


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message.

    number: which field
    begin: where it begins, its tag included
    start, stop: where its content lies; of a number, its bytes
    value: of a varint; None for any other
    is_bytes: it is a string, bytes, a message or packed numbers, not a single number
    """

    number: int
    begin: int
    start: int
    stop: int
    value: int | None
    is_bytes: bool


class Message:
    """A message in a mapped file, from ``start`` to ``stop``; its fields are found as they come."""

    def __init__(self, file: MappedFile, start: int, stop: int, what: str) -> None:
        self.file = file
        self._start = start
        self._stop = stop
        self._what = what

    def __iter__(self) -> Iterator[Field]:
        """The fields in order.

        Raises:
            UnreadableInput: a field goes beyond the message, or is none.
        """
        position = self._start
        while position < self._stop:
            field = self._field(position)
            yield field
            position = field.stop

    def message(self, field: Field, what: str) -> Message:
        """A field's content as a message of its own."""
        self._require_bytes(field, what)
        return Message(self.file, field.start, field.stop, what)

    def take(self, field: Field, what: str) -> bytes:
        """A field's content."""
        self._require_bytes(field, what)
        return self.file.buffer[field.start : field.stop]

    def text(self, field: Field, what: str) -> str:
        """A field's content as text."""
        try:
            return self.take(field, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fault(field.start, f"{what} is not UTF-8") from error

    def numbers(self, field: Field, what: str) -> Iterator[int]:
        """Of a repeated number, as they come: one, or many that are packed."""
        if field.value is not None:
            yield field.value
            return
        self._require_bytes(field, what)
        position = field.start
        while position < field.stop:
            value, position = self._varint(position, field.stop)
            yield value

    def fault(self, position: int, problem: str) -> UnreadableInput:
        """An error that names the file and the position."""
        return UnreadableInput(f"{self.file.path}: at byte {position}: {problem}; {_ANEW}")

    def _require_bytes(self, field: Field, what: str) -> None:
        if not field.is_bytes:
            raise self.fault(field.begin, f"{what} is a number, where text or a message is due")

    def _field(self, begin: int) -> Field:
        tag, start = self._varint(begin, self._stop)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT and number:
            value, stop = self._varint(start, self._stop)
            return Field(number, begin, start, stop, value, is_bytes=False)
        if wire == _BYTES and number:
            length, start = self._varint(start, self._stop)
        elif wire in {_FIXED32, _FIXED64} and number:
            length = 4 if wire == _FIXED32 else 8
        else:
            raise self.fault(begin, f"{self._what}: tag {tag} is of no known kind of field")
        if length > self._stop - start:
            raise self.fault(
                begin,
                f"{self._what}: field {number} of {length} bytes goes beyond the "
                f"{self._stop - start} that are left",
            )
        return Field(number, begin, start, start + length, None, is_bytes=wire == _BYTES)

    def _varint(self, position: int, stop: int) -> tuple[int, int]:
        """A number, and where it ends."""
        buffer, value = self.file.buffer, 0
        for count in range(_LONGEST):
            if position + count >= stop:
                raise self.fault(position, f"{self._what}: a number goes beyond its message")
            byte = buffer[position + count]
            value |= (byte & 0x7F) << (7 * count)
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, position + count + 1
        raise self.fault(position, f"{self._what}: a number of more than {_LONGEST} bytes")


def encoded_bytes(number: int, content: bytes) -> bytes:
    """A field that holds text, bytes or a message."""
    return encoded_number(number << 3 | _BYTES) + encoded_number(len(content)) + content


def encoded_value(number: int, value: int) -> bytes:
    """A field that holds one number."""
    return encoded_number(number << 3 | _VARINT) + encoded_number(value)


def encoded_number(value: int) -> bytes:
    """A varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
