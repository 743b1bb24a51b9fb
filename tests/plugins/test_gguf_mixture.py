"""Which type llama.cpp gives each tensor; the lists are what ``llama-quantize --dry-run`` says."""

from __future__ import annotations

from collections import Counter

import pytest

from qconv.errors import UnreadableInput, Unsupported
from qconv_gguf._mixture import Candidate, Choice, Traits, choose_types, seventy_b
from qconv_gguf._types import FileType, file_type, ggml_type


def tensors(
    layers: int, hidden: int = 256, inner: int = 512, *, tied: bool = False
) -> list[Candidate]:
    shapes = {"token_embd.weight": (64, hidden), "output_norm.weight": (hidden,)}
    if not tied:
        shapes["output.weight"] = (64, hidden)
    for layer in range(layers):
        block = f"blk.{layer}."
        shapes[block + "attn_norm.weight"] = (hidden,)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"{block}{name}.weight"] = (hidden, hidden)
        for name in ("ffn_gate", "ffn_up"):
            shapes[f"{block}{name}.weight"] = (inner, hidden)
        shapes[block + "ffn_down.weight"] = (hidden, inner)
    return [Candidate(name=name, shape=shape, stored="F32") for name, shape in shapes.items()]


def traits(layers: int, architecture: str = "llama", **changes: int) -> Traits:
    values = {"heads_per_kv": 1, "experts": 0, "seventy_b": False, **changes}
    return Traits(architecture=architecture, layers=layers, **values)


def choose(
    target: str, layers: int, *, importance: bool = False, tied: bool = False, **changes: int
) -> dict[str, Choice]:
    return choose_types(
        tensors(layers, tied=tied),
        traits(layers, **changes),
        file_type(target),
        importance=importance,
    )


def per_layer(choices: dict[str, Choice], name: str, layers: int) -> str:
    return " ".join(choices[f"blk.{layer}.{name}.weight"].type for layer in range(layers))


#: Format -> output.weight, token_embd, attn_v over 8 blocks, ffn_down over 8 blocks, attn_output.
GOLDEN = {
    "q8_0": ("Q8_0", "Q8_0", "Q8_0 " * 8, "Q8_0 " * 8, "Q8_0"),
    "q4_0": ("Q6_K", "Q4_0", "Q4_0 " * 8, "Q4_0 " * 8, "Q4_0"),
    "q5_1": ("Q6_K", "Q5_1", "Q5_1 " * 8, "Q5_1 " * 8, "Q5_1"),
    "q2_k": ("Q6_K", "Q2_K", "Q3_K " * 8, "Q3_K " * 8, "Q3_K"),
    "q3_k_s": ("Q6_K", "Q3_K", "Q3_K " * 8, "Q3_K " * 8, "Q3_K"),
    "q3_k_m": ("Q6_K", "Q3_K", "Q5_K Q5_K " + "Q4_K " * 6, "Q4_K " * 8, "Q4_K"),
    "q3_k_l": ("Q6_K", "Q3_K", "Q5_K " * 8, "Q5_K " * 8, "Q5_K"),
    "q4_k_s": ("Q6_K", "Q4_K", "Q5_K " * 4 + "Q4_K " * 4, "Q5_K " + "Q4_K " * 7, "Q4_K"),
    "q4_k_m": (
        "Q6_K",
        "Q4_K",
        "Q6_K Q4_K Q4_K Q6_K Q4_K Q4_K Q6_K Q6_K",
        "Q6_K Q4_K Q4_K Q6_K Q4_K Q4_K Q6_K Q6_K",
        "Q4_K",
    ),
    "q5_k_s": ("Q6_K", "Q5_K", "Q5_K " * 8, "Q5_K " * 8, "Q5_K"),
    "q5_k_m": (
        "Q6_K",
        "Q5_K",
        "Q6_K Q5_K Q5_K Q6_K Q5_K Q5_K Q6_K Q6_K",
        "Q6_K Q5_K Q5_K Q6_K Q5_K Q5_K Q6_K Q6_K",
        "Q5_K",
    ),
    "q6_k": ("Q6_K", "Q6_K", "Q6_K " * 8, "Q6_K " * 8, "Q6_K"),
}


@pytest.mark.parametrize("target", GOLDEN)
def test_mixture_of_eight_blocks(target: str) -> None:
    choices = choose(target, 8)
    output, embedding, values, down, attention_output = GOLDEN[target]
    assert choices["output.weight"].type == output
    assert choices["token_embd.weight"].type == embedding
    assert per_layer(choices, "attn_v", 8) == values.strip()
    assert per_layer(choices, "ffn_down", 8) == down.strip()
    assert choices["blk.5.attn_output.weight"].type == attention_output
    assert choices["blk.5.attn_norm.weight"].type == "F32"
    base = file_type(target).base
    for name in ("attn_q", "attn_k", "ffn_gate", "ffn_up"):
        assert per_layer(choices, name, 8) == " ".join([base] * 8)


