"""Tensors of a GGUF file under transformers' names, rows in transformers' order."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from qconv.errors import UnreadableInput
from qconv.plugin import RowOrder

from ._view import ViewTensor

if TYPE_CHECKING:
    from qconv.plugin import ModelInfo

    from ._gguf_architecture import Architecture

_Named = tuple[str, str, tuple[int, ...]]


def view_tensors(model: ModelInfo, architecture: Architecture) -> tuple[ViewTensor, ...]:
    """Everything the architecture demands, in the order of the file.

    A tensor beyond that is in no place of a Hugging Face checkpoint, and not in the view.

    Raises:
        UnreadableInput: a tensor is missing, or has another shape than the metadata says.
    """
    views = {source: (name, shape) for source, name, shape in _names(architecture)}
    for source, (_, shape) in views.items():
        info = model.tensors.get(source)
        if info is None or info.shape != shape:
            found = "missing" if info is None else f"shape {info.shape}"
            raise UnreadableInput(
                f"tensor {source!r}: {found}, but the GGUF file's metadata demands shape {shape}; "
                "the file is damaged, convert the model again"
            )
    return tuple(
        ViewTensor(
            name=views[source][0],
            source=source,
            shape=views[source][1],
            row_order=_order(source, architecture),
        )
        for source in model.tensors
        if source in views
    )


def _order(source: str, architecture: Architecture) -> RowOrder | None:
    if not architecture.rotates_neighbours:
        return None
    module = source.split(".")[-2]
    heads = {"attn_q": architecture.heads, "attn_k": architecture.kv_heads}.get(module)
    return None if heads is None else _apart(heads, architecture.head_dim)


def _apart(heads: int, head_dim: int) -> RowOrder:
    """The order of rows that transformers rotates: a head's halves one after the other.

    llama.cpp's ``llama`` pairs neighbours, so that row ``2 * i`` is of the first half.
    """
    half = head_dim // 2
    index = array(
        "q",
        (
            head * head_dim + 2 * pair + side
            for head in range(heads)
            for side in (0, 1)
            for pair in range(half)
        ),
    )
    return RowOrder(label=f"rotary halves apart, {heads} heads", index=index)


def _names(model: Architecture) -> Iterator[_Named]:
    """GGUF name, transformers' name and shape of everything the architecture demands."""
    yield "token_embd.weight", "model.embed_tokens.weight", (model.vocab, model.hidden)
    yield "output_norm.weight", "model.norm.weight", (model.hidden,)
    if not model.tied:
        yield "output.weight", "lm_head.weight", (model.vocab, model.hidden)
    for layer in range(model.layers):
        for name, module, shape in _block(model):
            yield f"blk.{layer}.{name}", f"model.layers.{layer}.{module}", shape


def _block(model: Architecture) -> Iterator[_Named]:
    hidden, inner = model.hidden, model.intermediate
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    yield "attn_norm.weight", "input_layernorm.weight", (hidden,)
    yield "ffn_norm.weight", "post_attention_layernorm.weight", (hidden,)
    if model.head_norms:
        yield "attn_q_norm.weight", "self_attn.q_norm.weight", (model.head_dim,)
        yield "attn_k_norm.weight", "self_attn.k_norm.weight", (model.head_dim,)
    for name, module, shape, biased in (
        ("attn_q", "self_attn.q_proj", (queries, hidden), model.query_bias),
        ("attn_k", "self_attn.k_proj", (keys, hidden), model.query_bias),
        ("attn_v", "self_attn.v_proj", (keys, hidden), model.query_bias),
        ("attn_output", "self_attn.o_proj", (hidden, queries), model.attention_bias),
        ("ffn_gate", "mlp.gate_proj", (inner, hidden), model.mlp_bias),
        ("ffn_up", "mlp.up_proj", (inner, hidden), model.mlp_bias),
        ("ffn_down", "mlp.down_proj", (hidden, inner), model.mlp_bias),
    ):
        yield f"{name}.weight", f"{module}.weight", shape
        if biased:
            yield f"{name}.bias", f"{module}.bias", shape[:1]
