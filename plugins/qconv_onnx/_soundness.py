"""What a graph must be like to be read back, since it may come from a stranger; or it is refused.

Checked when the graph is opened, so that decoding finds what it expects.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from qconv.errors import UnreadableInput

if TYPE_CHECKING:
    import onnx

#: The inputs that an operator has at least, of those that are looked at.
_INPUTS = {
    "DequantizeLinear": 2,
    "Gather": 2,
    "GatherBlockQuantized": 3,
    "MatMulIntegerToFloat": 4,
    "MatMulNBits": 3,
    "Reshape": 2,
    "Transpose": 1,
}

#: Bits of codes in blocks.
_BITS = frozenset({4, 8})

#: What is said of a tensor in another file.
_KEYS = frozenset({"checksum", "length", "location", "offset"})

_AGAIN = "write the artifact again"


def check_node(folder: Path, node: onnx.NodeProto) -> None:
    """A node must have an output, and the inputs that its operator takes.

    Raises:
        UnreadableInput: it has not, or names in it are no text.
    """
    least = _INPUTS.get(node.op_type, 0)
    # protobuf gives bytes for text that is not UTF-8
    names = (node.name, *node.input, *node.output, *(each.name for each in node.attribute))
    if not all(isinstance(each, str) for each in names):
        raise UnreadableInput(f"{folder}: a name in node {node.name!r} is not UTF-8; {_AGAIN}")
    if not node.output or len(node.input) < least or not all(node.input[:least]):
        raise UnreadableInput(
            f"{folder}: node {node.name!r} ({node.op_type}) has {len(node.input)} inputs and "
            f"{len(node.output)} outputs, but takes {least} or more and gives 1 or more; {_AGAIN}"
        )


def check_tensor(folder: Path, tensor: onnx.TensorProto) -> None:
    """A stored tensor must have a name and a shape; external data lie in a file of the folder.

    Raises:
        UnreadableInput: it has none, or its data lie elsewhere or beyond the file's end.
    """
    if not isinstance(tensor.name, str) or any(size < 0 for size in tensor.dims):
        raise UnreadableInput(
            f"{folder}: tensor {tensor.name!r}: its name is no text, or its shape "
            f"{tuple(tensor.dims)} is none; {_AGAIN}"
        )
    entry = external(tensor)
    if entry:
        _check_place(folder, tensor.name, entry)


def _check_place(folder: Path, name: str, entry: Mapping[str, str]) -> None:
    for key in entry.keys() - _KEYS:
        raise UnreadableInput(
            f"{folder}: where tensor {name!r} lies is said by {key!r}, which artifacts do not "
            f"have; {_AGAIN}"
        )
    location = PurePosixPath(str(entry.get("location", "")))
    if len(location.parts) != 1 or location.name in {"", ".", ".."} or "\\" in str(location):
        raise UnreadableInput(
            f"{folder}: tensor {name!r} lies in {str(location)!r}, but weights must lie beside "
            f"the graph; {_AGAIN}"
        )
    file = folder / location.name
    try:
        found = file.resolve()
        held = found.stat().st_size if found.is_file() else 0
    except (OSError, RuntimeError, ValueError):  # no file can be called so, or links go in a loop
        found, held = file, 0
    if found.parent != folder.resolve():
        raise UnreadableInput(
            f"{file}: links to {found}, outside its folder; put the file itself there if you trust "
            "it"
        )
    start, size = _whole(entry.get("offset", "0")), _whole(entry.get("length", ""))
    if start is None or size is None or start + size > held:
        raise UnreadableInput(
            f"{file}: tensor {name!r} is to lie at byte {entry.get('offset', '0')}, "
            f"{entry.get('length')} bytes long, but the file holds {held}; write it again"
        )


def check_blocks(folder: Path, node: onnx.NodeProto, bits: int, block: int) -> None:
    """Codes must have 4 or 8 bits, and a scale one column or more.

    Raises:
        UnreadableInput: they have not.
    """
    if bits not in _BITS or block < 1:
        raise UnreadableInput(
            f"{folder}: node {node.name!r} ({node.op_type}) says bits={bits} and "
            f"block_size={block}, but codes have 4 or 8 bits, and blocks 1 column or more; {_AGAIN}"
        )


def check_part(
    folder: Path, tensor: onnx.TensorProto, types: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    """A part of a quantized weight must be of one of these types, and of this shape.

    Raises:
        UnreadableInput: it is not.
    """
    import onnx

    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    kind = names.get(tensor.data_type, "unknown")
    if kind not in types or tuple(tensor.dims) != shape:
        raise UnreadableInput(
            f"{folder}: {tensor.name!r} of type {kind} is {tuple(tensor.dims)}, but must be "
            f"{' or '.join(types)} of {shape}; {_AGAIN}"
        )


def external(tensor: onnx.TensorProto) -> dict[str, str]:
    """Where external data lies; empty when the data is in the graph."""
    return {each.key: each.value for each in tensor.external_data}


def _whole(text: str) -> int | None:
    digits = isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 19
    return int(text) if digits else None
