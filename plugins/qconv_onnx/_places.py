"""Where the graph uses a weight: it multiplies by it, convolves with it, or looks up rows of it.

Torch's exporter transposes a linear layer's weight, (out, in), before a MatMul; other exporters,
and GPT-2, have it (in, out); a Gemm takes either, and adds a bias.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import onnx_ir as ir

    from qconv.plugin import Arrangement


#: Operators that add embeddings up.
_SUMS = frozenset({"Add", "Sum"})

#: What may come between a head's product and the output.
_LAST = frozenset({"Add", "Cast", "LogSoftmax", "Reshape", "Sigmoid", "Softmax"})

#: How many of these in turn.
_NEAR = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _AtNodes:
    """What the graph does with a weight.

    nodes: what does it, to be replaced; the last one gives ``out``
    """

    X: ClassVar[int] = 0  # the input of the last node that ``x`` is

    nodes: tuple[ir.Node, ...]

    @property
    def x(self) -> ir.Value:
        """What comes to the weight, as the graph is now."""
        return _input(self.nodes[-1], self.X)

    @property
    def out(self) -> ir.Value:
        """What comes of it."""
        return self.nodes[-1].outputs[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Product(_AtNodes):
    """The graph multiplies ``x``, (..., in), by a weight: (..., out).

    arrangement: ``rows`` of a weight that is (out, in), ``transposed`` of one that is (in, out)
    """

    arrangement: Arrangement = "rows"

    @property
    def bias(self) -> ir.Value | None:
        """What is added to the product, as the graph is now; None: nothing."""
        node = self.nodes[-1]
        return node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup(_AtNodes):
    """The graph takes rows of a weight, (..., in), as of a table; ``x`` are their numbers."""

    X: ClassVar[int] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution(_AtNodes):
    """The graph convolves ``x`` with a weight, (out, in, sizes of the kernel)."""


Place = Product | Lookup | Convolution


def find_places(model: ir.Model) -> Mapping[str, tuple[Place, ...]]:
    """All places where a weight is used, by its name; of weights that have other uses, none.

    Nor of those that are inputs, too, which callers may give other values.
    """
    found: dict[str, tuple[Place, ...]] = {}
    for name, weight in model.graph.initializers.items():
        given = weight.is_graph_input() or weight.is_graph_output()
        if given or len(sizes_of(weight)) < 2:
            continue
        places = [_place(weight, use.node) for use in weight.uses()]
        known = [each for each in places if each is not None]
        alike = len({arrangement_of([each]) for each in known}) == 1
        if known and len(known) == len(places) and alike and _at_top(model, known):
            found[name] = tuple(known)
    return found


def sizes_of(weight: ir.Value) -> tuple[int, ...]:
    """The shape of an initializer; empty where it is not known."""
    shape = weight.shape
    return tuple(shape.numpy()) if shape is not None and shape.is_static() else ()


def arrangement_of(places: Sequence[Place]) -> Arrangement:
    """How a weight that is used so becomes (out, in)."""
    for place in places:
        if isinstance(place, Convolution):
            return "flat"
        if isinstance(place, Product):
            return place.arrangement
    return "rows"


def heads_of(found: Mapping[str, Sequence[Place]]) -> frozenset[str]:
    """Weights whose products are outputs, but for a bias and the like."""
    return frozenset(
        name
        for name, places in found.items()
        if any(isinstance(each, Product) and _gives_output(each.out) for each in places)
    )


def _gives_output(value: ir.Value) -> bool:
    """The value, or what a few operators make of it, is an output."""
    for _ in range(_NEAR):
        if value.is_graph_output():
            return True
        user = _only_user(value)
        if user is None or user.op_type not in _LAST:
            return False
        value = user.outputs[0]
    return False


def added_tables(
    found: Mapping[str, Sequence[Place]], embeddings: Collection[str]
) -> frozenset[str]:
    """Tables whose rows are added to rows of embeddings, as those of positions are, and no more.

    Other tables are often angles, which errors of 8 bits add up in.

    found: as :func:`find_places` gives it
    embeddings: tables that tokens choose the rows of
    """
    rows = {
        place.out
        for name in embeddings
        for place in found.get(name, ())
        if isinstance(place, Lookup)
    }
    return frozenset(
        name
        for name, places in found.items()
        if all(isinstance(each, Lookup) and _is_added(each.out, rows) for each in places)
    )


def _is_added(value: ir.Value, rows: set[ir.Value]) -> bool:
    """A value is used in a sum only, with rows of embeddings."""
    user = _only_user(value)
    if user is None or user.op_type not in _SUMS:
        return False
    return bool((_summed(user.outputs[0]) - {value}) & rows)


def _summed(value: ir.Value) -> set[ir.Value]:
    """What a value is the sum of, as far as a few sums go."""
    terms = {value}
    for _ in range(_NEAR):
        for each in list(terms):
            node = each.producer()
            if node is not None and node.op_type in _SUMS:
                terms.remove(each)
                terms.update(term for term in node.inputs if term is not None)
    return terms


def _at_top(model: ir.Model, places: Sequence[Place]) -> bool:
    """No place is in a graph within a node, whose names are not those of the main one."""
    return all(node.graph is model.graph for place in places for node in place.nodes)


def _place(weight: ir.Value, node: ir.Node) -> Place | None:
    dimensions = len(sizes_of(weight))
    if node.domain not in {"", "ai.onnx"} or not node.outputs:
        return None
    if node.op_type == "Conv" and dimensions > 2 and weight in node.inputs[1:2]:
        return Convolution(nodes=(node,))
    if dimensions != 2:
        return None
    if node.op_type == "Gather" and node.inputs[0] is weight and len(node.inputs) > 1:
        axis = node.attributes.get("axis")
        return Lookup(nodes=(node,)) if axis is None or axis.as_int() == 0 else None
    if not _turns(node):
        return _product((node,), weight, turned=False)
    product = _only_user(node.outputs[0])
    return None if product is None else _product((node, product), node.outputs[0], turned=True)


def _turns(node: ir.Node) -> bool:
    """The node swaps the dimensions of a matrix."""
    perm = node.attributes.get("perm")
    return node.op_type == "Transpose" and (perm is None or list(perm.as_ints()) == [1, 0])


def _product(nodes: tuple[ir.Node, ...], weight: ir.Value, *, turned: bool) -> Product | None:
    """The last node as a product by ``weight``, which may be the transposed one."""
    node = nodes[-1]
    if node.op_type not in {"MatMul", "Gemm"} or node.domain not in {"", "ai.onnx"}:
        return None
    left, right = (*node.inputs, None, None)[:2]
    if left is None or left is right or right is not weight:
        return None
    if left.shape is not None and len(left.shape) < 2:
        return None
    flipped = node.op_type == "Gemm" and _whole(node, "transB") == 1
    if node.op_type == "Gemm" and not _is_plain(node):
        return None
    return Product(nodes=nodes, arrangement="rows" if flipped != turned else "transposed")


def _is_plain(gemm: ir.Node) -> bool:
    """The Gemm is ``x W + bias``: its input is not transposed, and nothing is scaled."""
    factors = [gemm.attributes.get(name) for name in ("alpha", "beta")]
    scaled = any(factor is not None and factor.as_float() != 1 for factor in factors)
    return not scaled and _whole(gemm, "transA") == 0


def _whole(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return 0 if attribute is None else attribute.as_int()


def _only_user(value: ir.Value) -> ir.Node | None:
    users = list(value.uses())
    return users[0].node if len(users) == 1 and not value.is_graph_output() else None


def _input(node: ir.Node, number: int) -> ir.Value:
    value = node.inputs[number]
    if value is None:
        raise ValueError(f"{node.op_type} {node.name!r} lacks input {number}")
    return value
