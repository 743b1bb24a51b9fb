"""Finds the weights of an ONNX graph, which may be hostile, without reading them.

The format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, and for weights in other files
https://github.com/onnx/onnx/blob/main/docs/ExternalData.md. Field numbers are those of that file.

Peak memory: the graph without its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING

from qconv.checkpoint._faults import (
    MAX_HEADER_NBYTES,
    MAX_SIZE,
    check_tensor_name,
    number_of_values,
    shown,
)
from qconv.checkpoint._protobuf import Message, encoded_bytes, encoded_value
from qconv.checkpoint._stored import PLAIN_TYPES, StoredTensor
from qconv.errors import UnreadableInput
from qconv.plugin import TensorInfo

if TYPE_CHECKING:
    from qconv.checkpoint._mapped import MappedFile
    from qconv.checkpoint._protobuf import Field

    External = Callable[[str], MappedFile]

#: Where the tensors of ``OnnxHeader.graph`` are said to lie; no such file exists.
NOWHERE = "weights"

_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER = 7, 1, 5
_NODE_OUTPUT, _NODE_TYPE, _NODE_ATTRIBUTE, _ATTRIBUTE_TENSOR = 2, 4, 5, 5
_DIMS, _TYPE, _SEGMENT, _FLOATS, _NAME, _RAW, _DOUBLES, _EXTERNAL, _LOCATION = (
    *(1, 2, 3, 4, 8, 9, 10, 13),
    14,
)

#: TensorProto.DataType, by the name of the plain type.
_TYPES = {
    1: "F32",
    2: "U8",
    3: "I8",
    4: "U16",
    5: "I16",
    6: "I32",
    7: "I64",
    9: "BOOL",
    10: "F16",
    11: "F64",
    12: "U32",
    13: "U64",
    16: "BF16",
    17: "F8_E4M3",
    19: "F8_E5M2",
}
_FLOAT_TYPES = frozenset({"F32", "F16", "F64", "BF16"})

_MAX_DIMENSIONS = 64

#: What is read of a TensorProto, and how many of these fields one may have. Those of the largest
#: shape, and of places in other files, are fewer than a hundred.
_NEEDED = frozenset({_DIMS, _TYPE, _SEGMENT, _FLOATS, _NAME, _RAW, _DOUBLES, _EXTERNAL, _LOCATION})
_MAX_FIELDS = 4096

#: Fields that hold packed values just as they lie in memory, and the type they are of.
_IN_PLACE = {_FLOATS: "F32", _DOUBLES: "F64"}

#: Bytes of a node that may be a Constant that holds a weight.
_LEAST_CONSTANT = 512

#: What is smaller stays in the graph, as operators look at such values when a graph is loaded:
#: vectors of floats with fewer values, and anything else of fewer bytes.
_FEW_FLOATS, _FEW_NBYTES = 64, 1 << 16

_ANEW = "the file is damaged or hostile, get it anew from its publisher"
_SAVE_ANEW = "if you trust the model, save it anew with onnx.save_model(..., location='NAME')"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxHeader:
    """An ONNX file, checked against its end and the ends of the files beside it.

    tensors: initializers, and what Constant nodes hold, in the order of the graph; but small ones,
        which stay in it
    graph: the serialized ModelProto, in which these lie in a file :data:`NOWHERE`
    """

    tensors: tuple[StoredTensor, ...]
    graph: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Initializer:
    """A tensor of the graph; ``place`` is where its values lie in the file as they are.

    external: where its values lie in another file, by key
    """

    name: str
    dtype: str | None
    shape: tuple[int, ...]
    place: Field | None
    external: dict[str, str] | None


def parse_onnx(file: MappedFile, external: External) -> OnnxHeader:
    """Parse and check the graph's initializers; of all else, only that it is a message.

    external: opens a file beside the graph, by its name

    Raises:
        UnreadableInput: the file or what it says of its weights is unsound.
    """
    found: dict[str, StoredTensor] = {}
    kept = _Kept(file)
    whole = Message(file, 0, file.size, "the model")
    graphs = 0
    for each in whole:
        if each.number != _MODEL_GRAPH:
            kept.copy(each)
            continue
        graphs += 1
        if graphs > 1:
            raise whole.fault(each.begin, "a second graph")
        inner = _Kept(file)
        _graph(whole.message(each, "the graph"), inner, found, external)
        kept.add(encoded_bytes(_MODEL_GRAPH, bytes(inner.data)))
    if not graphs:
        raise UnreadableInput(f"{file.path}: holds no graph; check that it is an ONNX file")
    file.release(0, file.size)
    _refuse_shared(file, found.values())
    return OnnxHeader(tensors=tuple(found.values()), graph=bytes(kept.data))


def _refuse_shared(file: MappedFile, tensors: Iterable[StoredTensor]) -> None:
    """Refuse weights that lie over one another: a small file would take any space when written."""
    placed = sorted(
        (each for each in tensors if each.info.nbytes),
        key=lambda each: (str(each.file.path), each.offset),
    )
    for one, other in pairwise(placed):
        if one.file is other.file and one.offset + one.info.nbytes > other.offset:
            raise UnreadableInput(
                f"{file.path}: tensors {shown(one.info.name)} and {shown(other.info.name)} share "
                f"bytes of {one.file.path.name!r}; {_SAVE_ANEW}"
            )


class _Kept:
    """Bytes of the graph that are kept, and their number, which has a limit."""

    def __init__(self, file: MappedFile) -> None:
        self.data = bytearray()
        self._file = file
        self._nbytes = 0

    def copy(self, each: Field) -> None:
        """Keep a field as it is."""
        self._count(each.stop - each.begin)
        self.data += self._file.buffer[each.begin : each.stop]

    def add(self, data: bytes) -> None:
        """Keep these bytes."""
        self._count(len(data))
        self.data += data

    def _count(self, nbytes: int) -> None:
        self._nbytes += nbytes
        if self._nbytes > MAX_HEADER_NBYTES:
            raise UnreadableInput(
                f"{self._file.path}: besides its weights, the graph takes more than "
                f"{MAX_HEADER_NBYTES} bytes; make constants of graphs within it initializers, for "
                "example with onnxruntime's optimizer"
            )


def _graph(graph: Message, kept: _Kept, found: dict[str, StoredTensor], external: External) -> None:
    names: set[str] = set()
    for each in graph:
        holder = _holder(graph, each)
        if holder is None:
            kept.copy(each)
            continue
        tensor = _initializer(holder)
        if tensor.name in names:
            raise graph.fault(each.begin, f"initializer {shown(tensor.name)} appears twice")
        names.add(tensor.name)
        stored = _stored(graph.file, tensor, external)
        if stored is None or (_is_small(stored.info) and each.number == _GRAPH_NODE):
            kept.copy(each)
        elif _is_small(stored.info):
            kept.add(encoded_bytes(_GRAPH_INITIALIZER, _with_values(holder, stored)))
        else:
            found[tensor.name] = stored
            kept.add(encoded_bytes(_GRAPH_INITIALIZER, _without_values(holder, stored)))


@dataclass(frozen=True, slots=True)
class _Holder:
    """A TensorProto: an initializer's, or that of a Constant node, which is called ``name``."""

    message: Message
    name: str | None = None


