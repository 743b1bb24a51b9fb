"""Computes an encoder's attention with one operator of onnxruntime's: MultiHeadAttention.

It has kernels on CPU and CUDA, takes queries, keys and values as products leave them, and adds
their biases: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md. A decoder
keeps the operators of the standard: GroupQueryAttention, which is made for it, refuses a batch that
goes on from its cache with several tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._constants import constant_of
from ._idle import remove_unused, sizes_known
from ._padding import padding_of, take_whole_masks

if TYPE_CHECKING:
    import onnx_ir as ir

_DOMAIN = "com.microsoft"

#: TensorProto.INT32, of what says which keys are padding.
_INT32 = 6


def fuse_heads(model: ir.Model) -> int:
    """Use MultiHeadAttention wherever the graph has what it computes; changes ``model``.

    Gives how often it is used.
    """
    from onnxscript.rewriter import RewriteRuleSet, pattern

    take_whole_masks(model)
    rule = pattern.RewriteRule(_attended, _fused, _is_known)
    found = RewriteRuleSet([rule]).apply_to_model(model)
    remove_unused(model.graph)
    return found


def _attended(  # noqa: PLR0917 -- a pattern
    op: Any,  # noqa: ANN401
    x: Any,  # noqa: ANN401
    y: Any,  # noqa: ANN401
    z: Any,  # noqa: ANN401
    scale: Any,  # noqa: ANN401
    bias: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """What ``_attention`` writes, of products x, y and z, and back to one row for each token."""
    q, k, v = (
        op.Transpose(op.Reshape(part, _allow_other_inputs=True), perm=[0, 2, 1, 3], _outputs=[name])
        for part, name in ((x, "q"), (y, "k"), (z, "v"))
    )
    scores = op.MatMul(op.Mul(q, scale), op.Transpose(k, perm=[0, 1, 3, 2]))
    found = op.MatMul(op.Softmax(op.Add(scores, bias), axis=-1), v)
    turned = op.Transpose(found, perm=[0, 2, 1, 3])
    return op.Reshape(turned, _allow_other_inputs=True, _outputs=["out"])


def _is_known(_: object, scale: ir.Value, **found: ir.Value) -> bool:
    """The rows of products are cut into heads and put together again, each in order."""
    number = constant_of(scale)
    heads = sizes_known(found["q"])
    if number is None or number.size != 1 or heads is None or len(heads) != 4:
        return False
    batch, count, length, size = heads
    if not isinstance(count, int) or not isinstance(size, int):
        return False
    rows = {sizes_known(found[name]) for name in ("x", "y", "z", "out")}
    alike = {sizes_known(found[name]) for name in ("k", "v")}
    return alike == {heads} and rows == {(batch, length, count * size)}


def _fused(
    op: Any,  # noqa: ANN401 -- onnxscript's builder of nodes
    scale: ir.Value,
    bias: ir.Value,
    **found: ir.Value,
) -> ir.Value:
    number = constant_of(scale)
    if number is None:
        raise TypeError(f"{scale.name!r} is no constant")
    parts = [found[name] for name in ("x", "y", "z")]
    biased = [_before_bias(part) for part in parts]
    added = None
    if all(each is not None for each in biased):
        parts = [each[0] for each in biased if each is not None]
        added = op.Concat(*(each[1] for each in biased if each is not None), axis=0)
    attributes = {"num_heads": found["q"].shape[1], "scale": float(number.item())}  # type: ignore[index]
    hidden = _hidden(bias)
    if hidden is not None:
        keys, attributes["mask_filter_value"] = hidden
        masks = [op.Cast(keys, to=_INT32)]
    else:
        masks = [None, bias]
    made: ir.Value = op.MultiHeadAttention(
        *parts, added, *masks, **attributes, _domain=_DOMAIN, _version=1
    )
    return made


def _hidden(bias: ir.Value) -> tuple[ir.Value, float] | None:
    """Which keys are no padding, and what others' scores get; None: the bias says more."""
    node = bias.producer()
    if node is None or node.op_type != "Where" or node.inputs[0] is None:
        return None
    keys, (seen, lowest) = padding_of(node.inputs[0]), map(constant_of, node.inputs[1:])
    if keys is None or seen is None or lowest is None or seen.any() or lowest.size != 1:
        return None
    return keys, float(lowest.item())


def _before_bias(row: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """A product, and the weight that is added to it; None: another thing, or nothing, is added."""
    node = row.producer()
    if node is None or node.op_type != "Add" or node.domain or row.is_graph_output():
        return None
    product, bias = node.inputs
    if product is None or bias is None or not bias.is_initializer():
        return None
    columns = sizes_known(row)
    alike = columns is not None and sizes_known(bias) == columns[-1:]
    return (product, bias) if alike and len(list(row.uses())) == 1 else None
