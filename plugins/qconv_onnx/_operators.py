"""How the graph computes with quantized weights: each place is replaced by what its format says.

nbits: MatMulNBits and GatherBlockQuantized (com.microsoft), on CPU and CUDA; one table serves both
blocked: DequantizeLinear by blocks before the MatMul, of the ONNX standard since opset 21
integer: inputs rounded to 8 bits by token, then MatMulIntegerToFloat (com.microsoft), an integer
product times the weight's scales, and then the token's scale. The input's codes are
shifted to uint8 with zero-point 128, as onnxruntime's fast integer kernels want them; the values
stay those of a symmetric grid.
static: as integer, but on scales and zero-points known beforehand, which serve inputs of one sign,
too: QuantizeLinear and DequantizeLinear around the input, each product with a pair of its own, or
onnxruntime fuses one of those that share it only
channel: DequantizeLinear by output channel before the MatMul
conv: the same before a Conv
rows: looked up in tables of 8-bit codes, each row on a scale of its own; where a table is
multiplied by, as integer: it is stored as it is looked up in, and turned when it is loaded
In a graph of float16, integer and static multiply in float32; all else is in the graph's type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ._idle import sizes_known
from ._places import Convolution, Lookup

if TYPE_CHECKING:
    import onnx_ir as ir

    from ._names import Names
    from ._options import Operator
    from ._places import Place

_MICROSOFT = "com.microsoft"

#: The opset from which on ReduceMax takes its axes as an input.
_AXES_AS_INPUT = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A quantized weight as it is stored.

    shape: (out, in)
    block: columns per scale
    accuracy_level: of MatMulNBits
    parts: its initializers, in the order of ``quantized_parts``
    half: the graph has the weight in float16
    """

    name: str
    operator: Operator
    shape: tuple[int, int]
    bits: int
    block: int
    accuracy_level: int
    parts: Sequence[ir.Value]
    half: bool = False


@dataclass(frozen=True, slots=True)
class _Rounded:
    """An input in 8 bits: value = code * step * by_token.

    codes: uint8, shifted by 128
    step: one number
    by_token: (..., 1)
    """

    codes: ir.Value
    step: ir.Value
    by_token: ir.Value


