"""Makes one product of the three before an encoder's attention: for few tokens, each costs alike.

Weights and scales stay apart in the file; what puts them side by side depends on nothing else, so
runtimes do it once, when they load the graph. For many tokens it costs a little: what comes of the
product is cut up again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from ._names import Names

#: Queries, keys and values.
_PARTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """An integer product, and what multiplies it by the scale of each token."""

    product: ir.Node
    scaled: ir.Node


def join_products(model: ir.Model, names: Names) -> None:
    """Join integer products of one input that go into one MultiHeadAttention; changes ``model``."""
    for node in list(model.graph):
        if node.op_type == "MultiHeadAttention":
            parts = [each for value in node.inputs[:_PARTS] if (each := _part(value)) is not None]
            if len(parts) == _PARTS and _alike(parts):
                _join(model.graph, names, parts)


def _part(value: ir.Value | None) -> _Part | None:
    """What makes a value, where that is an integer product of a stored weight."""
    scaled = _made_for_one(value, "Mul")
    product = None if scaled is None else _made_for_one(scaled.inputs[0], "MatMulIntegerToFloat")
    if scaled is None or product is None:
        return None
    weight = product.inputs[1]
    stored = weight is not None and weight.is_initializer()
    return _Part(product=product, scaled=scaled) if stored else None


def _made_for_one(value: ir.Value | None, operator: str) -> ir.Node | None:
    """The node of an operator that makes a value, which one other node takes, and nothing else."""
    if value is None or value.is_graph_output() or len(list(value.uses())) != 1:
        return None
    node = value.producer()
    return node if node is not None and node.op_type == operator else None


def _alike(parts: Sequence[_Part]) -> bool:
    """They take the same codes, on one step, and have as many columns each."""
    taken = set()
    for each in parts:
        codes, weight, step, _, middle = each.product.inputs
        columns = None if weight is None else str(weight.shape)
        taken.add((codes, columns, step, middle, each.scaled.inputs[1]))
    return len(taken) == 1


def _join(graph: ir.Graph, names: Names, parts: Sequence[_Part]) -> None:
    import onnx_ir as ir

    products = [each.product for each in parts]
    outputs = [each.scaled.outputs[0] for each in parts]
    stem = str(outputs[0].name)

    def node(operator: str, inputs: Sequence[ir.Value | None], what: str, **more: int) -> ir.Node:
        name = names.fresh(f"{stem}_{what}")
        domain = products[0].domain if operator == products[0].op_type else ""
        output = ir.Value(name=name)
        return ir.node(operator, inputs, more, domain=domain, outputs=[output], name=f"node_{name}")

    weights = node("Concat", [each.inputs[1] for each in products], "joined_weight", axis=1)
    scales = node("Concat", [each.inputs[3] for each in products], "joined_scale", axis=0)
    codes, _, step, _, middle = products[0].inputs
    inputs = [codes, weights.outputs[0], step, scales.outputs[0], middle]
    product = node(products[0].op_type, inputs, "joined_by_row")
    whole = node("Mul", [product.outputs[0], parts[0].scaled.inputs[1]], "joined")
    cut = ir.node(
        "Split",
        [whole.outputs[0]],
        {"axis": -1, "num_outputs": _PARTS},
        outputs=[ir.Value(name=names.fresh(f"{each.name}_part")) for each in outputs],
        name=f"node_{stem}_parts",
    )
    old_nodes = [*products, *(each.scaled for each in parts)]
    graph.insert_before(
        min(old_nodes, key=list(graph).index), [weights, scales, product, whole, cut]
    )
    for old, new in zip(outputs, cut.outputs, strict=True):
        ir.convenience.replace_all_uses_with(old, new)
        new.shape, new.type = old.shape, old.type
    graph.remove(old_nodes, safe=True)
