"""onnxruntime's own operators are used where the graph has what they compute, and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx_text import computed, kinds, parsed

from qconv_onnx._multihead import fuse_heads
from qconv_onnx._norms import keep_norms_apart
from qconv_onnx._rotary import fuse_rotary

if TYPE_CHECKING:
    import onnx_ir as ir

ROTARY = """
<ir_version: 10, opset_import: ["" : 21]>
rotary (float[b,2,s,8] x, float[b,s,4] angles) => (float[b,2,s,8] out)
<float[b,2,s,4] low, float[b,2,s,4] high>
{
    zero = Constant <value = int64[1] {0}> ()
    one = Constant <value = int64[1] {1}> ()
    last = Constant <value = int64[1] {3}> ()
    middle = Constant <value = int64[1] {4}> ()
    end = Constant <value = int64[1] {9223372036854775807}> ()
    factor = Constant <value = float {1.25}> ()
    both = Concat <axis = -1> (angles, angles)
    c = Cos (both)
    c_scaled = Mul (c, factor)
    cos = Unsqueeze (c_scaled, one)
    s = Sin (both)
    s_scaled = Mul (s, factor)
    sin = Unsqueeze (s_scaled, one)
    kept = Mul (x, cos)
    low = Slice (x, zero, middle, last, one)
    high = Slice (x, middle, end, last, one)
    negative = Neg (high)
    half = Concat <axis = -1> (negative, low)
    turned = Mul (half, sin)
    out = Add (kept, turned)
}
"""

#: An encoder's attention as ``_attention`` leaves it; ``seen`` says which keys are no padding.
HEADS = """
<ir_version: 10, opset_import: ["" : 21]>
heads (float[b,s,16] xq, float[b,s,16] xk, float[b,s,16] xv, bool[b,s] seen)
    => (float[b,s,16] out)
