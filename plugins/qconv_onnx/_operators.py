"""How the graph computes with quantized weights: each MatMul is replaced by what its format says.

nbits: MatMulNBits (com.microsoft), which onnxruntime computes with on CPU and CUDA
blocked: DequantizeLinear by blocks before the MatMul, of the ONNX standard since opset 21
integer: inputs rounded to 8 bits by token, then MatMulInteger. The input's codes are shifted to
uint8 with zero-point 128, as onnxruntime's fast integer kernels want them; the values stay those
of a symmetric grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

    from ._options import Scheme

_MICROSOFT = "com.microsoft"

#: As ``ActivationGrid`` has it: no scale of an input is below the smallest normal float32.
_SMALLEST = 2.0**-126


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A place where the graph multiplies by a weight, (out, in), transposed.

    nodes: the Transpose and the MatMul, to be replaced
    """

    weight: ir.Value
    nodes: tuple[ir.Node, ir.Node]


def find_linears(model: ir.Model) -> Mapping[str, Linear]:
    """The weights that the graph only multiplies by, once, by name."""
    found: dict[str, Linear] = {}
    for name, weight in model.graph.initializers.items():
        transposed = _only_user(weight, "Transpose")
        if transposed is None or weight.shape is None or len(weight.shape) != 2:
            continue
        product = _only_user(transposed.outputs[0], "MatMul")
        if product is not None and product.inputs[1] is transposed.outputs[0]:
            found[name] = Linear(weight=weight, nodes=(transposed, product))
    return found


def _only_user(value: ir.Value, operator: str) -> ir.Node | None:
    users = list(value.uses())
    if len(users) != 1 or users[0].node.op_type != operator or value.is_graph_output():
        return None
    return users[0].node


@dataclass(frozen=True, slots=True)
class Rewriter:
    """Replaces MatMuls in a graph.

    parts: the initializers of each quantized weight, in order, by its name
    shapes: (out, in) of each
    """

    model: ir.Model
    scheme: Scheme
    parts: Mapping[str, list[ir.Value]]
    shapes: Mapping[str, tuple[int, int]]
    _inputs: dict[ir.Value, tuple[ir.Value, ir.Value]] = field(default_factory=dict)

    def replace(self, name: str, linear: Linear) -> None:
        """Compute with the parts of a weight instead of the weight."""
        import onnx_ir as ir

        transposed, product = linear.nodes
        x, old = product.inputs[0], product.outputs[0]
        if x is None:
            raise ValueError(f"MatMul {product.name!r} has no input")
        made = {"nbits": self._nbits, "blocked": self._blocked, "integer": self._integer}
        nodes = made[self.scheme.operator or "nbits"](name, x)
        graph = self.model.graph
        graph.insert_before(product, nodes)
        new = nodes[-1].outputs[0]
        new.shape, new.type = old.shape, old.type
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove([product, transposed], safe=True)
        graph.initializers.pop(name)
        new.name = old.name

    def _nbits(self, name: str, x: ir.Value) -> list[ir.Node]:
        self.model.graph.opset_imports[_MICROSOFT] = 1
        rows, columns = self.shapes[name]
        attributes = {
            "K": columns,
            "N": rows,
            "bits": self.scheme.bits,
            "block_size": self.scheme.group_size,
            "accuracy_level": self.scheme.accuracy_level,
        }
        inputs = [x, *self.parts[name]]
        return [_node("MatMulNBits", inputs, f"{name}_product", attributes, domain=_MICROSOFT)]

    def _blocked(self, name: str, x: ir.Value) -> list[ir.Node]:
        attributes = {"axis": 0, "block_size": self.scheme.group_size}
        decoded = _node("DequantizeLinear", self.parts[name], f"{name}_decoded", attributes)
        return [decoded, _node("MatMul", [x, decoded.outputs[0]], f"{name}_product")]

    def _integer(self, name: str, x: ir.Value) -> list[ir.Node]:
        import onnx_ir as ir

        nodes: list[ir.Node] = []
        if x not in self._inputs:  # siblings share it
            self._inputs[x] = self._rounded(x, nodes)
        codes, scale = self._inputs[x]
        weight, weight_scale = self.parts[name]
        middle = self._constant("qconv_zero_point_128", 128, ir.DataType.UINT8)
        product = _node("MatMulInteger", [codes, weight, middle], f"{name}_integers")
        floats = _node(
            "Cast", [product.outputs[0]], f"{name}_floats", {"to": ir.DataType.FLOAT.value}
        )
        by_token = _node("Mul", [floats.outputs[0], scale], f"{name}_by_token")
        by_row = _node("Mul", [by_token.outputs[0], weight_scale], f"{name}_product")
        return [*nodes, product, floats, by_token, by_row]

    def _rounded(self, x: ir.Value, nodes: list[ir.Node]) -> tuple[ir.Value, ir.Value]:
        """Codes and scales of an input, by token; the nodes that make them are appended."""
        import onnx_ir as ir

        def add(operator: str, inputs: list[Any], what: str, **attributes: int) -> ir.Value:
            nodes.append(_node(operator, inputs, f"{x.name}_{what}", attributes))
            return nodes[-1].outputs[0]

        number = ir.DataType.FLOAT
        last = self._constant("qconv_last_axis", [-1], ir.DataType.INT64)
        magnitude = add("ReduceMax", [add("Abs", [x], "abs"), last], "abs_max", keepdims=1)
        steps = add("Div", [magnitude, self._constant("qconv_127", 127.0, number)], "step")
        smallest = self._constant("qconv_smallest", _SMALLEST, number)
        scale = add("Max", [steps, smallest], "scale")
        rounded = add("Round", [add("Div", [x, scale], "steps")], "rounded")
        shifted = add("Add", [rounded, self._constant("qconv_128", 128.0, number)], "shifted")
        return add("Cast", [shifted], "codes", to=ir.DataType.UINT8.value), scale

    def _constant(self, name: str, value: float | list[int], kind: ir.DataType) -> ir.Value:
        import numpy as np
        import onnx_ir as ir

        known = self.model.graph.initializers
        if name not in known:
            tensor = ir.tensor(np.array(value, kind.numpy()), name=name)
            shape = ir.Shape(tensor.shape.numpy())
            known.add(
                ir.Value(name=name, shape=shape, type=ir.TensorType(kind), const_value=tensor)
            )
        return known[name]


def _node(
    operator: str,
    inputs: list[Any],
    output: str,
    attributes: Mapping[str, int | None] | None = None,
    *,
    domain: str = "",
) -> ir.Node:
    import onnx_ir as ir

    return ir.node(
        operator,
        inputs,
        attributes=dict(attributes or {}),
        domain=domain,
        outputs=[ir.Value(name=output)],
        name=f"node_{output}",
    )
