"""Takes nodes out of a graph that change nothing, or whose results nothing uses.

Torch's exporter writes ``x[:, :, :]`` as slices from the start to the end, and dropout as Identity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._constants import constant_of

if TYPE_CHECKING:
    import onnx_ir as ir


def remove_idle(graph: ir.Graph) -> None:
    """Take out Identity and slices of everything, but those that name an output."""
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
    if node.domain or node.op_type not in {"Identity", "Slice"}:
        return False
    if node.op_type == "Identity":
        return True
    steps = constant_of(node.inputs[4]) if len(node.inputs) > 4 else None
    if steps is None or set(steps.ravel().tolist()) != {1}:
        return False
    before, after = sizes_known(x), sizes_known(node.outputs[0])
    return before is not None and before == after


def sizes_known(value: ir.Value) -> tuple[int | str, ...] | None:
    """Every dimension: its size, or what a size that varies is called; None: one is not known."""
    if value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else size.value for size in value.shape]
    known = [size for size in sizes if size is not None]
    return tuple(known) if len(known) == len(sizes) else None
