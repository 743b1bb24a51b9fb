"""Where the graph uses a weight: it multiplies by it, or looks up rows of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """The graph multiplies by a weight, (out, in), transposed.

    nodes: what does it, to be replaced; the last one gives ``out``
    """

    nodes: tuple[ir.Node, ...]

    @property
    def x(self) -> ir.Value:
        """What is multiplied, (..., in), as the graph is now."""
        return _input(self.nodes[-1], 0)

    @property
    def out(self) -> ir.Value:
        """The product, (..., out)."""
        return self.nodes[-1].outputs[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """The graph takes rows of a weight, as of a table.

    nodes: the one that does it, to be replaced
    """

    nodes: tuple[ir.Node, ...]

    @property
    def x(self) -> ir.Value:
        """Numbers of the rows, as the graph is now."""
        return _input(self.nodes[-1], 1)

    @property
    def out(self) -> ir.Value:
        """The rows, (..., in)."""
        return self.nodes[-1].outputs[0]


Place = Product | Lookup


def find_places(model: ir.Model) -> Mapping[str, tuple[Place, ...]]:
    """All places where a weight is used, by its name; of weights that have other uses, none."""
    found: dict[str, tuple[Place, ...]] = {}
    for name, weight in model.graph.initializers.items():
        if weight.shape is None or len(weight.shape) != 2 or weight.is_graph_output():
            continue
        places = [_place(weight, use.node) for use in weight.uses()]
        known = [each for each in places if each is not None]
        if known and len(known) == len(places):
            found[name] = tuple(known)
    return found


def _place(weight: ir.Value, node: ir.Node) -> Place | None:
    if node.op_type == "Transpose":
        product = _only_user(node.outputs[0])
        if product is None or product.op_type != "MatMul":
            return None
        left, right = product.inputs
        return Product(nodes=(node, product)) if left is not right is node.outputs[0] else None
    if node.op_type == "Gather" and node.inputs[0] is weight:
        axis = node.attributes.get("axis")
        return Lookup(nodes=(node,)) if axis is None or axis.as_int() == 0 else None
    return None


def _only_user(value: ir.Value) -> ir.Node | None:
    users = list(value.uses())
    return users[0].node if len(users) == 1 and not value.is_graph_output() else None


def _input(node: ir.Node, number: int) -> ir.Value:
    value = node.inputs[number]
    if value is None:
        raise ValueError(f"{node.op_type} {node.name!r} lacks input {number}")
    return value
