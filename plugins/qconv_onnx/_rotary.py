"""Turns queries and keys by their positions with one operator of onnxruntime's: RotaryEmbedding.

It has kernels on CPU and CUDA, and takes cosines and sines by row and for each token the number of
its row: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md. Here every
token has a row of its own, computed as the model computes it, so that any rule for angles is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ._constants import constant_of
from ._idle import remove_unused, sizes_known

if TYPE_CHECKING:
    import onnx_ir as ir

_DOMAIN = "com.microsoft"


def fuse_rotary(model: ir.Model) -> int:
    """Use RotaryEmbedding wherever the graph has what it computes; changes ``model``.

    Gives how often it is used.
    """
    from onnxscript.rewriter import RewriteRuleSet, pattern

    rotary = _Rotary()
    rule = pattern.RewriteRule(_turned, rotary.turn, _is_known)
    found = RewriteRuleSet([rule]).apply_to_model(model)
    remove_unused(model.graph)
    return found


def _turned(op: Any, x: Any, cos: Any, sin: Any) -> Any:  # noqa: ANN401
    """What transformers has: the halves of x, (x1, x2), become x cos + (-x2, x1) sin."""
    first = op.Slice(x, _allow_other_inputs=True, _outputs=["first"])
    second = op.Slice(x, _allow_other_inputs=True, _outputs=["second"])
    return op.Add(op.Mul(x, cos), op.Mul(op.Concat(op.Neg(second), first, axis=-1), sin))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Angles:
    """What is turned by.

    values: (batch, new, half the size of a head)
    factor: of cosine or sine
    """

    values: ir.Value
    factor: float


def _is_known(
    _: object, x: ir.Value, cos: ir.Value, sin: ir.Value, first: ir.Value, second: ir.Value
) -> bool:
    """The halves are those of a head, and the angles those of its tokens."""
    sizes, angles, others = sizes_known(x), _angles(cos, "Cos"), _angles(sin, "Sin")
    if sizes is None or len(sizes) != 4 or not isinstance(sizes[3], int):
        return False
    if angles is None or others is None or angles.values is not others.values:
        return False
    half = sizes[3] // 2
    of_tokens = sizes_known(angles.values) == (sizes[0], sizes[2], half)
    halves = _ends(first) == (0, half) and _ends(second)[:1] == (half,)
    whole = sizes_known(second) == sizes_known(first) == (*sizes[:3], half)
    return of_tokens and halves and whole and x.dtype == angles.values.dtype


def _ends(part: ir.Value) -> tuple[int, ...]:
    """Where a slice of the last of four dimensions starts and ends; empty: that is not known."""
    node = part.producer()
    inputs = node.inputs[1:] if node is not None else ()
    numbers = [constant_of(value) for value in inputs]
    if len(numbers) != 4 or any(each is None or each.size != 1 for each in numbers):
        return ()
    start, end, axis, step = (int(each.item()) for each in numbers if each is not None)
    return (start, end) if axis in {3, -1} and step == 1 else ()


def _angles(value: ir.Value, operator: str) -> _Angles | None:
    """What ``factor * cos((values, values))`` is of, with a dimension for heads put in."""
    widened = value.producer()
    if widened is None or widened.op_type != "Unsqueeze":
        return None
    axes, inner = constant_of(widened.inputs[1]), widened.inputs[0]
    if axes is None or axes.ravel().tolist() != [1] or inner is None:
        return None
    factor, node = 1.0, inner.producer()
    if node is not None and node.op_type == "Mul":
        number = constant_of(node.inputs[1])
        if number is None or number.size != 1:
            return None
        factor, node = float(number.item()), _node(node.inputs[0])
    if node is None or node.op_type != operator:
        return None
    both = _node(node.inputs[0])
    if both is None or both.op_type != "Concat" or len(both.inputs) != 2:
        return None
    values = both.inputs[0]
    last = both.attributes["axis"].as_int() in {2, -1}
    same = values is not None and values is both.inputs[1]
    return _Angles(values=values, factor=factor) if same and last and values is not None else None


def _node(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


@dataclass(frozen=True, slots=True)
class _Rotary:
    """Makes the nodes; what layers share is made once."""

    _rows: dict[ir.Value, ir.Value] = field(default_factory=dict)
    _tables: dict[tuple[ir.Value, str, float], ir.Value] = field(default_factory=dict)

    def turn(
        self,
        op: Any,  # noqa: ANN401 -- onnxscript's builder of nodes
        x: ir.Value,
        cos: ir.Value,
        sin: ir.Value,
        **_: ir.Value,
    ) -> ir.Value:
        tables = [self._table(op, value, name) for value, name in ((cos, "Cos"), (sin, "Sin"))]
        angles = _angles(cos, "Cos")
        rows = self._numbers(op, angles.values) if angles is not None else None
        made: ir.Value = op.RotaryEmbedding(x, rows, *tables, _domain=_DOMAIN, _version=1)
        return made

    def _table(self, op: Any, value: ir.Value, operator: str) -> ir.Value:  # noqa: ANN401
        """Cosines or sines: (tokens of all texts, half the size of a head)."""
        import numpy as np
        import onnx_ir as ir

        angles = _angles(value, operator)
        if angles is None:
            raise TypeError(f"{value.name!r} is no {operator} of angles")
        key = (angles.values, operator, angles.factor)
        if key not in self._tables:
            made = getattr(op, operator)(angles.values)
            if angles.factor != 1:
                kind = angles.values.dtype or ir.DataType.FLOAT
                factor = ir.tensor(np.array(angles.factor, kind.numpy()))
                made = op.Mul(made, op.Constant(value=factor))
            half = angles.values.shape[2]  # type: ignore[index]
            shape = ir.tensor(np.array([-1, half], np.int64))
            self._tables[key] = op.Reshape(made, op.Constant(value=shape))
        return self._tables[key]

    def _numbers(self, op: Any, angles: ir.Value) -> ir.Value:  # noqa: ANN401
        """The number of each token's row: (batch, new)."""
        import numpy as np
        import onnx_ir as ir

        if angles not in self._rows:
            sizes = op.Shape(angles, start=0, end=2)
            zero, one = (op.Constant(value=ir.tensor(np.array(n, np.int64))) for n in (0, 1))
            count = op.ReduceProd(sizes, keepdims=0)
            self._rows[angles] = op.Reshape(op.Range(zero, count, one), sizes)
        return self._rows[angles]
