"""Configs and metadata of anything: a shape, or an error that speaks to the user."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qconv.errors import QconvError
from qconv.memory import Weights, make_setting, predict, shape_of_config, shape_of_gguf

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [0, -1, 1, 2, 7, 1 << 45, 0.5, float("nan"), float("inf"), 1e300, "", "x", "GL"]
    ),
    st.lists(
        st.sampled_from([0, 1, -1, "mamba", "attention", None, [], {}, 1.5, True]), max_size=5
    ),
    st.just({}),
    st.just({"0": {"head_dim": "x"}, "1": 3}),
)

KEYS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "intermediate_size", "max_position_embeddings", "sliding_window",
    "sliding_window_pattern", "layer_types", "layers_block_type", "block_types", "attn_type_list",
    "hybrid_override_pattern", "attn_layer_period", "attn_layer_offset", "attn_layer_indices",
    "full_attn_idxs", "full_attention_interval", "cross_attention_layers", "per_layer_config",
    "kv_lora_rank", "qk_rope_head_dim", "v_head_dim", "num_kv_shared_layers", "multi_query",
    "state_size", "conv_kernel", "expand", "mamba_d_state", "mamba_d_conv", "mamba_n_heads",
    "linear_attn_config", "conv_L_cache", "lru_width", "conv1d_width", "text_config",
    "architectures", "is_encoder_decoder", "use_sliding_window", "max_window_layers",
)  # fmt: skip

FAMILIES = (
    "llama", "gemma2", "gemma3_text", "gemma3n_text", "jamba", "bamba", "lfm2", "qwen3_next",
    "qwen2", "mamba", "mamba2", "falcon_h1", "zamba2", "nemotron_h", "kimi_linear", "minimax",
    "recurrent_gemma", "rwkv", "deepseek_v32", "exaone4", "falcon", "llama4_text", "", None, 7,
)  # fmt: skip

SOUND: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "intermediate_size": 128,
}


def tried(make: Any, *arguments: Any) -> None:
    """Whatever it is, it becomes a prediction or one of qconv's errors."""
    try:
        shape = make(*arguments)
        for runtime in ("llama.cpp", "vllm", "transformers", "onnxruntime"):
            predict(shape, Weights(nbytes={}), make_setting(runtime, context=512))
    except QconvError:
        pass


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(FAMILIES), st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=4))
def test_any_config_is_read_or_refused(family: object, changes: dict[str, Any]) -> None:
    tried(shape_of_config, {**SOUND, "model_type": family, **changes})


GGUF_KEYS = (
    "block_count", "embedding_length", "feed_forward_length", "context_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.sliding_window", "attention.sliding_window_pattern", "attention.kv_lora_rank",
    "attention.key_length_mla", "attention.shared_kv_layers", "nextn_predict_layers",
    "ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "shortconv.l_cache", "wkv.head_size",
    "kda.head_dim", "full_attention_interval", "expert_used_count",
)  # fmt: skip

ARCHITECTURES = (
    "llama", "gemma3", "gemma3n", "jamba", "lfm2", "qwen3next", "mamba", "falcon-h1", "nemotron_h",
    "kimi-linear", "rwkv6", "deepseek2", "llama4", "new", "",
)  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(ARCHITECTURES), st.dictionaries(st.sampled_from(GGUF_KEYS), JUNK, max_size=4)
)
def test_any_metadata_is_read_or_refused(architecture: str, changes: dict[str, Any]) -> None:
    own = {"block_count": 3, "embedding_length": 64, "attention.head_count": 4, "vocab_size": 100}
    named = {f"{architecture}.{key}": value for key, value in (own | changes).items()}
    tried(shape_of_gguf, {"general.architecture": architecture, **named}, {})


def test_a_config_without_anything_is_refused() -> None:
    with pytest.raises(QconvError, match="is missing"):
        shape_of_config({})
