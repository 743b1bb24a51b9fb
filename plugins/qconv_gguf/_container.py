"""The bytes around the tensors of a GGUF file: header, metadata, tensor table, padding.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3, little endian).
Each tensor starts where the one before it ended, padded to the alignment, in the order of the
table; llama.cpp refuses any other offsets.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

from qconv.errors import UnreadableInput, Unsupported
from qconv.plugin import FilePlan, Layout, Place, TensorPlan

from ._types import ggml_type

_MAGIC = b"GGUF"
_VERSION = 3
_ALIGNMENT_KEY = "general.alignment"
_DEFAULT_ALIGNMENT = 32
#: ggml's limits (``ggml.h``): bytes of a tensor name with its closing zero, and dimensions.
_MAX_NAME = 64
_MAX_DIMENSIONS = 4


class ValueType(IntEnum):
    """Types of metadata values, by their number in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Typed(Protocol):
    """A metadata value with its type as in the file; element_type: of an array's elements."""

    @property
    def type(self) -> int:
        """Number of the value's type."""
        ...

    @property
    def value(self) -> Any:  # noqa: ANN401 -- whatever the file holds
        """A number, bool, string, or sequence of them."""
        ...

    @property
    def element_type(self) -> int | None:
        """Number of the elements' type, None unless an array."""
        ...


@dataclass(frozen=True, slots=True)
class Value:
    """A metadata value made here."""

    type: int
    value: Any
    element_type: int | None = None


Metadata = Mapping[str, Typed]


def uint32(value: int) -> Value:
    """An unsigned 32-bit number."""
    return Value(ValueType.UINT32, value)


def float32(value: float) -> Value:
    """A 32-bit float."""
    return Value(ValueType.FLOAT32, value)


def string(value: str) -> Value:
    """A string."""
    return Value(ValueType.STRING, value)


def boolean(value: bool) -> Value:  # noqa: FBT001 -- the value itself, not a switch
    """A truth value."""
    return Value(ValueType.BOOL, value)


def array(element_type: ValueType, values: Sequence[Any]) -> Value:
    """An array of values of one type."""
    return Value(ValueType.ARRAY, values, element_type)


def lay_out(path: str, metadata: Metadata, plans: Iterable[TensorPlan]) -> Layout:
    """Lay out one file: its header bytes, and every tensor's place.

    Raises:
        UnreadableInput: a metadata value does not fit its type.
        Unsupported: a tensor's name or shape is beyond what ggml can hold.
    """
    tensors = tuple(plans)
    alignment = _alignment(metadata)
    table, offset, sizes = [], 0, []
    for plan in tensors:
        stored = ggml_type(plan.storage)
        row_nbytes = stored.row_nbytes(plan.shape[-1] if plan.shape else 1)
        nbytes = row_nbytes * _rows(plan.shape)
        table.append(_table_entry(plan, stored.number, offset))
        sizes.append((offset, nbytes, row_nbytes))
        offset += _padded(nbytes, alignment)
    head = _MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))
    header = b"".join([head, *_metadata_bytes(metadata), *table])
    start = _padded(len(header), alignment)
    places = {
        plan.name: (Place(file=path, offset=start + at, nbytes=nbytes, row_nbytes=row_nbytes),)
        for plan, (at, nbytes, row_nbytes) in zip(tensors, sizes, strict=True)
    }
    file = FilePlan(path=path, header=header, nbytes=start + offset)
    return Layout(files=(file,), places=places)


def _alignment(metadata: Metadata) -> int:
    entry = metadata.get(_ALIGNMENT_KEY)
    if entry is None:
        return _DEFAULT_ALIGNMENT
    value = entry.value
    if not isinstance(value, int) or value < 1 or value & (value - 1):
        raise UnreadableInput(
            f"{_ALIGNMENT_KEY} is {value!r}, but must be a power of two; convert the source again"
        )
    return value


def _padded(nbytes: int, alignment: int) -> int:
    return -(-nbytes // alignment) * alignment


def _rows(shape: tuple[int, ...]) -> int:
    rows = 1
    for size in shape[:-1]:
        rows *= size
    return rows


def _table_entry(plan: TensorPlan, type_number: int, offset: int) -> bytes:
    if len(plan.name.encode()) >= _MAX_NAME or len(plan.shape) > _MAX_DIMENSIONS:
        raise Unsupported(
            f"tensor {plan.name!r}: shape {plan.shape} or name does not fit GGUF, which holds "
            f"{_MAX_DIMENSIONS} dimensions and {_MAX_NAME - 1} bytes of name; leave the tensor out"
        )
    dimensions = plan.shape[::-1]  # ggml counts from the innermost
    return _string(plan.name) + struct.pack(
        f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, type_number, offset
    )


def _metadata_bytes(metadata: Metadata) -> Iterable[bytes]:
    for key, entry in metadata.items():
        yield _string(key) + struct.pack("<I", entry.type)
        try:
            if entry.type == ValueType.ARRAY:
                yield from _array_bytes(entry)
            else:
                yield _scalar(entry.type, entry.value)
        except (struct.error, KeyError, TypeError, AttributeError, ValueError) as error:
            raise UnreadableInput(
                f"metadata {key!r}: the value does not fit GGUF type {int(entry.type)} ({error}); "
                "correct it in the source"
            ) from error


def _array_bytes(entry: Typed) -> Iterable[bytes]:
    element_type = entry.element_type
    if element_type is None or element_type == ValueType.ARRAY:
        raise ValueError("an array needs elements of one plain type")
    yield struct.pack("<IQ", element_type, len(entry.value))
    if element_type == ValueType.STRING:
        yield b"".join(_string(text) for text in entry.value)
    else:
        yield struct.pack(f"<{len(entry.value)}{_CODES[element_type]}", *entry.value)


def _scalar(type_number: int, value: Any) -> bytes:  # noqa: ANN401 -- whatever the file holds
    if type_number == ValueType.STRING:
        return _string(value)
    return struct.pack(f"<{_CODES[type_number]}", value)


def _string(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data