def test_thirty_blocks_of_q4_k_m_have_fourteen_at_six_bits() -> None:
    choices = choose("q4_k_m", 30)
    raised = [n for n in range(30) if choices[f"blk.{n}.ffn_down.weight"].type == "Q6_K"]
    assert raised == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]


def test_blocks_are_counted_in_their_order_not_the_sources() -> None:
    shuffled = sorted(tensors(16), key=lambda tensor: tensor.name[::-1])
    args = (traits(16), file_type("q4_k_m"))
    straight = choose_types(tensors(16), *args, importance=False)
    assert choose_types(shuffled, *args, importance=False) == straight


def test_tied_embedding_is_typed_as_output() -> None:
    assert choose("q4_k_m", 2, tied=True)["token_embd.weight"].type == "Q6_K"
    assert choose("q8_0", 2, tied=True)["token_embd.weight"].type == "Q8_0"


def test_importance_guards_the_first_down_projections_of_4_and_5_bits() -> None:
    assert per_layer(choose("q4_0", 16, importance=True), "ffn_down", 4) == "Q4_1 Q4_1 Q4_0 Q4_0"
    assert per_layer(choose("q5_0", 8, importance=True), "ffn_down", 2) == "Q5_1 Q5_0"
    assert choose("q4_k_m", 8, importance=True) == choose("q4_k_m", 8)


def test_shared_keys_give_values_more_bits_at_q2_k() -> None:
    assert choose("q2_k", 4, heads_per_kv=4)["blk.0.attn_v.weight"].type == "Q4_K"
    assert choose("q2_k", 4, heads_per_kv=3)["blk.0.attn_v.weight"].type == "Q3_K"


def test_values_of_a_70b_model_get_five_bits() -> None:
    choices = choose("q4_k_m", 80, seventy_b=True)
    assert Counter(per_layer(choices, "attn_v", 80).split()) == {"Q6_K": 40, "Q5_K": 40}
    assert choose("q3_k_s", 80, seventy_b=True)["blk.9.attn_v.weight"].type == "Q5_K"


@pytest.mark.parametrize(
    ("architecture", "layers", "grouped", "expected"),
    [
        ("llama", 80, True, True),
        ("llama", 80, False, False),
        ("llama", 32, True, False),
        ("qwen2", 80, False, True),
        ("jais2", 68, False, True),
        ("gemma", 80, True, False),
    ],
)
def test_what_counts_as_70b(architecture: str, layers: int, grouped: bool, expected: bool) -> None:
    assert seventy_b(architecture, layers, grouped=grouped) is expected


def test_eight_experts_keep_keys_and_values_at_eight_bits() -> None:
    choices = choose("q4_k_m", 4, experts=8)
    assert choices["blk.1.attn_v.weight"].type == "Q8_0"
    assert choices["blk.1.attn_k.weight"].type == "Q8_0"
    assert choices["blk.1.attn_output.weight"].type == "Q5_K"
    assert choose("q5_k_m", 4, experts=8)["blk.1.attn_output.weight"].type == "Q5_K"
    assert choose("q6_k", 4, experts=8)["blk.1.attn_output.weight"].type == "Q6_K"


def test_experts_are_counted_by_block_number() -> None:
    expert = Candidate(name="blk.9.ffn_down_exps.weight", shape=(4, 256, 512), stored="F16")
    args = (traits(10, experts=4), file_type("q4_k_m"))
    assert choose_types([expert], *args, importance=False)[expert.name].type == "Q6_K"
    outside = Candidate(name="blk.10.ffn_down_exps.weight", shape=(4, 256, 512), stored="F16")
    with pytest.raises(UnreadableInput, match=r"blk\.10.*none of the model's 10 blocks"):
        choose_types([outside], *args, importance=False)


#: Format -> ffn_down at blocks 0, 2, 12, 15 of 33 of a Falcon; output.weight is Q8_0 throughout.
FALCON = {
    "q3_k_m": "Q5_K Q4_K Q4_K Q4_K",
    "q3_k_l": "Q4_K Q4_K Q4_K Q4_K",
    "q4_k_m": "Q6_K Q5_K Q5_K Q5_K",
    "q4_k_s": "Q4_K Q4_K Q4_K Q4_K",
}


@pytest.mark.parametrize("target", FALCON)
def test_falcon_has_rules_of_its_own(target: str) -> None:
    choices = choose(target, 33, architecture="falcon")
    found = [choices[f"blk.{n}.ffn_down.weight"].type for n in (0, 2, 12, 15)]
    assert " ".join(found) == FALCON[target]
    assert choices["output.weight"].type == "Q8_0"


def test_falcon_between_the_raised_blocks() -> None:
    assert choose("q3_k_m", 33, architecture="falcon")["blk.13.ffn_down.weight"].type == "Q3_K"
    assert choose("q4_k_m", 33, architecture="falcon")["blk.13.ffn_down.weight"].type == "Q4_K"
    choices = choose("q3_k_l", 33, architecture="falcon")
    assert choices["blk.1.attn_output.weight"].type == "Q4_K"


