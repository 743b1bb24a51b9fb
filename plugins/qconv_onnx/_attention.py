"""Writes attention with fewer operators, all of the ONNX standard, which every runtime does faster.

Torch's exporter scales queries and keys by a root each, turns keys by way of three dimensions, and
repeats keys and values for every head that shares them. Here heads that share keys are rows of one
product: ``softmax(s q k^T + mask) v`` with q as (batch, heads of keys, sharing heads x new, size).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ._constants import constant_of
from ._idle import remove_unused, sizes_known

if TYPE_CHECKING:
    import onnx_ir as ir

#: Where a mask adds this or more, in magnitude, scores never make an infinity of it: a token that
#: all is hidden from sees all alike. What adds an infinity itself leaves such a token no number.
_FINITE = 1e30

#: The lowest and highest int64: how torch's exporter says "from the start" and "to the end".
_START, _END = -(1 << 63), (1 << 63) - 1


def shorten_attention(model: ir.Model) -> int:
    """Write attention anew wherever it is as torch exports it; changes ``model``.

    What differs in anything stays as it is. Gives how many were written anew.
    """
    from onnxscript.rewriter import RewriteRuleSet, pattern

    rule = pattern.RewriteRule(_exported, _shorter, _is_known)
    found = RewriteRuleSet([rule]).apply_to_model(model)
    remove_unused(model.graph)
    return found


def _exported(op: Any, q: Any, k: Any, v: Any, mask: Any, scale: Any, lowest: Any) -> Any:  # noqa: ANN401, PLR0917 -- a pattern
    """What torch's exporter makes of scaled_dot_product_attention with a mask of booleans."""
    shape = op.Shape(k)
    columns = op.Slice(shape, [-1], [_END])
    rows = op.Slice(shape, [-2], [-1])
    others = op.Slice(shape, [_START], [-2])
    matrices = op.Reshape(k, op.Concat([-1], rows, columns, axis=0))
    turned = op.Transpose(matrices, perm=[0, 2, 1])
    keys = op.Reshape(turned, op.Concat(others, columns, rows, axis=0))
    factor = op.CastLike(scale, q)
    scores = op.MatMul(op.Mul(q, op.Sqrt(factor)), op.Mul(keys, op.Sqrt(factor)))
    chances = op.Softmax(op.Add(scores, op.Where(mask, 0.0, lowest)), axis=-1)
    return op.MatMul(op.Where(op.IsNaN(chances), 0.0, chances), v)


def _is_known(
    _: object,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    scale: ir.Value,
    lowest: ir.Value,
    **_more: ir.Value,
) -> bool:
    """Heads and their sizes are known, and so are the scale and what a mask adds."""
    numbers = [constant_of(scale), constant_of(lowest)]
    sizes = [sizes_known(value) for value in (q, k, v)]
    whole = all(
        size is not None
        and len(size) == 4
        and isinstance(size[1], int)
        and isinstance(size[3], int)
        for size in sizes
    )
    single = all(number is not None and number.size == 1 for number in numbers)
    return whole and single and q.dtype is not None


def _shorter(  # noqa: PLR0917 -- called with what the pattern names
    op: Any,  # noqa: ANN401 -- onnxscript's builder of nodes
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    mask: ir.Value,
    scale: ir.Value,
    lowest: ir.Value,
) -> ir.Value:
    zero = _constant(op, 0.0, q)
    bias = op.Where(mask, zero, _constant(op, _number(lowest), q))
    rows, shared = q, _shared(q, k, v, mask)
    if shared is not None:
        k, v, sharing = shared
        rows = op.Reshape(q, _integers(op, 0, _size(k, 1), -1, _size(q, 3)))
        bias = op.Concat(*[bias] * sharing, axis=2)
    scaled = op.Mul(rows, _constant(op, _number(scale), q))
    scores = op.MatMul(scaled, op.Transpose(k, perm=[0, 1, 3, 2]))
    chances = op.Softmax(op.Add(scores, bias), axis=-1)
    if not _FINITE <= abs(_number(lowest)) < math.inf:  # of a token that all is hidden from
        chances = op.Where(op.IsNaN(chances), zero, chances)
    out: ir.Value = op.MatMul(chances, v)
    if shared is not None:
        out = op.Reshape(out, _integers(op, 0, _size(q, 1), -1, _size(v, 3)))
    return out


def _shared(
    q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value
) -> tuple[ir.Value, ir.Value, int] | None:
    """Keys, values, and how many neighbouring heads share them; None: each has its own."""
    keys, values = _before_repeating(k), _before_repeating(v)
    hidden, asked = sizes_known(mask), sizes_known(q)
    if keys is None or values is None or _size(keys, 1) != _size(values, 1):
        return None
    if hidden is None or asked is None or hidden[1:3] != (1, asked[2]):
        return None
    return keys, values, _size(q, 1) // _size(keys, 1)


def _before_repeating(value: ir.Value) -> ir.Value | None:
    """What was repeated for every head: ``x[:, :, None].expand(...)``, made one dimension less."""
    expanded = _made_by("Reshape", value)
    widened = _made_by("Expand", expanded)
    source = _made_by("Unsqueeze", widened)
    if source is None or widened is None or expanded is None:
        return None
    before, single, several, after = map(sizes_known, (source, widened, expanded, value))
    if before is None or single is None or several is None or after is None or len(before) != 4:
        return None
    if not isinstance(before[1], int) or not isinstance(after[1], int):
        return None
    batch, heads, *matrix = before
    times = after[1] // before[1]
    repeated = single == (batch, heads, 1, *matrix) and several == (batch, heads, times, *matrix)
    return source if repeated and after == (batch, before[1] * times, *matrix) else None


def _made_by(operator: str, value: ir.Value | None) -> ir.Value | None:
    """The first input of the node that gives a value, if it is one of ``operator``."""
    node = None if value is None else value.producer()
    return node.inputs[0] if node is not None and node.op_type == operator else None


def _size(value: ir.Value, dimension: int) -> int:
    size = value.shape[dimension] if value.shape is not None else None
    if not isinstance(size, int):
        raise TypeError(f"{value.name!r}: dimension {dimension} is {size}")
    return size


def _number(value: ir.Value) -> float:
    constant = constant_of(value)
    if constant is None:
        raise TypeError(f"{value.name!r} is no constant")
    return float(constant.item())


def _constant(op: Any, number: float, like: ir.Value) -> ir.Value:  # noqa: ANN401
    """A number of the type of ``like``."""
    import numpy as np
    import onnx_ir as ir

    kind = like.dtype or ir.DataType.FLOAT
    made: ir.Value = op.Constant(value=ir.tensor(np.array(number, kind.numpy())))
    return made


def _integers(op: Any, *numbers: int) -> ir.Value:  # noqa: ANN401
    import numpy as np
    import onnx_ir as ir

    made: ir.Value = op.Constant(value=ir.tensor(np.array(numbers, np.int64)))
    return made
