"""Tensors of a Llama checkpoint in safetensors: their GGUF names, shapes, row orders and fates."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.errors import UnreadableInput, Unsupported
from qconv.plugin import Dropped, ModelInfo, RowOrder, TensorInfo

if TYPE_CHECKING:
    from ._config import LlamaConfig

_FLOATS = ("F64", "F32", "F16", "BF16")
_INV_FREQ = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A tensor of the GGUF file. source: None when generated from ``values``."""

    name: str
    shape: tuple[int, ...]
    source: TensorInfo | None
    row_order: RowOrder | None = None
    values: tuple[float, ...] | None = None


def llama_parts(model: ModelInfo, config: LlamaConfig) -> list[Part]:
    """The tensors that ``config`` demands, each with its source.

    Raises:
        UnreadableInput: a tensor is missing or has another shape than the config says.
        Unsupported: a tensor does not hold floats.
    """
    queries = rotary_order(config.heads, config.head_dim)
    keys = rotary_order(config.kv_heads, config.head_dim)
    parts = []
    for name, source_name, shape in _names(config):
        module = source_name.rsplit(".", 2)[-2]
        order = {"q_proj": queries, "k_proj": keys}.get(module)
        source = _source(model.tensors, source_name, shape)
        parts.append(Part(name=name, shape=shape, source=source, row_order=order))
    factors = config.rope.frequency_factors
    if factors is not None:
        shape = (len(factors),)
        parts.append(Part(name="rope_freqs.weight", shape=shape, source=None, values=factors))
    return parts


def llama_dropped(model: ModelInfo, config: LlamaConfig) -> tuple[Dropped, ...]:
    """Source tensors that the file rightly leaves out."""
    dropped = [
        Dropped(name=name, reason="rotary frequencies are computed from rope_theta at run time")
        for name in model.tensors
        if _INV_FREQ.fullmatch(name)
    ]
    if config.tied and "lm_head.weight" in model.tensors:
        reason = "tie_word_embeddings: the embedding is the output projection too"
        dropped.append(Dropped(name="lm_head.weight", reason=reason))
    return tuple(dropped)


def rotary_order(heads: int, head_dim: int) -> RowOrder:
    """The order of query or key rows that llama.cpp rotates: a head's two halves interleaved.

    transformers pairs feature ``i`` of a head with ``i + head_dim / 2``; llama.cpp's ``llama``
    pairs neighbours.
    """
    half = head_dim // 2
    index = array(
        "q",
        (
            head * head_dim + side * half + pair
            for head in range(heads)
            for pair in range(half)
            for side in (0, 1)
        ),
    )
    return RowOrder(label=f"rotary halves interleaved, {heads} heads", index=index)


def _names(config: LlamaConfig) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """GGUF name, safetensors name and shape of everything the config demands."""
    yield "token_embd.weight", "model.embed_tokens.weight", (config.vocab, config.hidden)
    yield "output_norm.weight", "model.norm.weight", (config.hidden,)
    if not config.tied:
        yield "output.weight", "lm_head.weight", (config.vocab, config.hidden)
    for layer in range(config.layers):
        for name, module, shape in _block_names(config):
            yield f"blk.{layer}.{name}", f"model.layers.{layer}.{module}", shape


def _block_names(config: LlamaConfig) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    hidden, inner = config.hidden, config.intermediate
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    yield "attn_norm.weight", "input_layernorm.weight", (hidden,)
    yield "ffn_norm.weight", "post_attention_layernorm.weight", (hidden,)
    attention = (
        ("attn_q", "self_attn.q_proj", (queries, hidden)),
        ("attn_k", "self_attn.k_proj", (keys, hidden)),
        ("attn_v", "self_attn.v_proj", (keys, hidden)),
        ("attn_output", "self_attn.o_proj", (hidden, queries)),
    )
    mlp = (
        ("ffn_gate", "mlp.gate_proj", (inner, hidden)),
        ("ffn_up", "mlp.up_proj", (inner, hidden)),
        ("ffn_down", "mlp.down_proj", (hidden, inner)),
    )
    for linears, biased in ((attention, config.attention_bias), (mlp, config.mlp_bias)):
        for name, module, shape in linears:
            yield f"{name}.weight", f"{module}.weight", shape
            if biased:
                yield f"{name}.bias", f"{module}.bias", shape[:1]


def _source(tensors: Mapping[str, TensorInfo], name: str, shape: tuple[int, ...]) -> TensorInfo:
    info = tensors.get(name)
    if info is None:
        hint = (
            "; set tie_word_embeddings if the embedding serves as output"
            if (name == "lm_head.weight")
            else ""
        )
        raise UnreadableInput(
            f"tensor {name!r}: missing, but config.json demands it with shape {shape}{hint}"
        )
    if info.shape != shape:
        raise UnreadableInput(
            f"tensor {name!r}: shape {info.shape}, but config.json demands {shape}; "
            "config and weights do not belong together"
        )
    if info.dtype not in _FLOATS:
        raise Unsupported(
            f"tensor {name!r}: dtype {info.dtype} is not one of {', '.join(_FLOATS)}; "
            "start from the float checkpoint"
        )
    return info