@dataclass(frozen=True, slots=True)
class Rewriter:
    """Replaces products and lookups in a graph.

    names: of the model, from which new ones are taken
    trusted: what the graph says of shapes is so, since it was exported here, in the opset of
        ``_export``, which has blocks in QuantizeLinear
    """

    model: ir.Model
    names: Names
    trusted: bool = False
    _constants: dict[str, ir.Value] = field(default_factory=dict)
    _inputs: dict[ir.Value, _Rounded] = field(default_factory=dict)
    _middles: dict[tuple[int | str, ...], ir.Value | None] = field(default_factory=dict)
    _floats: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def replace(self, stored: Stored, places: Sequence[Place]) -> None:
        """Compute with the parts of a weight instead of the weight."""
        for number, place in enumerate(places):
            what = "rows" if isinstance(place, Lookup) else "product"
            out = f"{stored.name}_{what}" + (f"_{number}" if number else "")
            self._replace(place, self._nodes(stored, place, out))
        self.model.graph.initializers.pop(stored.name)

    def _replace(self, place: Place, nodes: list[ir.Node]) -> None:
        import onnx_ir as ir

        graph, old, new = self.model.graph, place.out, nodes[-1].outputs[0]
        graph.insert_before(place.nodes[-1], nodes)
        new.shape, new.type = old.shape, old.type
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove(list(reversed(place.nodes)), safe=True)
        new.name = old.name
        if old in self._inputs:
            self._inputs[new] = self._inputs.pop(old)
        if old in self._floats:
            self._floats[new] = self._floats.pop(old)

    def _nodes(self, stored: Stored, place: Place, out: str) -> list[ir.Node]:
        """What takes the place, its last node giving the result."""
        if isinstance(place, Lookup):
            by_row = stored.operator == "rows"
            return (self._taken if by_row else self._rows)(stored, place.x, out)
        if isinstance(place, Convolution):
            return self._convolution(stored, place.nodes[-1], out)
        multiply = {
            "nbits": self._nbits,
            "blocked": self._blocked,
            "integer": self._integer,
            "static": self._static,
            "channel": self._channel,
            "rows": self._integer_of_rows,
        }
        product = out if place.bias is None else f"{out}_without_bias"
        if stored.half and stored.operator in {"integer", "rows", "static"}:
            nodes = self._in_float(multiply[stored.operator], stored, place.x, product)
        else:
            nodes = multiply[stored.operator](stored, place.x, product)
        if place.bias is None:
            return nodes
        return [*nodes, self._node("Add", [nodes[-1].outputs[0], place.bias], out)]

    def _in_float(
        self,
        multiply: Callable[[Stored, ir.Value, str], list[ir.Node]],
        stored: Stored,
        x: ir.Value,
        out: str,
    ) -> list[ir.Node]:
        """A product in float32 in a graph of float16: its input comes, and its result goes, so."""
        import onnx_ir as ir

        if x not in self._floats:  # siblings share it
            cast = self._node("Cast", [x], f"{x.name}_float", {"to": ir.DataType.FLOAT.value})
            self._insert_after(x, [cast])
            self._floats[x] = cast.outputs[0]
        nodes = multiply(stored, self._floats[x], f"{out}_float")
        half = {"to": ir.DataType.FLOAT16.value}
        return [*nodes, self._node("Cast", [nodes[-1].outputs[0]], out, half)]

    def _convolution(self, stored: Stored, old: ir.Node, out: str) -> list[ir.Node]:
        codes, scale = stored.parts
        decoded = self._node("DequantizeLinear", [codes, scale], f"{out}_weight", {"axis": 0})
        x, _, *bias = old.inputs
        attributes = {name: attribute.value for name, attribute in old.attributes.items()}
        return [decoded, self._node("Conv", [x, decoded.outputs[0], *bias], out, attributes)]

    def _channel(self, stored: Stored, x: ir.Value, out: str) -> list[ir.Node]:
        decoded = self._node("DequantizeLinear", stored.parts, f"{out}_weight", {"axis": 1})
        return [decoded, self._node("MatMul", [x, decoded.outputs[0]], out)]

    def _nbits(self, stored: Stored, x: ir.Value, out: str) -> list[ir.Node]:
        self.model.graph.opset_imports[_MICROSOFT] = 1
        attributes = {
            "K": stored.shape[1],
            "N": stored.shape[0],
            "bits": stored.bits,
            "block_size": stored.block,
            "accuracy_level": stored.accuracy_level,
        }
        return [self._node("MatMulNBits", [x, *stored.parts], out, attributes, domain=_MICROSOFT)]

    def _rows(self, stored: Stored, x: ir.Value, out: str) -> list[ir.Node]:
        """Rows as blocks, (..., blocks, block), since MatMulNBits has the codes so."""
        import onnx_ir as ir

        self.model.graph.opset_imports[_MICROSOFT] = 1
        rows, columns = stored.shape
        blocks = columns // stored.block
        each = self._constant(f"{stored.name}_blocks", [rows, blocks, 1], ir.DataType.INT64)
        codes, *parameters = stored.parts
        nodes = [
            self._node("Reshape", [part, each], f"{part.name}_of_blocks") for part in parameters
        ]
        scale, *zero = (node.outputs[0] for node in nodes)
        attributes = {
            "bits": stored.bits,
            "block_size": stored.block,
            "gather_axis": 0,
            "quantize_axis": 2,
        }
        taken = self._node(
            "GatherBlockQuantized",
            [codes, x, scale, *zero],
            f"{out}_of_blocks",
            attributes,
            domain=_MICROSOFT,
        )
        nodes.append(taken)
        whole = self._shape_of_rows(x, columns, nodes)
        return [*nodes, self._node("Reshape", [taken.outputs[0], whole], out)]

    def _shape_of_rows(self, x: ir.Value, columns: int, nodes: list[ir.Node]) -> ir.Value:
        """What to reshape rows to: x's dimensions, of which 0 keeps one, and then the columns."""
        import onnx_ir as ir

        if x.shape is not None:
            kept = [0] * len(x.shape)
            name = f"qconv_rows_of_{columns}_{len(kept)}"
            return self._constant(name, [*kept, columns], ir.DataType.INT64)
        last = self._constant(f"qconv_rows_of_{columns}", [columns], ir.DataType.INT64)
        nodes.append(self._node("Shape", [x], f"{x.name}_shape"))
        parts = [nodes[-1].outputs[0], last]
        nodes.append(self._node("Concat", parts, f"{x.name}_shape_of_rows", {"axis": 0}))
        return nodes[-1].outputs[0]

    def _taken(self, stored: Stored, x: ir.Value, out: str) -> list[ir.Node]:
        import onnx_ir as ir

        codes, scale = stored.parts
        kind = scale.dtype or ir.DataType.FLOAT
        narrowed = stored.half and kind != ir.DataType.FLOAT16  # a product has scales in float32
        taken = self._node("Gather", [codes, x], f"{out}_codes", {"axis": 0})
        floats = self._node("Cast", [taken.outputs[0]], f"{out}_floats", {"to": kind.value})
        scales = self._node("Gather", [scale, x], f"{out}_scale", {"axis": 0})
        decoded = f"{out}_decoded" if narrowed else out
        product = self._node("Mul", [floats.outputs[0], scales.outputs[0]], decoded)
        nodes = [taken, floats, scales, product]
        if narrowed:
            half = {"to": ir.DataType.FLOAT16.value}
            nodes.append(self._node("Cast", [product.outputs[0]], out, half))
        return nodes

    def _blocked(self, stored: Stored, x: ir.Value, out: str) -> list[ir.Node]:
        attributes = {"axis": 0, "block_size": stored.block}
        decoded = self._node("DequantizeLinear", stored.parts, f"{out}_weight", attributes)
        return [decoded, self._node("MatMul", [x, decoded.outputs[0]], out)]

    def _static(self, stored: Stored, x: ir.Value, out: str) -> list[ir.Node]:
        codes, scale, *of_input = stored.parts
        rounded = self._node("QuantizeLinear", [x, *of_input], f"{out}_input_codes")
        floats = self._node("DequantizeLinear", [rounded.outputs[0], *of_input], f"{out}_input")
        decoded = self._node("DequantizeLinear", [codes, scale], f"{out}_weight", {"axis": 1})
        product = self._node("MatMul", [floats.outputs[0], decoded.outputs[0]], out)
        return [rounded, floats, decoded, product]

    def _integer_of_rows(self, stored: Stored, x: ir.Value, out: str) -> list[ir.Node]:
        """As ``_integer``, of a table: runtimes turn what is stored once, when they load it."""
        import onnx_ir as ir

        codes, scale = stored.parts
        whole = self._constant("qconv_whole", [-1], ir.DataType.INT64)
        turned = self._node("Transpose", [codes], f"{out}_weight", {"perm": [1, 0]})
        flat = self._node("Reshape", [scale, whole], f"{out}_scale")
        return [turned, flat, *self._by_integers(x, turned.outputs[0], flat.outputs[0], out)]

    def _integer(self, stored: Stored, x: ir.Value, out: str) -> list[ir.Node]:
        weight, scale = stored.parts
        return self._by_integers(x, weight, scale, out)

    def _by_integers(
        self, x: ir.Value, weight: ir.Value, weight_scale: ir.Value, out: str
    ) -> list[ir.Node]:
        """A product by codes, (in, out), and their scales, (out,)."""
        if x not in self._inputs:  # siblings share it
            self._inputs[x] = self._rounded(x)
        rounded = self._inputs[x]
        self.model.graph.opset_imports[_MICROSOFT] = 1
        product = self._node(
            "MatMulIntegerToFloat",
            [rounded.codes, weight, rounded.step, weight_scale, self._middle()],
            f"{out}_by_row",
            domain=_MICROSOFT,
        )
        return [product, self._node("Mul", [product.outputs[0], rounded.by_token], out)]

    def _rounded(self, x: ir.Value) -> _Rounded:
        """An input rounded by token, before all that may share it.

        As ``ActivationGrid`` has it, each token is one block of a QuantizeLinear of opset 21. A
        token of zeros has codes of no meaning, which are multiplied by zero: it stays zero.
        """
        import onnx_ir as ir

        sizes = sizes_known(x) if self.trusted and x.producer() is not None else None
        middles = None if sizes is None else self._middles_of(sizes[:-1])
        if middles is None or sizes is None or not isinstance(sizes[-1], int):
            return self._rounded_in_parts(x)
        nodes: list[ir.Node] = []
        largest = self._abs_max(x, nodes)
        highest = self._constant("qconv_highest_code", 127, ir.DataType.FLOAT)
        step = self._node("Div", [largest, highest], f"{x.name}_step")
        inputs = [x, step.outputs[0], middles]
        token = {"axis": -1, "block_size": sizes[-1]}
        codes = self._node("QuantizeLinear", inputs, f"{x.name}_codes", token)
        self._insert_after(x, [*nodes, step, codes])
        one = self._constant("qconv_one", 1, ir.DataType.FLOAT)
        return _Rounded(codes.outputs[0], one, step.outputs[0])

    def _rounded_in_parts(self, x: ir.Value) -> _Rounded:
        """The same where what the graph says of tokens is not known to be so, in any opset.

        ``round(x / largest / (1 / 127))``, where ``ActivationGrid`` has ``round(x / (largest /
        127))``: each division errs by 2^-24 of what it gives at most, so the two are the same but
        for values within 127 * 2^-21 of a step of the middle between two codes, which may take
        either.
        """
        import onnx_ir as ir

        nodes: list[ir.Node] = []
        largest = self._abs_max(x, nodes)
        parts = self._node("Div", [x, largest], f"{x.name}_parts")
        step = self._constant("qconv_step", 1 / 127, ir.DataType.FLOAT)
        inputs = [parts.outputs[0], step, self._middle()]
        codes = self._node("QuantizeLinear", inputs, f"{x.name}_codes")
        self._insert_after(x, [*nodes, parts, codes])
        return _Rounded(codes.outputs[0], step, largest)

    def _middle(self) -> ir.Value:
        """The code of zero."""
        import onnx_ir as ir

        return self._constant("qconv_zero_point_128", 128, ir.DataType.UINT8)

    def _middles_of(self, tokens: tuple[int | str, ...]) -> ir.Value | None:
        """The code of zero for every token, which an input of the graph counts; or None.

        tokens: dimensions
        """
        if tokens not in self._middles:
            self._middles[tokens] = self._repeated_middle(tokens)
        return self._middles[tokens]

    def _repeated_middle(self, tokens: tuple[int | str, ...]) -> ir.Value | None:
        import onnx_ir as ir

        count, graph = len(tokens), self.model.graph
        known = ((value, sizes_known(value)) for value in graph.inputs)
        like = next((value for value, sizes in known if sizes and sizes[:count] == tokens), None)
        if like is None or not count:
            return None
        sizes = self._node("Shape", [like], "qconv_tokens", {"start": 0, "end": count})
        one = self._constant("qconv_one_column", [1], ir.DataType.INT64)
        shape = self._node("Concat", [sizes.outputs[0], one], "qconv_by_token", {"axis": 0})
        inputs = [self._middle(), shape.outputs[0]]
        middles = self._node("Expand", inputs, "qconv_zero_points_128")
        graph.insert_before(graph[0], [sizes, shape, middles])
        return middles.outputs[0]

    def _abs_max(self, x: ir.Value, nodes: list[ir.Node]) -> ir.Value:
        """The largest magnitude of each token; before opset 18 its axis is an attribute."""
        import onnx_ir as ir

        nodes.append(self._node("Abs", [x], f"{x.name}_abs"))
        inputs = [nodes[-1].outputs[0]]
        attributes: dict[str, Any] = {"keepdims": 1}
        if (self.model.graph.opset_imports.get("") or 0) >= _AXES_AS_INPUT:
            inputs.append(self._constant("qconv_last_axis", [-1], ir.DataType.INT64))
        else:
            attributes["axes"] = [-1]
        nodes.append(self._node("ReduceMax", inputs, f"{x.name}_abs_max", attributes))
        return nodes[-1].outputs[0]

    def _insert_after(self, x: ir.Value, nodes: list[ir.Node]) -> None:
        producer = x.producer()
        if producer is None:
            self.model.graph.insert_before(self.model.graph[0], nodes)
        else:
            self.model.graph.insert_after(producer, nodes)

    def _constant(self, name: str, value: float | list[int], kind: ir.DataType) -> ir.Value:
        import numpy as np
        import onnx_ir as ir

        if name not in self._constants:
            tensor = ir.tensor(np.array(value, kind.numpy()), name=self.names.fresh(name))
            made = ir.Value(
                name=tensor.name,
                shape=ir.Shape(tensor.shape.numpy()),
                type=ir.TensorType(kind),
                const_value=tensor,
            )
            self.model.graph.initializers.add(made)
            self._constants[name] = made
        return self._constants[name]

    def _node(
        self,
        operator: str,
        inputs: Sequence[Any],
        output: str,
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = "",
    ) -> ir.Node:
        """A node whose output is called ``output``, or much like it where that name is taken."""
        import onnx_ir as ir

        name = self.names.fresh(output)
        return ir.node(
            operator,
            inputs,
            attributes=dict(attributes or {}),
            domain=domain,
            outputs=[ir.Value(name=name)],
            name=f"node_{name}",
        )