def _holder(graph: Message, each: Field) -> _Holder | None:
    """What a field of the graph holds of a tensor; None: nothing that might be a weight."""
    if each.number == _GRAPH_INITIALIZER:
        return _Holder(graph.message(each, "an initializer"))
    if each.number != _GRAPH_NODE or each.stop - each.start < _LEAST_CONSTANT:
        return None
    node = graph.message(each, "a node")
    kinds, outputs = _first_two(node, _NODE_TYPE), _first_two(node, _NODE_OUTPUT)
    if [node.take(kind, "an operator") for kind in kinds] != [b"Constant"] or len(outputs) != 1:
        return None
    for attribute in node:
        if attribute.number != _NODE_ATTRIBUTE:
            continue
        inside = node.message(attribute, "an attribute")
        for inner in inside:
            if inner.number == _ATTRIBUTE_TENSOR:
                name = node.text(outputs[0], "an output")
                return _Holder(inside.message(inner, "a constant"), name)
    return None


def _first_two(message: Message, number: int) -> list[Field]:
    """Of the fields with a number, which should be one."""
    return list(islice((each for each in message if each.number == number), 2))


def _fields_of(tensor: Message) -> dict[int, list[Field]]:
    """What is needed to know of a TensorProto, by number.

    Raises:
        UnreadableInput: it says more than any tensor does, so that it would only take memory.
    """
    fields: dict[int, list[Field]] = {}
    for count, each in enumerate(each for each in tensor if each.number in _NEEDED):
        if count >= _MAX_FIELDS:
            raise tensor.fault(each.begin, f"an initializer: more than {_MAX_FIELDS} fields")
        fields.setdefault(each.number, []).append(each)
    return fields


def _initializer(holder: _Holder) -> _Initializer:
    message = holder.message
    fields = _fields_of(message)
    name = holder.name
    if name is None:
        name = "".join(message.text(each, "its name") for each in fields.get(_NAME, [])[-1:])
    check_tensor_name(message.file.path, name)
    what = f"initializer {shown(name)}"
    places = [each for number in (_RAW, *_IN_PLACE) for each in fields.get(number, [])]
    if _SEGMENT in fields or (len(places) > 1 and all(each.is_bytes for each in places)):
        begin = (fields.get(_SEGMENT) or places)[0].begin
        raise message.fault(begin, f"{what}: its values are in more than one piece")
    numbers = [each.value for each in fields.get(_TYPE, [])]
    elsewhere = [each.value for each in fields.get(_LOCATION, [])][-1:] == [1]
    entries = [message.message(each, what) for each in fields.get(_EXTERNAL, [])]
    return _Initializer(
        name=name,
        dtype=_TYPES.get((numbers or [0])[-1] or 0),
        shape=_shape(message, what, fields.get(_DIMS, [])),
        place=places[0] if len(places) == 1 and places[0].is_bytes else None,
        external=dict(_entry(entry) for entry in entries) if elsewhere else None,
    )


