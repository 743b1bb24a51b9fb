"""What models keep per token, from the configs that transformers' own classes write."""

from __future__ import annotations

from typing import Any

import pytest

from qconv.errors import UnreadableInput, Unsupported, UnsupportedGrid, UsageError
from qconv.memory import cache_nbytes, make_setting, shape_of_config

MIB, GIB = 2**20, 2**30

#: As Google publishes Gemma 3 of 4 billion parameters: the rest is left to the class's defaults.
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27, "model_type": "siglip"},
}

#: As Qwen publishes Qwen3 of 0.6 billion parameters: heads of 128, not of 1024 / 16.
QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "sliding_window": None,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}


def written(kind: str, **changes: Any) -> dict[str, Any]:
    """What transformers' class of ``kind`` writes to config.json."""
    pytest.importorskip("transformers", reason="its config classes are the source")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers does not know {kind}")
    return CONFIG_MAPPING[kind](**changes).to_dict()


def kept(config: dict[str, Any], context: int, runtime: str = "llama.cpp", **more: Any) -> int:
    return cache_nbytes(shape_of_config(config), make_setting(runtime, context=context, **more))


def test_gemma_3_4b_keeps_814_mib_in_llama_cpp() -> None:
    assert kept(GEMMA3_4B, 32768) == 814 * MIB


def test_gemma_3_as_transformers_writes_it_is_the_same() -> None:
    sizes = {"num_hidden_layers": 34, "hidden_size": 2560, "sliding_window": 1024}
    assert kept(written("gemma3_text", **sizes), 32768) == 814 * MIB


def test_deepseek_v3_keeps_latent_vectors() -> None:
    assert kept(written("deepseek_v3"), 32768) == 61 * (512 + 64) * 2 * 32768
    assert kept(written("deepseek_v3"), 32768) / GIB == pytest.approx(2.14, abs=0.005)


def test_transformers_keeps_what_the_latent_vectors_become() -> None:
    expanded = kept(written("deepseek_v3"), 1024, "transformers")
    assert expanded == 61 * 128 * (128 + 64 + 128) * 2 * 1024


def test_qwen3_06b_keeps_114688_bytes_per_token() -> None:
    assert kept(QWEN3_06B, 1024) == 1024 * 114_688
    sizes = {key: QWEN3_06B[key] for key in ("num_hidden_layers", "hidden_size", "head_dim")}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8}
    assert kept(written("qwen3", **sizes, **heads), 1024) == 1024 * 114_688


def test_a_cache_in_8_bits_takes_34_bytes_per_32_values() -> None:
    assert kept(QWEN3_06B, 1024, cache_type="q8_0") == 1024 * 114_688 // 2 * 34 // 32
    assert kept(QWEN3_06B, 1024, "vllm", cache_type="fp8") == 1024 * 114_688 // 2


def test_every_sequence_has_a_cache_of_its_own() -> None:
    assert kept(GEMMA3_4B, 8192, batch=4) == 4 * kept(GEMMA3_4B, 8192)


def test_llama_cpp_counts_cells_by_256() -> None:
    assert kept(QWEN3_06B, 1000) == kept(QWEN3_06B, 1024)
    assert kept(QWEN3_06B, 1000, "transformers") == 1000 * 114_688
    assert kept(QWEN3_06B, 1000, "vllm") == 1008 * 114_688


def test_mistrals_window_is_kept_by_vllm_and_not_by_llama_cpp() -> None:
    config = written("mistral", sliding_window=4096)
    per_token = 32 * 2 * 8 * 128 * 2
    assert kept(config, 32768) == 32768 * per_token
    assert kept(config, 32768, "vllm") == (4096 + 2048 + 16) * per_token


def test_layers_that_share_keys_and_values_count_once() -> None:
    config = written("gemma3n_text")
    own = 35 - 15
    glob = sum((index + 1) % 5 == 0 for index in range(own))
    cells = glob * 32768 + (own - glob) * (512 + 512)
    assert kept(config, 32768) == cells * 2 * 2 * 256 * 2


def test_global_heads_of_gemma_4_are_wider() -> None:
    config = written("gemma4_text")
    cells, width = 5 * 32768 * 512, 25 * (512 + 512) * 256
    assert kept(config, 32768) == (cells + width) * 4 * 2 * 2


def test_one_key_value_head_for_all() -> None:
    assert kept(written("falcon", num_attention_heads=71), 1024) == 32 * 2 * 64 * 2 * 1024
    assert kept(written("gpt_bigcode"), 1024) == 12 * 2 * 64 * 2 * 1024


def test_states_do_not_grow_with_the_context() -> None:
    for kind in ("mamba", "mamba2", "falcon_mamba"):
        config = written(kind)
        assert kept(config, 256) == kept(config, 65536) > 0
    inner, state = 2 * 4096, 16
    falcon = written("falcon_mamba", hidden_size=4096, num_hidden_layers=64)
    assert kept(falcon, 256) == 64 * 4 * (3 * inner + inner * state)


def test_hybrids_keep_both() -> None:
    config = written("qwen3_next")
    attending, recurrent = 12, 36
    state = 3 * (2 * 16 * 128 + 32 * 128) + 32 * 128 * 128
    per_token = attending * 2 * 2 * 256 * 2
    assert kept(config, 32768) == 32768 * per_token + recurrent * 4 * state


