"""Parses the header of a GGUF file that may be hostile.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Sizes of a tensor are stored
innermost first; here they are outermost first. Offsets count from the end of the header, padded to
the alignment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qconv.checkpoint._faults import MAX_SIZE, check_tensor_name, number_of_values, shown
from qconv.checkpoint._gguf_cursor import Cursor, HeaderBytes
from qconv.checkpoint._gguf_value import GgufValue, read_value
from qconv.checkpoint._stored import StoredTensor
from qconv.errors import UnreadableInput
from qconv.plugin import TensorInfo

if TYPE_CHECKING:
    from qconv.checkpoint._mapped import MappedFile

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_UINT32 = 4
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4

#: A key-value pair: key length, one letter, type, one byte.
_LEAST_PAIR = 8 + 1 + 4 + 1
#: A tensor: name length, one letter, number of dimensions, one size, type, offset.
_LEAST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8

_ANEW = "the file is damaged or hostile, get it anew from its publisher"


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What a GGUF header says, checked against the file.

    tensors: in the order of the file
    raw: the header's bytes, up to the tensor data
    """

    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, GgufValue]
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor as the header lists it; the offset counts from the start of the data."""

    info: TensorInfo
    offset: int
    block: int
    block_nbytes: int


def parse_gguf(file: MappedFile) -> GgufHeader:
    """Parse and check the header.

    Raises:
        UnreadableInput: the header or what it says of the data is unsound.
    """
    cursor = Cursor(file)
    _check_magic(cursor)
    n_tensors = cursor.count("number of tensors", _LEAST_TENSOR)
    n_pairs = cursor.count("number of metadata keys", _LEAST_PAIR)
    metadata = _metadata(cursor, n_pairs)
    alignment = _alignment(cursor, metadata)
    entries = _entries(cursor, n_tensors, alignment)
    data = -(-cursor.position // alignment) * alignment
    tensors = tuple(_place(file, data, entry) for entry in entries)
    _check_overlap(file, tensors)
    raw = file.buffer[: cursor.position]
    file.release(0, len(raw))
    return GgufHeader(tensors=tensors, metadata=metadata, raw=raw)


def gguf_metadata(header: bytes, name: str) -> dict[str, GgufValue]:
    """The metadata in the bytes of a header. name: of the file, for messages.

    Raises:
        UnreadableInput: it is not sound.
    """
    cursor = Cursor(HeaderBytes(path=Path(name), buffer=header))
    _check_magic(cursor)
    cursor.count("number of tensors", _LEAST_TENSOR)
    return _metadata(cursor, cursor.count("number of metadata keys", _LEAST_PAIR))


def _check_magic(cursor: Cursor) -> None:
    path = cursor.file.path
    magic = cursor.take(4, "magic number")
    if magic != _MAGIC:
        raise UnreadableInput(
            f"{path}: begins with {magic!r}, but a GGUF file begins with {_MAGIC!r}; "
            "check that it is a GGUF file"
        )
    version = cursor.u32("version")
    if version & 0xFFFF == 0:
        raise UnreadableInput(
            f"{path}: a big-endian GGUF file; convert it to little-endian "
            "with gguf-convert-endian from the gguf package"
        )
    if version not in _VERSIONS:
        raise UnreadableInput(
            f"{path}: GGUF version {version} is not supported, versions 2 and 3 are; "
            "convert the model anew with a current tool"
        )


def _metadata(cursor: Cursor, count: int) -> dict[str, GgufValue]:
    found: dict[str, GgufValue] = {}
    for _ in range(count):
        key = cursor.text("metadata key")
        if key in found:
            raise cursor.fault(f"key {shown(key)} appears twice")
        if not key or not key.isprintable():
            raise cursor.fault(f"key {shown(key)} must be printable text")
        found[key] = read_value(cursor, key)
    return found


def _alignment(cursor: Cursor, metadata: Mapping[str, GgufValue]) -> int:
    stored = metadata.get("general.alignment")
    if stored is None:
        return _DEFAULT_ALIGNMENT
    value = stored.value
    if stored.type != _UINT32 or not isinstance(value, int) or value.bit_count() != 1:
        raise cursor.fault(
            f"general.alignment must be a power of two stored as uint32, not {shown(value)}"
        )
    return value


def _entries(cursor: Cursor, count: int, alignment: int) -> list[_Entry]:
    found: dict[str, _Entry] = {}
    for _ in range(count):
        entry = _entry(cursor)
        name = entry.info.name
        if name in found:
            raise cursor.fault(f"tensor {shown(name)} appears twice")
        if entry.offset % alignment:
            raise cursor.fault(
                f"tensor {shown(name)}: offset {entry.offset} is not a multiple of the alignment "
                f"{alignment}"
            )
        found[name] = entry
    return list(found.values())


def _entry(cursor: Cursor) -> _Entry:
    name = cursor.text("tensor name")
    check_tensor_name(cursor.file.path, name)
    what = f"tensor {shown(name)}"
    dimensions = cursor.u32(f"{what}: number of dimensions")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise cursor.fault(f"{what}: has {dimensions} dimensions, the format allows 1 to 4")
    inner_first = [cursor.u64(f"{what}: size") for _ in range(dimensions)]
    if not all(0 < size < MAX_SIZE for size in inner_first):
        raise cursor.fault(f"{what}: sizes {inner_first} must be from 1 to 2^63 - 1")
    shape = tuple(reversed(inner_first))
    total = number_of_values(cursor.file.path, name, shape)
    dtype, block, block_nbytes = _type(cursor, what)
    if shape[-1] % block:
        raise cursor.fault(
            f"{what}: rows of {shape[-1]} do not divide into {dtype} blocks of {block}"
        )
    nbytes = total // block * block_nbytes
    offset = cursor.u64(f"{what}: offset")
    info = TensorInfo(name=name, shape=shape, dtype=dtype, nbytes=nbytes)
    return _Entry(info, offset, block, block_nbytes)


def _type(cursor: Cursor, what: str) -> tuple[str, int, int]:
    import gguf

    number = cursor.u32(f"{what}: type")
    try:
        kind = gguf.GGMLQuantizationType(number)
        block, block_nbytes = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError) as error:
        raise cursor.fault(
            f"{what}: type {number} is unknown to the gguf library; a newer version may know it"
        ) from error
    return kind.name, block, block_nbytes


def _place(file: MappedFile, data: int, entry: _Entry) -> StoredTensor:
    info = entry.info
    if data + entry.offset + info.nbytes > file.size:
        raise UnreadableInput(
            f"{file.path}: tensor {info.name!r}: {info.nbytes} bytes at offset {entry.offset} go "
            f"beyond the file's {file.size} bytes; the download may be incomplete, get it anew"
        )
    return StoredTensor(
        info=info,
        file=file,
        offset=data + entry.offset,
        block=entry.block,
        block_nbytes=entry.block_nbytes,
    )


def _check_overlap(file: MappedFile, tensors: tuple[StoredTensor, ...]) -> None:
    end, before = 0, ""
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise UnreadableInput(
                f"{file.path}: tensor {tensor.info.name!r} overlaps {before!r}; {_ANEW}"
            )
        end, before = tensor.offset + tensor.info.nbytes, tensor.info.name