<float[16] bias = {0.5, -1, 2, 0.25, 1, 1, -1, -1, 0, 1, 2, 3, -3, 0.5, 0.5, 1},
 float[b,s,16] x, float[b,s,16] y, float[b,s,16] z,
 float[b,2,s,8] q, float[b,2,s,8] k, float[b,2,s,8] v, int64[b] texts, int64[s] tokens,
 int64[b,1,1,1] text, int64[1,1,1,s] token, int64[1,1,s,1] asker>
{
    x = Add (xq, bias)
    y = Add (xk, bias)
    z = Add (xv, bias)
    cut = Constant <value = int64[4] {0, 0, 2, 8}> ()
    join = Constant <value = int64[3] {0, 0, 16}> ()
    x4 = Reshape (x, cut)
    y4 = Reshape (y, cut)
    z4 = Reshape (z, cut)
    q = Transpose <perm = [0, 2, 1, 3]> (x4)
    k = Transpose <perm = [0, 2, 1, 3]> (y4)
    v = Transpose <perm = [0, 2, 1, 3]> (z4)
    shape = Shape (seen)
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    batch = Gather (shape, zero)
    length = Gather (shape, one)
    texts = Range (zero, batch, one)
    tokens = Range (zero, length, one)
    to_text = Constant <value = int64[3] {1, 2, 3}> ()
    to_token = Constant <value = int64[3] {0, 1, 2}> ()
    to_asker = Constant <value = int64[3] {0, 1, 3}> ()
    text = Unsqueeze (texts, to_text)
    token = Unsqueeze (tokens, to_token)
    asker = Unsqueeze (tokens, to_asker)
    larger = Max (text, token)
    sizes = Shape (larger)
    minus = Constant <value = int64[1] {-1}> ()
    text_each = Expand (text, sizes)
    text_place = Unsqueeze (text_each, minus)
    token_each = Expand (token, sizes)
    token_place = Unsqueeze (token_each, minus)
    places = Concat <axis = -1> (text_place, token_place)
    same = Transpose <perm = [0, 1]> (seen)
    picked = GatherND <batch_dims = 0> (same, places)
    keys = Transpose <perm = [0, 1, 2, 3]> (picked)
    always = GreaterOrEqual (asker, zero)
    mask = And (always, keys)
    nothing = Constant <value = float {0.0}> ()
    lowest = Constant <value = float {-3.4e38}> ()
    hidden = Where (mask, nothing, lowest)
    scale = Constant <value = float {0.4}> ()
    scaled = Mul (q, scale)
    turned = Transpose <perm = [0, 1, 3, 2]> (k)
    scores = MatMul (scaled, turned)
    masked = Add (scores, hidden)
    chances = Softmax <axis = -1> (masked)
    found = MatMul (chances, v)
    back = Transpose <perm = [0, 2, 1, 3]> (found)
    out = Reshape (back, join)
}
"""


def _run(model: ir.Model) -> np.ndarray:
    rng = np.random.default_rng(0)
    feeds = {}
    for each in model.graph.inputs:
        sizes = [{"b": 3, "s": 5}.get(str(n), n) for n in each.shape]
        feeds[each.name] = rng.standard_normal(sizes).astype("float32")
    if "seen" in feeds:
        feeds["seen"] = np.arange(5) < np.array([[5], [3], [1]])
    return computed(model, feeds)


def test_halves_are_turned_by_one_operator():
    model = parsed(ROTARY)
    assert fuse_rotary(model) == 1
    assert kinds(model)["RotaryEmbedding"] == 1
    assert not {"Neg", "Slice", "Add"} & set(kinds(model))
    assert np.abs(_run(model) - _run(parsed(ROTARY))).max() <= 1e-6


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        ("(negative, low)", "(low, negative)"),
        ("low = Slice (x, zero, middle, last, one)", "low = Slice (x, middle, end, last, one)"),
        ("both = Concat <axis = -1> (angles, angles)", "both = Concat <axis = 1> (angles, angles)"),
        ("cos = Unsqueeze (c_scaled, one)", "cos = Unsqueeze (c_scaled, last)"),
        ("s = Sin (both)", "s = Cos (both)"),
        ("float[b,s,4] angles", "float[1,s,4] angles"),
    ],
)
def test_other_turns_stay_as_they_are(there, instead):
    assert there in ROTARY
    model = parsed(ROTARY.replace(there, instead))
    before = kinds(model)
    assert fuse_rotary(model) == 0
    assert kinds(model) == before


def test_heads_are_computed_by_one_operator_from_the_padding_alone():
    model = parsed(HEADS)
    assert fuse_heads(model) == 1
    (node,) = (each for each in model.graph if each.op_type == "MultiHeadAttention")
    assert [each is not None for each in node.inputs] == [True] * 5  # with biases and padding
    assert not {"GatherND", "Softmax", "Add"} & set(kinds(model))
    assert np.abs(_run(model) - _run(parsed(HEADS))).max() <= 1e-5


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        ("always = GreaterOrEqual (asker, zero)", "always = GreaterOrEqual (asker, token)"),
        ("always = GreaterOrEqual (asker, zero)", "always = GreaterOrEqual (asker, one)"),
        ("tokens = Range (zero, length, one)", "tokens = Range (one, length, one)"),
        ("mask = And (always, keys)", "mask = Or (always, keys)"),
    ],
)
def test_a_mask_that_says_more_than_padding_is_added_to_scores(there, instead):
    assert there in HEADS
    text = HEADS.replace(there, instead)
    model = parsed(text)
    assert fuse_heads(model) == 1
    (node,) = (each for each in model.graph if each.op_type == "MultiHeadAttention")
    assert node.inputs[4] is None
    assert node.inputs[5] is not None
    if "Range (one" not in instead:  # that graph is of no use but to be refused
        assert np.abs(_run(model) - _run(parsed(text))).max() <= 1e-5


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        ("k = Transpose <perm = [0, 2, 1, 3]>", "k = Transpose <perm = [0, 1, 2, 3]>"),
        ("chances = Softmax <axis = -1>", "chances = Softmax <axis = 2>"),
        ("float[b,s,16] xk, float[b,s,16] xv", "float[b,s,16] xk, float[b,t,16] xv"),
        ("float[b,2,s,8] q", "float[b,1,s,16] q"),
    ],
)
def test_other_attention_stays_as_it_is(there, instead):
    assert there in HEADS
    text = HEADS.replace(there, instead).replace(
        "float[b,s,16] z", "float[b,t,16] z" if "xv" in there else "float[b,s,16] z"
    )
    model = parsed(text)
    before = kinds(model)["MatMul"]
    assert fuse_heads(model) == 0
    assert kinds(model)["MatMul"] == before


def test_only_what_comes_before_a_norm_is_summed():
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    norms (float[n,4] x, float[n,4] y, float[4] w) => (float[n,4] out)
    {
        a = Add (x, y)
        b = LayerNormalization (a, w)
        out = Add (b, a)
    }
    """
    model = parsed(text)
    keep_norms_apart(model)
    assert [node.op_type for node in model.graph] == ["Sum", "LayerNormalization", "Add"]
