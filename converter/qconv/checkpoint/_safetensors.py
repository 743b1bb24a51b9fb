"""Parses the header of a safetensors file that may be hostile.

The format: https://github.com/huggingface/safetensors#format. A little-endian uint64 gives the
length of a JSON header; the rest of the file is tensor data, which the tensors must cover without
hole or overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qconv.checkpoint._faults import (
    MAX_HEADER_NBYTES,
    MAX_SIZE,
    check_tensor_name,
    number_of_values,
    shown,
)
from qconv.checkpoint._stored import PLAIN_TYPES, StoredTensor
from qconv.checkpoint._strict_json import parse_object
from qconv.errors import UnreadableInput
from qconv.plugin import TensorInfo

if TYPE_CHECKING:
    from qconv.checkpoint._mapped import MappedFile

_LENGTH_NBYTES = 8

#: No model needs more; torch stops at 64.
_MAX_DIMENSIONS = 8

_ANEW = "the file is damaged or hostile, get it anew from its publisher"


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsHeader:
    """What a safetensors header says, checked against the file.

    raw: the header's bytes, its length included
    """

    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str]
    raw: bytes = field(repr=False)


def parse_safetensors(file: MappedFile) -> SafetensorsHeader:
    """Parse and check the header; tensors come in the order of their data.

    Raises:
        UnreadableInput: the header or what it says of the data is unsound.
    """
    raw = _read_header(file)
    fields = parse_object(raw[_LENGTH_NBYTES:], f"{file.path}: header")
    metadata = _metadata(file, fields.pop("__metadata__", {}))
    tensors = [_tensor(file, len(raw), name, entry) for name, entry in fields.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.info.nbytes))
    _check_coverage(file, len(raw), tensors)
    return SafetensorsHeader(tensors=tuple(tensors), metadata=metadata, raw=raw)


def _read_header(file: MappedFile) -> bytes:
    if file.size < _LENGTH_NBYTES:
        raise UnreadableInput(
            f"{file.path}: {file.size} bytes are too few for a safetensors file; get it anew"
        )
    length = int.from_bytes(file.buffer[:_LENGTH_NBYTES], "little")
    if length > MAX_HEADER_NBYTES:
        raise UnreadableInput(
            f"{file.path}: header length {length} is over the cap of {MAX_HEADER_NBYTES} bytes; "
            "not a safetensors file, or a hostile one"
        )
    if length > file.size - _LENGTH_NBYTES:
        raise UnreadableInput(
            f"{file.path}: header length {length} goes beyond the file's {file.size} bytes; "
            "the download may be incomplete, get the file anew"
        )
    raw = file.buffer[: _LENGTH_NBYTES + length]
    file.release(0, len(raw))
    return raw


def _metadata(file: MappedFile, value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise UnreadableInput(
            f"{file.path}: header: __metadata__ must map strings to strings, not {shown(value)}; "
            f"{_ANEW}"
        )
    return value


def _tensor(file: MappedFile, data: int, name: str, entry: object) -> StoredTensor:
    check_tensor_name(file.path, name)
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _fault(file, name, "must have dtype, shape and data_offsets", entry)
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in PLAIN_TYPES:
        raise UnreadableInput(
            f"{file.path}: tensor {shown(name)}: dtype {shown(dtype)} is not one of "
            f"{', '.join(PLAIN_TYPES)}; use a source stored in one of these"
        )
    shape = _sizes(file, name, "shape", entry["shape"])
    begin, end = _offsets(file, name, data, entry["data_offsets"])
    width = PLAIN_TYPES[dtype][0]
    if number_of_values(file.path, name, shape) * width != end - begin:
        raise UnreadableInput(
            f"{file.path}: tensor {shown(name)}: shape {shown(shape)} of {dtype} does not fill "
            f"its {end - begin} bytes exactly; {_ANEW}"
        )
    info = TensorInfo(name=name, shape=shape, dtype=dtype, nbytes=end - begin)
    return StoredTensor(info=info, file=file, offset=data + begin, block=1, block_nbytes=width)


def _offsets(file: MappedFile, name: str, data: int, value: object) -> tuple[int, int]:
    offsets = _sizes(file, name, "data_offsets", value)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _fault(file, name, "data_offsets must be a beginning and an end", value)
    if offsets[1] > file.size - data:
        raise UnreadableInput(
            f"{file.path}: tensor {shown(name)}: data_offsets {shown(list(offsets))} go beyond the "
            f"{file.size - data} bytes of data; the download may be incomplete, get the file anew"
        )
    return offsets[0], offsets[1]


def _sizes(file: MappedFile, name: str, key: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _fault(file, name, f"{key} must be a list", value)
    if len(value) > _MAX_DIMENSIONS:
        raise _fault(file, name, f"{key} may have at most {_MAX_DIMENSIONS} numbers", value)
    # bool is an int to Python, but not to the format
    if not all(type(size) is int and 0 <= size < MAX_SIZE for size in value):
        raise _fault(file, name, f"{key} must be whole numbers from 0 to 2^63 - 1", value)
    return tuple(value)


def _check_coverage(file: MappedFile, data: int, tensors: list[StoredTensor]) -> None:
    end = data
    for tensor in tensors:
        if tensor.offset != end:
            relation = "overlaps the data before it" if tensor.offset < end else "leaves a hole"
            raise UnreadableInput(
                f"{file.path}: tensor {shown(tensor.info.name)}: begins at byte "
                f"{tensor.offset - data} of the data, where {end - data} is due: {relation}; "
                f"{_ANEW}"
            )
        end += tensor.info.nbytes
    if end != file.size:
        raise UnreadableInput(
            f"{file.path}: {file.size - end} bytes after the last tensor belong to none; {_ANEW}"
        )


def _fault(file: MappedFile, name: str, rule: str, value: object) -> UnreadableInput:
    return UnreadableInput(
        f"{file.path}: tensor {shown(name)}: {rule}, not {shown(value)}; {_ANEW}"
    )
