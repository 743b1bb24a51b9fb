"""Writes checkpoints for tests: sound ones with the formats' libraries, hostile ones by hand."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def tensors() -> dict[str, torch.Tensor]:
    """A few tensors of different types and shapes."""
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(6, 8, generator=generator),
        "b.weight": torch.randn(4, 2, 6, generator=generator).to(torch.bfloat16),
        "c.bias": torch.randn(5, generator=generator).to(torch.float16),
        "d.scalar": torch.tensor(3, dtype=torch.int64),
        "e.empty": torch.zeros(0, 4),
    }


def hf_directory(directory: Path, values: Mapping[str, torch.Tensor] | None = None) -> Path:
    """A Hugging Face directory with one safetensors file."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(dict(values or tensors()), directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory


def sharded_directory(
    directory: Path, shards: Mapping[str, Mapping[str, torch.Tensor]], index: Any = None
) -> Path:
    """A directory of shards; the index is right unless given."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, values in shards.items():
        save_file(dict(values), directory / name)
    weight_map = {tensor: name for name, values in shards.items() for tensor in values}
    stored = {"metadata": {}, "weight_map": weight_map} if index is None else index
    (directory / "model.safetensors.index.json").write_text(json.dumps(stored))
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    """A safetensors file by hand; a header of bytes is taken as it is."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def beside_config(directory: Path, content: bytes, name: str = "x.safetensors") -> Path:
    """A file with these bytes and a config.json beside it."""
    (directory / "config.json").write_text(json.dumps(CONFIG))
    path = directory / name
    path.write_bytes(content)
    return path


def quantized_gguf(path: Path, **metadata: Any) -> dict[str, np.ndarray]:
    """A sound GGUF file of five types; returns the float values that its tensors decode to."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "</s>", "größe"])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.0, 2.0])
    writer.add_uint32("tokenizer.ggml.bos_token_id", 0)
    writer.add_bool("tokenizer.ggml.add_bos_token", val=True)
    for key, value in metadata.items():
        writer.add_string(key, value)
    values: dict[str, np.ndarray] = {}
    source = np.random.default_rng(0).standard_normal((6, 64), dtype=np.float32)
    for name, kind in [("a", "F32"), ("b", "F16"), ("c", "BF16"), ("d", "Q8_0"), ("e", "Q4_0")]:
        quantization = gguf.GGMLQuantizationType[kind]
        stored = gguf.quants.quantize(source, quantization)
        writer.add_tensor(f"{name}.weight", stored, raw_dtype=quantization)
        values[f"{name}.weight"] = gguf.quants.dequantize(stored, quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def split_gguf(directory: Path) -> list[Path]:
    """Three shards by gguf's own splitter, of one tensor each."""
    writer = gguf.GGUFWriter(directory / "tiny.gguf", "llama", split_max_tensors=1)
    for name in "abc":
        writer.add_tensor(f"{name}.weight", np.full((2, 3), ord(name), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(directory.glob("tiny-*.gguf"))


def text(value: str | bytes) -> bytes:
    """A GGUF string."""
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, payload: bytes) -> bytes:
    """A GGUF key-value pair."""
    return text(key) + struct.pack("<I", kind) + payload


def listed(
    name: str | bytes = "w", sizes: Iterable[int] = (4, 2), kind: int = 0, offset: int = 0
) -> bytes:
    """A GGUF tensor as the header lists it, sizes innermost first."""
    sizes = list(sizes)
    shape = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


def gguf_bytes(
    pairs: Iterable[bytes] = (),
    tensor_list: Iterable[bytes] = (),
    data: bytes = bytes(32),
    *,
    version: int = 3,
    n_tensors: int | None = None,
    n_pairs: int | None = None,
) -> bytes:
    """A GGUF file by hand, aligned to 32."""
    pairs, tensor_list = list(pairs), list(tensor_list)
    head = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(tensor_list) if n_tensors is None else n_tensors,
        len(pairs) if n_pairs is None else n_pairs,
    )
    head += b"".join(pairs) + b"".join(tensor_list)
    return head + bytes(-len(head) % 32) + data