@pytest.mark.parametrize(
    ("kind", "states", "attending"),
    [
        ("jamba", 28, 4),
        ("bamba", 32, 0),
        ("falcon_h1", 32, 32),
        ("zamba2", 54, 9),
        ("nemotron_h", 1, 1),
        ("kimi_linear", 21, 6),
        ("recurrent_gemma", 18, 8),
        ("minimax", 16, 16),
        ("rwkv", 32, 0),
        ("lfm2", 0, 32),
    ],
)
def test_layers_of_hybrids_are_told_apart(kind: str, states: int, attending: int) -> None:
    from qconv.memory._shape import State

    caches = shape_of_config(written(kind)).caches
    assert sum(isinstance(cache, State) for cache in caches) == states
    assert len(caches) - states == attending


def test_a_transformers_state_remembers_one_input_more() -> None:
    config = written("mamba")
    inner = 2 * 768
    assert kept(config, 256, "transformers") - kept(config, 256, "vllm") == 32 * 4 * inner


def test_an_encoder_keeps_nothing() -> None:
    assert kept(written("bert", architectures=["BertForMaskedLM"]), 512) == 0
    assert kept(written("modernbert"), 512) == 0


def test_sparse_attention_keeps_a_key_to_choose_by() -> None:
    assert kept(written("deepseek_v32"), 1024) == 61 * (512 + 64 + 128) * 2 * 1024


def test_a_window_of_unknown_layers_is_said() -> None:
    shape = shape_of_config(
        {**QWEN3_06B, "model_type": "new", "sliding_window": 512} | {"use_sliding_window": None}
    )
    assert "sliding_window 512 is left out of account" in shape.notes[0]


def test_an_unknown_kind_of_layer_is_refused() -> None:
    with pytest.raises(Unsupported, match="layers of kind 'retention' are not known"):
        shape_of_config({**QWEN3_06B, "layer_types": ["retention"] * 28})


def test_a_state_of_unknown_size_is_refused() -> None:
    config = {**QWEN3_06B, "model_type": "new", "layer_types": ["linear_attention"] * 28}
    with pytest.raises(Unsupported, match="how large the state of its recurrent layers is"):
        shape_of_config(config)


def test_a_hint_of_states_without_a_list_of_layers_is_refused() -> None:
    with pytest.raises(Unsupported, match="has 'mamba_d_state', but does not list"):
        shape_of_config({**QWEN3_06B, "model_type": "new", "mamba_d_state": 16})


def test_an_encoder_with_a_decoder_is_refused() -> None:
    with pytest.raises(Unsupported, match="has an encoder and a decoder"):
        shape_of_config(written("t5"))


@pytest.mark.parametrize("value", ["28", -1, True, 1.5, 1 << 50])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(UnreadableInput, match="'hidden_size' is .* must be a whole number"):
        shape_of_config({**QWEN3_06B, "hidden_size": value})


@pytest.mark.parametrize("layers", [0, 5000])
def test_no_layers_and_too_many_are_refused(layers: int) -> None:
    with pytest.raises(UnreadableInput, match="models have between 1 and 4096 layers"):
        shape_of_config({**QWEN3_06B, "num_hidden_layers": layers})


def test_a_missing_number_is_named() -> None:
    config = {key: value for key, value in QWEN3_06B.items() if key != "num_hidden_layers"}
    with pytest.raises(UnreadableInput, match="'num_hidden_layers' is missing"):
        shape_of_config(config)


def test_lists_of_another_length_are_refused() -> None:
    with pytest.raises(UnreadableInput, match="lists 2 layers, but there are 28"):
        shape_of_config({**QWEN3_06B, "num_key_value_heads": [8, 8]})


def test_cache_types_that_a_runtime_lacks_are_refused() -> None:
    with pytest.raises(UsageError, match="vllm has no cache of type 'q8_0'; it has f16, fp8"):
        make_setting("vllm", context=1024, cache_type="q8_0")
    with pytest.raises(UsageError, match="runtime 'ollama' is unknown"):
        make_setting("ollama", context=1024)
    with pytest.raises(UsageError, match="at least one token"):
        make_setting("vllm", context=0)


def test_blocks_that_do_not_divide_a_tokens_keys_are_refused() -> None:
    config = {**QWEN3_06B, "num_key_value_heads": 1, "head_dim": 80}
    with pytest.raises(UnsupportedGrid, match="80 keys or values .* its block of 32"):
        kept(config, 1024, cache_type="q8_0")


def test_periods_of_no_layers_and_lists_that_are_none_are_refused() -> None:
    with pytest.raises(UnreadableInput, match="'attn_layer_period' is 0, but counts layers"):
        shape_of_config(written("jamba") | {"attn_layer_period": 0, "layer_types": None})
    with pytest.raises(UnreadableInput, match="'attn_layer_indices' is 'all', but must list"):
        shape_of_config({**QWEN3_06B, "model_type": "bamba", "attn_layer_indices": "all"})


def test_dbrx_keeps_its_key_value_heads_and_experts_a_level_deeper():
    config = {
        "architectures": ["DbrxForCausalLM"],
        "model_type": "dbrx",
        "attn_config": {"clip_qkv": 8, "kv_n_heads": 8, "rope_theta": 500000},
        "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
        "d_model": 6144,
        "n_heads": 48,
        "n_layers": 40,
        "max_seq_len": 32768,
        "vocab_size": 100352,
    }
    assert kept(config, 1024) == 40 * 1024 * 2 * 8 * 128 * 2
    assert shape_of_config(config).inner == 4 * 10752


def test_chatglm_shares_heads_among_groups_of_queries_and_makes_text():
    config = {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "ffn_hidden_size": 13696,
        "hidden_size": 4096,
        "kv_channels": 128,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "num_attention_heads": 32,
        "num_layers": 28,
        "padded_vocab_size": 65024,
        "seq_length": 32768,
    }
    assert kept(config, 1024) == 28 * 1024 * 2 * 2 * 128 * 2
    assert shape_of_config(config).vocab == 65024
