"""Finds what says which tokens are padding in the masks that transformers makes for attention.

transformers asks for every query and key whether it may look there; of padding that is
``mask[texts, tokens]`` with all texts and all tokens counted up, which torch exports by GatherND.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._constants import constant_of
from ._idle import remove_unused, sizes_known

if TYPE_CHECKING:
    import onnx_ir as ir


def take_whole_masks(model: ir.Model) -> int:
    """Take a mask as it is where every text and token of it is picked; changes ``model``.

    Gives how many were.
    """
    from onnxscript.rewriter import RewriteRuleSet, pattern

    rule = pattern.RewriteRule(_picked, _whole, _are_all)
    found = RewriteRuleSet([rule]).apply_to_model(model)
    remove_unused(model.graph)
    return found


def _picked(op: Any, mask: Any, texts: Any, tokens: Any) -> Any:  # noqa: ANN401
    shape = op.Shape(op.Max(texts, tokens))
    rows = op.Unsqueeze(op.Expand(texts, shape), [-1])
    columns = op.Unsqueeze(op.Expand(tokens, shape), [-1])
    places = op.Concat(rows, columns, axis=-1)
    found = op.GatherND(op.Transpose(mask, perm=[0, 1]), places, batch_dims=0)
    return op.Transpose(found, perm=[0, 1, 2, 3])


def _are_all(_: object, mask: ir.Value, texts: ir.Value, tokens: ir.Value) -> bool:
    sizes = sizes_known(mask)
    if sizes is None or len(sizes) != 2 or not _counts(texts) or not _counts(tokens):
        return False
    batch, length = sizes
    return sizes_known(texts) == (batch, 1, 1, 1) and sizes_known(tokens) == (1, 1, 1, length)


def _whole(op: Any, mask: ir.Value, **_: ir.Value) -> ir.Value:  # noqa: ANN401
    made: ir.Value = op.Unsqueeze(mask, _dimensions(op))
    return made


def _dimensions(op: Any) -> ir.Value:  # noqa: ANN401
    import numpy as np
    import onnx_ir as ir

    made: ir.Value = op.Constant(value=ir.tensor(np.array([1, 2], np.int64)))
    return made


def padding_of(mask: ir.Value) -> ir.Value | None:
    """Which keys any query may look at, where that is all that a mask says: (batch, keys) booleans.

    mask: (batch, 1, queries, keys) booleans; None: it says more, or something else
    """
    node = mask.producer()
    if node is not None and node.op_type == "Expand" and node.inputs[0] is not None:
        mask = node.inputs[0]
    said = [each for each in _conditions(mask) if not _is_always(each)]
    above = said[0].producer() if len(said) == 1 else None
    if above is None or above.op_type != "Unsqueeze":
        return None
    axes, keys = constant_of(above.inputs[1]), above.inputs[0]
    if keys is None or axes is None or axes.ravel().tolist() != [1, 2]:
        return None
    sizes = sizes_known(keys)
    return keys if sizes is not None and len(sizes) == 2 else None


def _conditions(value: ir.Value) -> list[ir.Value]:
    """What must all be true for ``value`` to be."""
    node = value.producer()
    if node is None or node.op_type != "And":
        return [value]
    return [part for each in node.inputs if each is not None for part in _conditions(each)]


def _is_always(value: ir.Value) -> bool:
    """The condition is true in every run: a constant, or that a number of a token is not negative.

    Torch makes ones by expanding a one.
    """
    node = value.producer()
    if node is not None and node.op_type == "GreaterOrEqual":
        number, (counted, _) = constant_of(node.inputs[1]), node.inputs
        return bool(number is not None and (number <= 0).all() and _counts(counted))
    while node is not None and node.op_type in {"Cast", "Expand"} and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    constant = constant_of(value)
    return bool(constant is not None and constant.size and constant.all())


def _counts(value: ir.Value | None) -> bool:
    """The value is 0, 1, 2 and so on, of any shape."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in {"Unsqueeze", "Add"}:
        if node.op_type == "Add":
            added = constant_of(node.inputs[1])
            if added is None or added.any():
                return False
        value = node.inputs[0]
        node = None if value is None else value.producer()
    if node is None or node.op_type != "Range":
        return False
    start, step = constant_of(node.inputs[0]), constant_of(node.inputs[2])
    return start is not None and step is not None and not start.any() and bool((step == 1).all())
