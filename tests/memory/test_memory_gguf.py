"""The shape of models from GGUF metadata, as llama.cpp's code takes it."""

from __future__ import annotations

from typing import Any

import pytest

from qconv.errors import UnreadableInput, Unsupported
from qconv.memory import cache_nbytes, make_setting, shape_of_gguf
from qconv.memory._shape import Attention, Latent, State
from qconv.plugin import TensorInfo


def metadata(architecture: str, **keys: Any) -> dict[str, Any]:
    """Keys of a model of 12 layers with 8 heads over 2, of 64 values each."""
    own = {
        "block_count": 12,
        "context_length": 32768,
        "embedding_length": 512,
        "feed_forward_length": 1024,
        "attention.head_count": 8,
        "attention.head_count_kv": 2,
        "vocab_size": 1000,
        **{name.replace("__", "."): value for name, value in keys.items()},
    }
    named = {f"{architecture}.{key}": value for key, value in own.items() if value is not None}
    return {"general.architecture": architecture, **named}


def windows(architecture: str, **keys: Any) -> list[int | None]:
    shape = shape_of_gguf(metadata(architecture, **keys), {})
    return [cache.window for cache in shape.caches if isinstance(cache, Attention)]


@pytest.mark.parametrize(
    ("architecture", "every"),
    [("gemma2", 2), ("gemma3", 6), ("cohere2", 4), ("gpt-oss", 2), ("olmo2", 4)],
)
def test_every_nth_layer_sees_everything(architecture: str, every: int) -> None:
    found = windows(architecture, attention__sliding_window=512)
    assert found == [None if (n + 1) % every == 0 else 512 for n in range(12)]


def test_a_pattern_in_the_file_counts_more_than_the_code() -> None:
    keys = {"attention__sliding_window": 512}
    listed = windows("gemma3", **keys, attention__sliding_window_pattern=[True, True, False])
    assert listed == [512, 512, None] * 4
    assert windows("gemma3", **keys, attention__sliding_window_pattern=3) == listed


def test_llama_4_has_chunks_that_no_key_tells() -> None:
    assert windows("llama4") == [8192, 8192, 8192, None] * 3


@pytest.mark.parametrize("architecture", ["llama", "phi3", "qwen2"])
def test_windows_that_llama_cpp_leaves_out_are_left_out(architecture: str) -> None:
    assert windows(architecture, attention__sliding_window=512) == [None] * 12


def test_a_window_of_an_unknown_architecture_is_said() -> None:
    shape = shape_of_gguf(metadata("new", attention__sliding_window=512), {})
    assert "which layers of architecture 'new' have it is not known" in shape.notes[0]


def test_windowed_layers_may_have_other_heads() -> None:
    shape = shape_of_gguf(
        metadata(
            "gemma4",
            attention__sliding_window=512,
            attention__sliding_window_pattern=[True] * 5 + [False],
            attention__key_length=512,
            attention__value_length=512,
            attention__key_length_swa=256,
            attention__value_length_swa=256,
            attention__shared_kv_layers=6,
            attention__head_count_kv=[4, 4, 4, 4, 4, 1] * 2,
        ),
        {},
    )
    narrow, wide = Attention(keys=1024, values=1024, window=512), Attention(keys=512, values=512)
    assert shape.layers == ((narrow,),) * 5 + ((wide,),) + ((),) * 6


def test_later_layers_of_gemma_3n_use_earlier_ones() -> None:
    keys = {"block_count": 30, "attention__sliding_window": 512}
    assert len(shape_of_gguf(metadata("gemma3n", **keys), {}).caches) == 20


def test_latent_attention_is_one_vector_per_token() -> None:
    keys = {
        "attention__kv_lora_rank": 512,
        "attention__key_length": 576,
        "attention__value_length": 512,
        "attention__key_length_mla": 192,
        "attention__value_length_mla": 128,
        "attention__head_count_kv": 1,
    }
    shape = shape_of_gguf(metadata("deepseek2", **keys), {})
    assert shape.caches == (Latent(width=576, expanded=8 * 320),) * 12
    older = shape_of_gguf(metadata("deepseek2", **{**keys, "attention__key_length_mla": None}), {})
    assert isinstance(older.caches[0], Attention)


