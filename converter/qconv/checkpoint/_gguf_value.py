"""The typed values of GGUF metadata, kept so that they can be written back unchanged.

The types: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (``gguf_metadata_value_type``).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

from qconv.checkpoint._faults import shown

if TYPE_CHECKING:
    from qconv.checkpoint._gguf_cursor import Cursor

Scalar = Union[int, float, bool, str]

_BOOL, _STRING, _ARRAY = 7, 8, 9

#: The struct codes of the types of fixed size, by GGUF's number of the type.
_FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufValue:
    """A metadata value with the type it is stored as.

    type: GGUF's number of the type; 9 is an array
    value: a number, bool or string, or a tuple of them
    element_type: the number of the type of an array's elements; None unless an array
    """

    type: int
    value: Scalar | tuple[Scalar, ...]
    element_type: int | None = None


def read_value(cursor: Cursor, key: str) -> GgufValue:
    """Read the type and the value that follow a key.

    Raises:
        UnreadableInput: an unknown type, or a value beyond the file.
    """
    what = f"key {shown(key)}"
    kind = cursor.u32(f"{what}: type")
    if kind != _ARRAY:
        return GgufValue(type=kind, value=_elements(cursor, kind, 1, what)[0])
    element = cursor.u32(f"{what}: element type")
    if element == _ARRAY:
        raise cursor.fault(f"{what}: an array of arrays, which no runtime reads")
    count = cursor.count(f"{what}: length", _least_nbytes(cursor, element, what))
    return GgufValue(type=kind, value=_elements(cursor, element, count, what), element_type=element)


def _least_nbytes(cursor: Cursor, kind: int, what: str) -> int:
    if kind == _STRING:
        return 8
    if kind not in _FIXED:
        raise cursor.fault(f"{what}: type {kind} is unknown, types are 0 to 12")
    return struct.calcsize("<" + _FIXED[kind])


def _elements(cursor: Cursor, kind: int, count: int, what: str) -> tuple[Scalar, ...]:
    if kind == _STRING:
        return cursor.texts(count, what)
    nbytes = count * _least_nbytes(cursor, kind, what)
    values = struct.unpack(f"<{count}{_FIXED[kind]}", cursor.take(nbytes, what))
    if kind != _BOOL:
        return values
    if not set(values) <= {0, 1}:
        raise cursor.fault(f"{what}: a bool that is neither 0 nor 1")
    return tuple(value == 1 for value in values)
