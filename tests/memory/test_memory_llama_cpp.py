"""llama.cpp itself reserves what is predicted for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hollow_gguf import Shapes, attention_keys, attention_shapes, with_norms, write_hollow
from llama_buffers import MIB, buffers

import qconv
from qconv.checkpoint import open_checkpoint
from qconv.memory import VramResult, make_setting, predict, shape_of_gguf, stored_weights

SIZES = {"layers": 6, "hidden": 256, "inner": 512, "heads": 8, "kv_heads": 2}
QUERY_NORMS = {"attn_q_norm": 48, "attn_k_norm": 48}
GEMMA = {**QUERY_NORMS, "post_attention_norm": 256, "post_ffw_norm": 256}
_QUERY_NORMS = re.compile("attn_[qk]_norm")
WIDTH = {"attention__key_length": 48, "attention__value_length": 48}


def gemma(**more: Any) -> tuple[dict[str, Any], Shapes]:
    shapes = attention_shapes(**SIZES, width=48, vocab=1000)
    return attention_keys(**SIZES, **WIDTH, **more), with_norms(shapes, 6, **GEMMA)


def without_query_norms(shapes: Shapes) -> Shapes:
    return {
        name: shape
        for name, shape in shapes.items()
        if "_q_norm" not in name and "_k_norm" not in name
    }


def deepseek() -> tuple[dict[str, Any], Shapes]:
    """Multi-head latent attention: 4 heads of 16 + 8 keys over a latent of 64 + 8."""
    keys = attention_keys(
        layers=2,
        hidden=128,
        inner=256,
        heads=4,
        kv_heads=1,
        attention__kv_lora_rank=64,
        attention__q_lora_rank=32,
        attention__key_length=72,
        attention__value_length=64,
        attention__key_length_mla=24,
        attention__value_length_mla=16,
        rope__dimension_count=8,
        leading_dense_block_count=2,
        expert_feed_forward_length=64,
        expert_count=0,
        expert_shared_count=1,
        expert_weights_scale=1.0,
    )
    shapes: Shapes = {
        "token_embd.weight": (1000, 128),
        "output.weight": (1000, 128),
        "output_norm.weight": (128,),
    }
    for index in range(2):
        shapes |= {
            f"blk.{index}.attn_norm.weight": (128,),
            f"blk.{index}.attn_kv_a_norm.weight": (64,),
            f"blk.{index}.attn_q_a_norm.weight": (32,),
            f"blk.{index}.attn_q_a.weight": (32, 128),
            f"blk.{index}.attn_q_b.weight": (4 * 24, 32),
            f"blk.{index}.attn_kv_a_mqa.weight": (72, 128),
            f"blk.{index}.attn_k_b.weight": (4, 64, 16),
            f"blk.{index}.attn_v_b.weight": (4, 16, 64),
            f"blk.{index}.attn_output.weight": (128, 4 * 16),
            f"blk.{index}.ffn_norm.weight": (128,),
            f"blk.{index}.ffn_gate.weight": (256, 128),
            f"blk.{index}.ffn_up.weight": (256, 128),
            f"blk.{index}.ffn_down.weight": (128, 256),
        }
    return keys, shapes


def mamba() -> tuple[dict[str, Any], Shapes]:
    keys = {
        "block_count": 3,
        "context_length": 4096,
        "embedding_length": 128,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 256,
        "ssm.state_size": 16,
        "ssm.time_step_rank": 8,
    }
    shapes: Shapes = {"token_embd.weight": (1000, 128), "output_norm.weight": (128,)}
    for index in range(3):
        shapes |= {
            f"blk.{index}.attn_norm.weight": (128,),
            f"blk.{index}.ssm_in.weight": (512, 128),
            f"blk.{index}.ssm_conv1d.weight": (256, 4),
            f"blk.{index}.ssm_conv1d.bias": (256,),
            f"blk.{index}.ssm_x.weight": (8 + 32, 256),
            f"blk.{index}.ssm_dt.weight": (256, 8),
            f"blk.{index}.ssm_dt.bias": (256,),
            f"blk.{index}.ssm_a": (256, 16),
            f"blk.{index}.ssm_d": (256,),
            f"blk.{index}.ssm_out.weight": (128, 256),
        }
    return keys, shapes


MODELS: dict[str, tuple[str, Callable[[], tuple[dict[str, Any], Shapes]]]] = {
    "gemma3": ("gemma3", lambda: gemma(attention__sliding_window=512)),
    "gemma2": (
        "gemma2",
        lambda: (gemma(attention__sliding_window=512)[0], without_query_norms(gemma()[1])),
    ),
    "qwen3": (
        "qwen3",
        lambda: (
            attention_keys(**SIZES, **WIDTH),
            with_norms(
                attention_shapes(**SIZES, width=48, vocab=1000), 6, attn_q_norm=48, attn_k_norm=48
            ),
        ),
    ),
    "latent attention": ("deepseek2", deepseek),
    "states": ("mamba", mamba),
}


def predicted(path: Path, **setting: Any) -> VramResult:
    with open_checkpoint(path) as checkpoint:
        model = checkpoint.model
        metadata = {key: value.value for key, value in model.metadata.items()}
        return predict(
            shape_of_gguf(metadata, model.tensors),
            stored_weights(model),
            make_setting("llama.cpp", **setting),
            device="cpu",
        )


def cache(sizes: Mapping[str, float]) -> float:
    return sizes.get("KV", 0.0) + sizes.get("RS", 0.0)


@pytest.mark.parametrize("context", [512, 1000, 4096])
@pytest.mark.parametrize("name", MODELS)
def test_the_cache_is_llama_cpps_to_the_byte(name: str, context: int, tmp_path: Path) -> None:
    architecture, model = MODELS[name]
    path = write_hollow(tmp_path / "m.gguf", architecture, *model())
    got = buffers(path, context=context)
    expected = predicted(path, context=context).parts["kv_cache"] / MIB
    assert cache(got) == pytest.approx(expected, abs=0.011), got  # it prints two digits, twice


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_is_within_the_range(name: str, tmp_path: Path) -> None:
    architecture, model = MODELS[name]
    path = write_hollow(tmp_path / "m.gguf", architecture, *model())
    sizes = buffers(path, context=8192)
    expected = predicted(path, context=8192)
    assert expected.low / MIB - 0.1 <= sum(sizes.values()) <= expected.high / MIB + 0.1, sizes


@pytest.mark.slow
@pytest.mark.parametrize("cache_type", ["f16", "q8_0", "q4_0"])
def test_a_real_model_takes_what_is_predicted(
    cache_type: str, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "smollm2-q8_0"
    (path,) = qconv.convert(smollm2, to="gguf:q8_0", out=folder, force=True).artifacts[0].files
    for context in (1000, 8192):
        sizes = buffers(path, context=context, cache_type=cache_type)
        expected = predicted(path, context=context, cache_type=cache_type)
        assert sizes["KV"] == pytest.approx(expected.parts["kv_cache"] / MIB, abs=0.006)
        assert sizes["model"] == pytest.approx(expected.parts["weights"] / MIB, abs=0.006)
        assert expected.low / MIB - 0.1 <= sum(sizes.values()) <= expected.high / MIB + 0.1