def test_layers_that_predict_further_tokens_have_no_cache_here() -> None:
    assert len(shape_of_gguf(metadata("glm4moe", nextn_predict_layers=1), {}).layers) == 11


SSM = {"ssm__conv_kernel": 4, "ssm__inner_size": 1024, "ssm__state_size": 16}


def test_hybrids_tell_recurrent_layers_by_their_heads() -> None:
    heads = [0, 0, 2] * 4
    shape = shape_of_gguf(metadata("jamba", attention__head_count_kv=heads, **SSM), {})
    state = State(channels=1024, kernel=4, values=1024 * 16)
    assert shape.layers == ((state,), (state,), (Attention(keys=128, values=128),)) * 4
    kept = cache_nbytes(shape, make_setting("llama.cpp", context=256))
    assert kept == 8 * 4 * (3 * 1024 + 1024 * 16) + 4 * 2 * 128 * 2 * 256


def test_feed_forward_layers_of_nemotron_keep_nothing() -> None:
    keys = {
        "attention__head_count_kv": [0, 0, 2] * 4,
        "feed_forward_length": [0, 1024, 0] * 4,
        "ssm__group_count": 2,
        **SSM,
    }
    layers = shape_of_gguf(metadata("nemotron_h", **keys), {}).layers
    assert [len(layer) for layer in layers] == [1, 0, 1] * 4
    assert layers[0] == (State(channels=1024 + 2 * 2 * 16, kernel=4, values=1024 * 16),)


def test_falcon_h1_does_both_in_every_layer() -> None:
    layers = shape_of_gguf(metadata("falcon-h1", **SSM), {}).layers
    assert all(len(layer) == 2 for layer in layers)


def test_qwen3_next_attends_in_every_fourth_layer() -> None:
    shape = shape_of_gguf(metadata("qwen3next", **SSM), {})
    kinds = [type(layer[0]).__name__ for layer in shape.layers]
    assert kinds == ["State", "State", "State", "Attention"] * 3


def test_states_of_other_recurrent_models() -> None:
    rwkv = shape_of_gguf(metadata("rwkv6", wkv__head_size=64), {})
    assert rwkv.caches == (State(values=512 * 64 + 2 * 512),) * 12
    heads = {"attention__head_count_kv": [0] * 12}
    lfm2 = shape_of_gguf(metadata("lfm2", shortconv__l_cache=3, **heads), {})
    assert lfm2.caches == (State(channels=512, kernel=3),) * 12
    kimi = shape_of_gguf(metadata("kimi-linear", kda__head_dim=64, ssm__conv_kernel=4, **heads), {})
    assert kimi.caches == (State(channels=3 * 512, kernel=4, values=512 * 64),) * 12


def test_an_encoder_keeps_nothing_and_gives_no_logits() -> None:
    shape = shape_of_gguf(metadata("bert"), {})
    assert (shape.caches, shape.vocab) == ((), 0)


def test_the_vocabulary_is_that_of_the_tensors() -> None:
    table = TensorInfo(name="token_embd.weight", shape=(1234, 512), dtype="F16", nbytes=0)
    assert shape_of_gguf(metadata("llama"), {table.name: table}).vocab == 1234
    tokens = {"tokenizer.ggml.tokens": ("a", "b")}
    assert shape_of_gguf({**metadata("llama"), **tokens}, {}).vocab == 2


def test_experts_that_a_token_goes_through_count_together() -> None:
    keys = {"expert_feed_forward_length": 700, "expert_used_count": 8}
    assert shape_of_gguf(metadata("qwen3moe", **keys), {}).inner == 5600


def test_an_encoder_with_a_decoder_is_refused() -> None:
    with pytest.raises(Unsupported, match="architecture 't5' has an encoder and a decoder"):
        shape_of_gguf(metadata("t5"), {})


def test_no_layers_are_refused() -> None:
    with pytest.raises(UnreadableInput, match="llama.block_count 0: models have between 1"):
        shape_of_gguf(metadata("llama", block_count=0), {})
    with pytest.raises(UnreadableInput, match="'embedding_length' is missing"):
        shape_of_gguf(metadata("llama", embedding_length=None), {})
