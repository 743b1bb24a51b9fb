"""Attention is written anew where it is as torch exports it, and nowhere else."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import computed, kinds, parsed

from qconv_onnx._attention import shorten_attention
from qconv_onnx._idle import remove_idle

#: Four heads of eight, two of keys and values, as torch's exporter writes them.
EXPORTED = """
<ir_version: 10, opset_import: ["" : 21]>
attention (float[b,4,s,8] q, float[b,2,t,8] key, float[b,2,t,8] value, bool[b,1,s,t] mask)
    => (float[b,4,s,8] out)
<float[b,2,1,t,8] k1, float[b,2,2,t,8] k2, float[b,4,t,8] k,
 float[b,2,1,t,8] v1, float[b,2,2,t,8] v2, float[b,4,t,8] v>
{
    two = Constant <value_ints = [2]> ()
    times = Constant <value = int64[5] {1, 1, 2, 1, 1}> ()
    joined = Constant <value = int64[4] {0, 4, -1, 8}> ()
    k1 = Unsqueeze (key, two)
    k2 = Expand (k1, times)
    k = Reshape (k2, joined)
    v1 = Unsqueeze (value, two)
    v2 = Expand (v1, times)
    v = Reshape (v2, joined)
    shape = Shape (k)
    first = Constant <value = int64[1] {-9223372036854775808}> ()
    rest = Constant <value = int64[1] {-1}> ()
    middle = Constant <value = int64[1] {-2}> ()
    last = Constant <value = int64[1] {9223372036854775807}> ()
    columns = Slice (shape, rest, last)
    rows = Slice (shape, middle, rest)
    others = Slice (shape, first, middle)
    flat = Concat <axis = 0> (rest, rows, columns)
    matrices = Reshape (k, flat)
    turned = Transpose <perm = [0, 2, 1]> (matrices)
    whole = Concat <axis = 0> (others, columns, rows)
    keys = Reshape (turned, whole)
    scale = Constant <value = float {0.35}> ()
    factor = CastLike (scale, q)
    root = Sqrt (factor)
    another_root = Sqrt (factor)
    scaled = Mul (q, root)
    scaled_keys = Mul (keys, another_root)
    scores = MatMul (scaled, scaled_keys)
    zero = Constant <value = float {0.0}> ()
    lowest = Constant <value = float {-3.4e38}> ()
    bias = Where (mask, zero, lowest)
    masked = Add (scores, bias)
    chances = Softmax <axis = -1> (masked)
    hidden = IsNaN (chances)
    seen = Where (hidden, zero, chances)
    out = MatMul (seen, v)
}
"""


def _model(text: str = EXPORTED) -> ir.Model:
    return parsed(text)


def _run(model: ir.Model, length: int = 3, hidden: int | None = None) -> np.ndarray:
    """hidden: number of a token that all is hidden from."""
    rng = np.random.default_rng(0)
    shapes = {"q": (2, 4, length, 8), "key": (2, 2, 6, 8), "value": (2, 2, 6, 8)}
    feeds = {name: rng.standard_normal(shape).astype("float32") for name, shape in shapes.items()}
    feeds["mask"] = rng.integers(0, 2, (2, 1, length, 6)).astype(bool)
    feeds["mask"][..., 0] = True
    if hidden is not None:
        feeds["mask"][:, :, hidden] = False
    return computed(model, feeds)


@pytest.mark.parametrize("length", [1, 3])
def test_attention_is_the_same_in_fewer_operators(length):
    model = _model()
    before = len(list(model.graph))
    assert shorten_attention(model) == 1
    assert len(list(model.graph)) < before / 2
    assert not {"Expand", "IsNaN", "Sqrt"} & set(kinds(model))
    assert np.abs(_run(model, length) - _run(_model(), length)).max() <= 1e-6


def _of_infinity() -> ir.Model:
    """The model, whose mask adds negative infinity."""
    proto = onnx.parser.parse_model(EXPORTED)
    (lowest,) = [node for node in proto.graph.node if node.output[0] == "lowest"]
    lowest.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(np.float32(-np.inf)))
    return ir.from_proto(proto)


def test_a_token_that_an_infinite_mask_hides_all_from_gets_zeros():
    model = _of_infinity()
    assert shorten_attention(model) == 1
    found, expected = (_run(each, hidden=1) for each in (model, _of_infinity()))
    assert (expected[:, :, 1] == 0).all()
    assert np.abs(found - expected).max() <= 1e-6


def test_a_head_with_keys_of_its_own_is_not_joined_with_others():
    text = EXPORTED.replace("k = Reshape (k2, joined)", "k = Concat <axis = 1> (key, key)")
    text = text.replace("v = Reshape (v2, joined)", "v = Concat <axis = 1> (value, value)")
    model = _model(text)
    assert shorten_attention(model) == 1
    assert np.abs(_run(model) - _run(_model(text))).max() <= 1e-6


def test_keys_that_are_not_repeated_head_by_head_stay_repeated():
    more = """
    one = Constant <value_ints = [1]> ()
    by_heads = Constant <value = int64[5] {1, 2, 1, 1, 1}> ()
    """
    text = EXPORTED.replace("{\n    two", f"{{{more}two")
    text = text.replace("float[b,2,1,t,8] k1", "float[b,1,2,t,8] k1")
    text = text.replace("k1 = Unsqueeze (key, two)", "k1 = Unsqueeze (key, one)")
    text = text.replace("k2 = Expand (k1, times)", "k2 = Expand (k1, by_heads)")
    model = _model(text)
    assert shorten_attention(model) == 1
    assert kinds(model)["Expand"] == 2
    assert np.abs(_run(model) - _run(_model(text))).max() <= 1e-6


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        ("Transpose <perm = [0, 2, 1]>", "Transpose <perm = [2, 1, 0]>"),
        ("Softmax <axis = -1>", "Softmax <axis = 1>"),
        ("zero = Constant <value = float {0.0}>", "zero = Constant <value = float {1.0}>"),
        ("(others, columns, rows)", "(others, rows, columns)"),
        ("masked = Add", "masked = Mul"),
        ("another_root = Sqrt (factor)", "another_root = Neg (factor)"),
    ],
)
def test_what_differs_in_anything_stays_as_it_is(there, instead):
    assert there in EXPORTED
    model = _model(EXPORTED.replace(there, instead))
    before = kinds(model)
    assert shorten_attention(model) == 0
    assert kinds(model) == before


def test_only_slices_of_everything_are_taken_out():
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    slices (float[n,4] x) => (float[n,4] out)
    <float[n,4] whole, float[n,4] back, float[n,2] some>
    {
        zero = Constant <value = int64[1] {0}> ()
        one = Constant <value = int64[1] {1}> ()
        two = Constant <value = int64[1] {2}> ()
        down = Constant <value = int64[1] {-1}> ()
        last = Constant <value = int64[1] {9223372036854775807}> ()
        first = Constant <value = int64[1] {-9223372036854775808}> ()
        whole = Slice (x, zero, last, one, one)
        same = Identity (whole)
        back = Slice (same, down, first, one, down)
        some = Slice (back, two, last, one, one)
        twice = Concat <axis = 1> (some, some)
        out = Identity (twice)
    }
    """
    model = _model(text)
    remove_idle(model.graph)
    assert [node.op_type for node in model.graph if node.op_type != "Constant"] == [
        "Slice",
        "Slice",
        "Concat",
        "Identity",  # it names the output
    ]
