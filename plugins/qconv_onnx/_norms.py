"""Writes norms as onnxruntime computes them fastest.

RMS norms: as it knows them, so that it computes each with one operator.

Torch has ``x * rsqrt(mean(x^2) + eps)``, which is exported as a product with a reciprocal.
onnxruntime fuses ``x / sqrt(mean(x^2) + eps) * weight`` to SimplifiedLayerNormalization:
https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/optimizer/layer_norm_fusion.cc
Other norms: it makes an Add and the LayerNormalization after it one SkipLayerNormalization, which
on the CPU goes number by number, and takes several times as long as both (onnxruntime 1.32: from 16
rows up an eighth of all the time that MiniLM takes in 8 bits). A Sum of two it leaves alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def divide_by_roots(model: ir.Model) -> None:
    """Divide by square roots where the graph multiplies by their reciprocals; changes ``model``."""
    for node in list(model.graph):
        if node.op_type == "Mul" and not node.domain:
            _divide(model.graph, node)


def keep_norms_apart(model: ir.Model) -> None:
    """Sum instead of adding before layer norms, for the CPU; changes ``model``."""
    for node in list(model.graph):
        before = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if node.op_type == "LayerNormalization" and before is not None and before.op_type == "Add":
            before.op_type = "Sum"


def _divide(graph: ir.Graph, product: ir.Node) -> None:
    import onnx_ir as ir

    x, factor = product.inputs
    if _root_below(x) is not None:
        x, factor = factor, x
    root = _root_below(factor)
    if x is None or factor is None or root is None:
        return
    reciprocal, old = factor.producer(), product.outputs[0]
    quotient = ir.node("Div", [x, root], outputs=[ir.Value(name=old.name)], name=product.name)
    new = quotient.outputs[0]
    new.shape, new.type = old.shape, old.type
    graph.insert_before(product, quotient)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove([product] if reciprocal is None else [product, reciprocal], safe=True)


def _root_below(value: ir.Value | None) -> ir.Value | None:
    """The square root that ``value`` is the reciprocal of, and of use for nothing else."""
    reciprocal = value.producer() if value is not None else None
    if value is None or reciprocal is None or reciprocal.op_type != "Reciprocal":
        return None
    root = reciprocal.inputs[0]
    above = root.producer() if root is not None else None
    is_root = above is not None and above.op_type == "Sqrt"
    return root if is_root and len(list(value.uses())) == 1 else None