def _shape(message: Message, what: str, fields: list[Field]) -> tuple[int, ...]:
    sizes = chain.from_iterable(message.numbers(each, what) for each in fields)
    dims = list(islice(sizes, _MAX_DIMENSIONS + 1))
    if len(dims) > _MAX_DIMENSIONS:
        problem = f"{what}: a shape of more than {_MAX_DIMENSIONS} dimensions"
        raise message.fault(fields[0].begin, problem)
    if any(size >= MAX_SIZE for size in dims):
        raise message.fault(fields[0].begin, f"{what}: shape {shown(dims)} is none")
    return tuple(dims)


def _entry(message: Message) -> tuple[str, str]:
    found = {
        each.number: message.text(each, "an entry of external data")
        for each in message
        if each.number in {1, 2}
    }
    return found.get(1, ""), found.get(2, "")


def _stored(file: MappedFile, tensor: _Initializer, external: External) -> StoredTensor | None:
    """Where an initializer's values lie; None for one that must stay in the graph as it is.

    Raises:
        UnreadableInput: they lie outside of their file, or are more or fewer than its shape says.
    """
    if tensor.external is not None:
        return _outside(file, tensor, external)
    place, dtype = tensor.place, tensor.dtype
    if place is None or dtype is None or _IN_PLACE.get(place.number, dtype) != dtype:
        return None
    nbytes = number_of_values(file.path, tensor.name, tensor.shape) * PLAIN_TYPES[dtype][0]
    if nbytes != place.stop - place.start:
        raise UnreadableInput(
            f"{file.path}: tensor {tensor.name!r}: shape {shown(tensor.shape)} of {dtype} does not "
            f"fill its {place.stop - place.start} bytes exactly; {_ANEW}"
        )
    return _placed(file, tensor, dtype, place.start, nbytes)


def _is_small(info: TensorInfo) -> bool:
    if info.dtype in _FLOAT_TYPES and info.nbytes:
        return len(info.shape) < 2 and info.numel < _FEW_FLOATS
    return info.nbytes < _FEW_NBYTES


def _outside(file: MappedFile, tensor: _Initializer, external: External) -> StoredTensor:
    """Where the values lie in a file beside the graph."""
    what, said = f"{file.path}: tensor {tensor.name!r}", tensor.external or {}
    if tensor.dtype is None:
        raise UnreadableInput(
            f"{what} lies in another file in a type that qconv does not read: the model is "
            "quantized already, or of complex numbers; use the float model"
        )
    location = said.get("location", "").removeprefix("./")
    if not location or set(location) & set("/\\:") or location in {".", ".."}:
        raise UnreadableInput(
            f"{what} lies in {shown(location)}, but weights must lie in a file beside the graph; "
            + _SAVE_ANEW
        )
    offset, length = (_whole(what, said, key) for key in ("offset", "length"))
    nbytes = number_of_values(file.path, tensor.name, tensor.shape)
    nbytes *= PLAIN_TYPES[tensor.dtype][0]
    if length not in {None, nbytes}:
        raise UnreadableInput(
            f"{what}: shape {shown(tensor.shape)} of {tensor.dtype} takes {nbytes} bytes, not the "
            f"{length} it is said to have; {_ANEW}"
        )
    beside, start = external(location), offset or 0
    if start + nbytes > beside.size:
        raise UnreadableInput(
            f"{what}: {nbytes} bytes at offset {start} go beyond the {beside.size} bytes of "
            f"{location!r}; the download may be incomplete, get both files anew"
        )
    return _placed(beside, tensor, tensor.dtype, start, nbytes)


def _whole(what: str, said: dict[str, str], key: str) -> int | None:
    text = said.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise UnreadableInput(
            f"{what}: {key} {shown(text)} of its external data must be a whole number; {_ANEW}"
        )
    return int(text)


def _placed(
    file: MappedFile, tensor: _Initializer, dtype: str, offset: int, nbytes: int
) -> StoredTensor:
    info = TensorInfo(name=tensor.name, shape=tensor.shape, dtype=dtype, nbytes=nbytes)
    width = PLAIN_TYPES[dtype][0]
    return StoredTensor(info=info, file=file, offset=offset, block=1, block_nbytes=width)


def _without_values(holder: _Holder, stored: StoredTensor) -> bytes:
    """An initializer that lies :data:`NOWHERE`: name, type and shape as they are."""
    location = encoded_bytes(1, b"location") + encoded_bytes(2, NOWHERE.encode())
    external = encoded_bytes(_EXTERNAL, location) + encoded_value(_LOCATION, 1)
    return _facts(holder, stored) + external


def _with_values(holder: _Holder, stored: StoredTensor) -> bytes:
    """An initializer that lies in the graph."""
    raw = stored.copy(0, stored.rows * stored.columns).numpy().tobytes()
    return _facts(holder, stored) + encoded_bytes(_RAW, raw)


def _facts(holder: _Holder, stored: StoredTensor) -> bytes:
    kept = [
        holder.message.file.buffer[item.begin : item.stop]
        for item in holder.message
        if item.number in {_DIMS, _TYPE}
    ]
    return b"".join([*kept, encoded_bytes(_NAME, stored.info.name.encode())])
