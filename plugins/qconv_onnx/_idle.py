"""Takes nodes out of a graph that change nothing, or whose results nothing uses.

Torch's exporter writes ``x[:, :, :]`` as slices from the start to the end, dropout as Identity, and
a tensor that is to lie in one piece as a Reshape to the shape that it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._constants import constant_of

if TYPE_CHECKING:
    import onnx_ir as ir


def remove_idle(graph: ir.Graph) -> None:
    """Take out Identity, slices of everything and the like, but those that name an output."""
    import onnx_ir as ir

    for node in list(graph):
        x = node.inputs[0] if node.inputs else None
        if x is None or not _is_idle(node, x) or node.outputs[0].is_graph_output():
            continue
        ir.convenience.replace_all_uses_with(node.outputs[0], x)
        graph.remove(node, safe=True)
    remove_unused(graph)


def remove_unused(graph: ir.Graph) -> None:
    """Take out nodes whose results nothing uses, and then those that only they used."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)


def _is_idle(node: ir.Node, x: ir.Value) -> bool:
    if node.domain:
        return False
    before, after = sizes_known(x), sizes_known(node.outputs[0])
    kept = before is not None and before == after
    if node.op_type == "Slice":
        steps = constant_of(node.inputs[4]) if len(node.inputs) > 4 else None
        return kept and steps is not None and set(steps.ravel().tolist()) == {1}
    return node.op_type == "Identity" or (node.op_type == "Reshape" and kept)


def sizes_known(value: ir.Value) -> tuple[int | str, ...] | None:
    """Every dimension: its size, or what a size that varies is called; None: one is not known."""
    if value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else size.value for size in value.shape]
    known = [size for size in sizes if size is not None]
    return tuple(known) if len(known) == len(sizes) else None
