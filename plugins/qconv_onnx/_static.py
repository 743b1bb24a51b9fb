"""What the inputs of weights are rounded with, as the graph says beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qconv.errors import UnreadableInput

from ._soundness import check_part

if TYPE_CHECKING:
    import onnx


def static_inputs(
    folder: Path,
    nodes: Iterable[onnx.NodeProto],
    stored: Mapping[str, onnx.TensorProto],
    weights: Mapping[str, str],
) -> dict[str, tuple[str, str]]:
    """Initializers of the scale and zero-point of weights' inputs, by the weight's name.

    nodes: of the graph
    stored: the initializers
    weights: names of weights by that of their codes

    Raises:
        UnreadableInput: an input is rounded with something else than the graph states.
    """
    made = {name: node for node in nodes for name in node.output}
    found = {}
    for product in made.values():
        if product.op_type != "MatMul":
            continue
        decoded, weight = (made.get(name) for name in product.input[:2])
        if decoded is None or weight is None or decoded.op_type != "DequantizeLinear":
            continue
        rounded = made.get(decoded.input[0])
        if rounded is None or rounded.op_type != "QuantizeLinear":
            continue
        name = weights.get(weight.input[0] if weight.input else "")
        if name is not None:
            found[name] = _parts(folder, name, rounded, decoded, stored)
    return found


def _parts(
    folder: Path,
    weight: str,
    rounded: onnx.NodeProto,
    decoded: onnx.NodeProto,
    stored: Mapping[str, onnx.TensorProto],
) -> tuple[str, str]:
    """The scale and zero-point that an input is rounded with and decoded with."""
    names = list(rounded.input[1:])
    if len(names) != 2 or names != list(decoded.input[1:]) or set(names) - stored.keys():
        raise UnreadableInput(
            f"{folder}: the input of {weight!r} is rounded with {', '.join(names)} and decoded "
            f"with {', '.join(decoded.input[1:])}, but must be with one stored scale and "
            "zero-point; write it again"
        )
    for name, kind in zip(names, ("FLOAT", "UINT8"), strict=True):
        check_part(folder, stored[name], (kind,), ())
    return names[0], names[1]
