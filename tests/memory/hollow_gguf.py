"""GGUF files of any architecture and size whose weights are zeros that take no disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Shapes = dict[str, tuple[int, ...]]


def write_hollow(
    path: Path, architecture: str, keys: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Path:
    """A file with the header of a model and nothing behind it: the rest is a hole.

    shapes: outermost first; matrices are float16, the rest float32
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        _add(writer, f"{architecture}.{key}", value)
    writer.add_tokenizer_model("none")
    writer.add_uint32(f"{architecture}.vocab_size", shapes["token_embd.weight"][0])
    for name, shape in shapes.items():
        matrix = len(shape) > 1 and not name.endswith((".ssm_a", ".ssm_conv1d.weight", "shortexp"))
        dtype = np.dtype(np.float16 if matrix else np.float32)
        writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    reach = sum(-(-2 * int(np.prod(s)) * 2 // 32) * 32 for s in shapes.values()) + 4096
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + reach)
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def attention_keys(
    *, layers: int, hidden: int, inner: int, heads: int, kv_heads: int | list[int], **more: Any
) -> dict[str, Any]:
    """Metadata that all attending architectures have. more: ``attention__key_length=64``."""
    return {
        "block_count": layers,
        "context_length": 131072,
        "embedding_length": hidden,
        "feed_forward_length": inner,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-6,
        **{name.replace("__", "."): value for name, value in more.items()},
    }


def attention_shapes(
    *, layers: int, hidden: int, inner: int, heads: int, kv_heads: int, width: int, vocab: int
) -> Shapes:
    """Tensors of Llama; Gemma's and Qwen's add norms of their own."""
    shapes: Shapes = {"token_embd.weight": (vocab, hidden), "output_norm.weight": (hidden,)}
    for index in range(layers):
        block = f"blk.{index}."
        shapes |= {
            f"{block}attn_norm.weight": (hidden,),
            f"{block}attn_q.weight": (heads * width, hidden),
            f"{block}attn_k.weight": (kv_heads * width, hidden),
            f"{block}attn_v.weight": (kv_heads * width, hidden),
            f"{block}attn_output.weight": (hidden, heads * width),
            f"{block}ffn_norm.weight": (hidden,),
            f"{block}ffn_gate.weight": (inner, hidden),
            f"{block}ffn_up.weight": (inner, hidden),
            f"{block}ffn_down.weight": (hidden, inner),
        }
    return shapes


def with_norms(shapes: Shapes, layers: int, **sizes: int) -> Shapes:
    """With ``attn_q_norm=64`` and the like in every block."""
    added = {
        f"blk.{index}.{name}.weight": (size,)
        for index in range(layers)
        for name, size in sizes.items()
    }
    return {**shapes, **added}