#: Wanted type -> what 96 columns get instead.
FALLBACKS = {
    "q2_k": "Q4_0",
    "q3_k_s": "Q4_0",
    "q4_k_s": "Q5_0",
    "q5_k_s": "Q5_1",
    "q6_k": "Q8_0",
    "q8_0": "Q8_0",
    "q4_1": "Q4_1",
}


@pytest.mark.parametrize("target", FALLBACKS)
def test_rows_that_do_not_divide_fall_back(target: str) -> None:
    for columns, expected in ((96, FALLBACKS[target]), (100, "F16")):
        name = "blk.7.ffn_up.weight"
        candidate = Candidate(name=name, shape=(8, columns), stored="F32")
        choice = choose_types([candidate], traits(8), file_type(target), importance=False)[name]
        assert choice.type == expected
        if expected != file_type(target).base:
            assert choice.wanted == file_type(target).base
            assert f"{columns} columns do not divide by" in choice.reason


def test_output_that_does_not_divide_gets_eight_bits() -> None:
    output = Candidate(name="output.weight", shape=(64, 96), stored="F32")
    choices = choose_types([output], traits(1), file_type("q4_k_m"), importance=False)
    assert (choices["output.weight"].type, choices["output.weight"].wanted) == ("Q8_0", "Q6_K")


@pytest.mark.parametrize(
    ("name", "tied", "expected"),
    [
        ("output.weight", False, "output projection"),
        ("token_embd.weight", False, "base type of the format"),
        ("token_embd.weight", True, "embedding that is the output projection too"),
        ("blk.0.attn_v.weight", False, "attention values: more bits than the base type"),
        ("blk.1.attn_v.weight", False, "base type of the format"),
        ("blk.0.ffn_down.weight", False, "feed-forward down: more bits than the base type"),
        ("blk.0.attn_q.weight", False, "base type of the format"),
        ("blk.0.attn_norm.weight", False, "llama.cpp never quantizes this tensor"),
    ],
)
def test_the_reason_says_why_a_tensor_gets_its_type(name: str, tied: bool, expected: str) -> None:
    candidates = tensors(8, tied=tied)
    choices = choose_types(candidates, traits(8), file_type("q4_k_m"), importance=False)
    assert choices[name].reason == expected


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blk.0.attn_norm.weight", (256,)),
        ("blk.0.attn_q.bias", (256,)),
        ("blk.0.ffn_gate_inp.weight", (8, 256)),
        ("blk.0.ssm_conv1d.weight", (4, 256)),
        ("blk.0.ffn_norm.weight", (4, 256)),
        ("position_embd.weight", (64, 256)),
        ("token_types.weight", (2, 256)),
        ("blk.0.one_row.weight", (1, 256)),
        ("v.patch_embd.weight", (8, 3, 14, 14)),
        ("rope_freqs", (4, 32)),
    ],
)
def test_what_llama_cpp_never_quantizes_keeps_its_type(name: str, shape: tuple[int, ...]) -> None:
    candidate = Candidate(name=name, shape=shape, stored="F16")
    choice = choose_types([candidate], traits(1), file_type("q4_0"), importance=False)[name]
    assert (choice.type, choice.eligible) == ("F16", False)


def test_tables_of_integers_keep_their_type() -> None:
    table = Candidate(name="blk.0.routes.weight", shape=(64, 256), stored="I32")
    choice = choose_types([table], traits(1), file_type("q8_0"), importance=False)[table.name]
    assert (choice.type, choice.eligible) == ("I32", False)


def test_glm5_next_keeps_small_tensors() -> None:
    names = {"blk.0.hc_x.weight": "F16", "blk.0.attn_q_a.weight": "Q8_0", "blk.0.x.weight": "Q4_0"}
    candidates = [Candidate(name=name, shape=(4, 256), stored="F16") for name in names]
    found = choose_types(
        candidates, traits(1, architecture="glm5-next"), file_type("q4_0"), importance=False
    )
    assert {name: choice.type for name, choice in found.items()} == names


@pytest.mark.parametrize("target", ["f32", "f16", "bf16"])
def test_float_formats_leave_vectors_alone(target: str) -> None:
    choices = choose(target, 1)
    assert choices["blk.0.attn_norm.weight"].type == "F32"
    assert {choice.type for choice in choices.values() if choice.eligible} == {target.upper()}


def test_format_names_do_not_mind_case_or_signs() -> None:
    expected = FileType(name="Q4_K_M", number=15, base="Q4_K")
    assert all(file_type(name) == expected for name in ("q4_k_m", "Q4KM", "q4-k-m"))
    with pytest.raises(Unsupported, match=r"no format 'q7_k'; choose one of f32, f16, q4_0"):
        file_type("q7_k")


def test_types_agree_with_the_gguf_library() -> None:
    import gguf

    for member, (block, nbytes) in gguf.GGML_QUANT_SIZES.items():
        known = ggml_type(member.name)
        assert (known.number, known.block, known.nbytes) == (member.value, block, nbytes)
    with pytest.raises(Unsupported, match="tensor type 'Q9_X' is not one of ggml's"):
        ggml_type("Q9_X")
