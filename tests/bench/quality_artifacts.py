"""Artifacts of any converter, decoded to float32 under the source's names by code of its own.

Nothing of qconv decodes here: what a benchmark measures must not pass through the code it judges.
Read: GGUF (decoded by the `gguf` library) of Llama models, and folders of safetensors that hold
plain floats, compressed-tensors (`pack-quantized`, `int-quantized`), GPTQ (v1, v2) or AWQ GEMM.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors import safe_open

State = dict[str, torch.Tensor]
#: Weights of the linear layers inside blocks: what converters quantize, and what bits are told of.
BLOCK_LINEAR = re.compile(r"\.\d+\..*proj\.weight$")
#: Metadata entry in which qconv's decoded checkpoints say what they stand for.
BENCH_METADATA = "qconv.bench"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A model's tensors as its runtime computes with them.

    state: float32 tensors by source name
    linear_bits: bits per weight of the linears inside blocks, as stored, with scales
    nbytes: of the tensor data and headers, on disk; of what it stands for where it is decoded
    activations: whether the runtime rounds the linears' inputs to int8, token by token
    """

    state: State = field(repr=False)
    linear_bits: float
    nbytes: int
    activations: bool = False


def open_artifact(path: Path, config: Mapping[str, Any]) -> Artifact:
    """Decode an artifact whole. config: the reference model's config.json."""
    if path.suffix == ".gguf":
        return _open_gguf(path, config)
    if not path.is_dir():
        raise SystemExit(f"{path} is neither a .gguf file nor a folder of safetensors")
    return _open_folder(path)


def hidden_size(path: Path) -> int:
    """Features of the hidden states of an artifact or model: what tells two models apart."""
    if path.is_dir():
        return int(json.loads((path / "config.json").read_text(encoding="utf-8"))["hidden_size"])
    fields = GGUFReader(path).fields
    architecture = fields["general.architecture"].contents()
    return int(fields[f"{architecture}.embedding_length"].contents())


# --- GGUF -----------------------------------------------------------------------------------------

GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
GGUF_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def source_name(gguf_name: str) -> str | None:
    """The name in a Hugging Face Llama; None for tensors that one has not (`rope_freqs`)."""
    stem, _, kind = gguf_name.rpartition(".")
    if match := re.fullmatch(r"blk\.(\d+)\.(.+)", stem):
        inner = GGUF_BLOCK_NAMES.get(match[2])
        return inner and f"model.layers.{match[1]}.{inner}.{kind}"
    outer = GGUF_NAMES.get(stem)
    return outer and f"{outer}.{kind}"


def rotary_undone(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows from llama.cpp's order (pairs side by side) to Hugging Face's (halves apart)."""
    rows = weight.shape[0]
    pairs = weight.reshape(heads, rows // heads // 2, 2, -1)  # (heads, pairs, 2, in)
    return pairs.transpose(1, 2).reshape(weight.shape)


def _open_gguf(path: Path, config: Mapping[str, Any]) -> Artifact:
    reader = GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    if architecture != "llama":
        raise SystemExit(f"{path}: row order and names of {architecture!r} are not known here")
    heads = config["num_attention_heads"]
    heads_of = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads}
    state: State = {}
    bits = _Bits()
    for tensor in reader.tensors:
        name = source_name(tensor.name)
        if name is None:
            continue
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        values = values.reshape(tuple(int(size) for size in reversed(tensor.shape)))
        if turned := heads_of.get(name.split(".")[-2]):
            values = rotary_undone(values, turned)
        state[name] = values
        bits.add(name, int(tensor.n_bytes), values.numel())
    return Artifact(state=state, linear_bits=bits.per_weight, nbytes=path.stat().st_size)


class _Bits:
    """Bits per weight of the linears inside blocks, added up."""

    def __init__(self) -> None:
        self.nbytes, self.weights = 0, 0

    def add(self, name: str, nbytes: int, weights: int) -> None:
        if BLOCK_LINEAR.search(name):
            self.nbytes += nbytes
            self.weights += weights

    @property
    def per_weight(self) -> float:
        return 8 * self.nbytes / max(1, self.weights)


# --- folders of safetensors -----------------------------------------------------------------------


class Tensors:
    """All tensors of a folder, read when asked for."""

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise SystemExit(f"{folder} holds no .safetensors file")
        self._files = {str(file): safe_open(file, "pt") for file in files}
        self._place = {
            name: key
            for key, file in self._files.items()
            for name in file.keys()  # noqa: SIM118
        }
        self.metadata: dict[str, str] = {}
        for file in self._files.values():
            self.metadata.update(file.metadata() or {})
        self.nbytes = sum(file.stat().st_size for file in files)

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._files[self._place[name]].get_tensor(name)


#: Decodes the linear `prefix` ("model.layers.0.mlp.up_proj") to (out, in) float32.
Decode = Callable[[Mapping[str, torch.Tensor], str], torch.Tensor]


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes of `bits` in int32 words along the last dimension, the lowest bits first: int64."""
    if 32 % bits:
        raise SystemExit(f"codes of {bits} bits straddle words; only 2, 4 and 8 are read here")
    shifts = torch.arange(0, 32, bits)
    codes = (words.long()[..., None] >> shifts) & ((1 << bits) - 1)
    return codes.flatten(-2)


def _by_group(codes: torch.Tensor, zero: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Undo the rounding: scale * (code - zero), each (out, groups): (out, in) float32."""
    grouped = codes.float().view(*scale.shape, -1)  # (out, groups, size)
    return ((grouped - zero.float()[..., None]) * scale.float()[..., None]).view(codes.shape)


def packed_compressed(tensors: Mapping[str, torch.Tensor], prefix: str) -> torch.Tensor:
    """compressed-tensors `pack-quantized`: codes along `in`, zero-points along `out`."""
    rows, columns = tensors[f"{prefix}.weight_shape"].tolist()
    words = tensors[f"{prefix}.weight_packed"]
    bits = words.shape[1] * 32 // columns
    scale = tensors[f"{prefix}.weight_scale"]
    codes = unpack(words, bits)[:, :columns]
    zero = torch.full(scale.shape, 1 << (bits - 1))
    if f"{prefix}.weight_zero_point" in tensors:
        packed = tensors[f"{prefix}.weight_zero_point"]  # (out * bits / 32, groups)
        zero = unpack(packed.T.contiguous(), bits).T[:rows]
    return _by_group(codes, zero, scale)


def int_compressed(tensors: Mapping[str, torch.Tensor], prefix: str) -> torch.Tensor:
    """compressed-tensors `int-quantized`: signed codes as they are, a scale for each row."""
    codes, scale = tensors[f"{prefix}.weight"].float(), tensors[f"{prefix}.weight_scale"].float()
    if f"{prefix}.weight_zero_point" in tensors:
        codes = codes - tensors[f"{prefix}.weight_zero_point"].float()
    return codes * scale


def gptq(tensors: Mapping[str, torch.Tensor], prefix: str, *, borrowed: int = 1) -> torch.Tensor:
    """GPTQ: codes along `in`, zero-points along `out`. borrowed: v1 stores them less one."""
    words, scale = tensors[f"{prefix}.qweight"], tensors[f"{prefix}.scales"].float()
    packed = tensors[f"{prefix}.qzeros"]
    bits = packed.shape[1] * 32 // scale.shape[1]
    codes = unpack(words.T.contiguous(), bits).float()  # (out, in)
    zero = ((unpack(packed, bits) + borrowed) & ((1 << bits) - 1)).float()  # (groups, out)
    columns, groups = codes.shape[1], scale.shape[0]
    group = torch.arange(columns) // -(-columns // groups)
    if f"{prefix}.g_idx" in tensors:
        group = tensors[f"{prefix}.g_idx"].long()
    return (codes - zero[group].T) * scale[group].T


#: Logical columns of the eight nibbles of a word, lowest bits first.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def awq_gemm(tensors: Mapping[str, torch.Tensor], prefix: str) -> torch.Tensor:
    """AWQ GEMM: codes and zero-points along `out`, eight nibbles in AWQ_ORDER."""
    place = torch.tensor(AWQ_ORDER).argsort()

    def logical(words: torch.Tensor) -> torch.Tensor:
        return unpack(words, 4).view(*words.shape, 8)[..., place].flatten(-2)

    codes = logical(tensors[f"{prefix}.qweight"])  # (in, out)
    scale = tensors[f"{prefix}.scales"]  # (groups, out)
    zero = logical(tensors[f"{prefix}.qzeros"])
    return _by_group(codes.T.contiguous(), zero.T, scale.T)


def _decoder(folder: Path, settings: Mapping[str, Any]) -> tuple[str, Decode]:
    """The tensor that marks a quantized linear, and how one is decoded."""
    method = settings.get("quant_method")
    if method == "gptq":
        v2 = settings.get("checkpoint_format") == "gptq_v2"
        return "qweight", lambda tensors, prefix: gptq(tensors, prefix, borrowed=0 if v2 else 1)
    if method == "awq" and settings.get("version", "gemm").lower() == "gemm":
        return "qweight", awq_gemm
    kind = settings.get("format")
    if method == "compressed-tensors" and kind == "pack-quantized":
        return "weight_packed", packed_compressed
    if method == "compressed-tensors" and kind == "int-quantized":
        return "weight_scale", int_compressed
    raise SystemExit(f"{folder}: quantized as {method!r}, {kind!r}: not read here")


def _open_folder(folder: Path) -> Artifact:
    tensors = Tensors(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = config.get("quantization_config")
    if settings is None:
        return _plain(tensors)
    mark, decode = _decoder(folder, settings)
    prefixes = [name.removesuffix(f".{mark}") for name in tensors if name.endswith(f".{mark}")]
    parts = {prefix: [n for n in tensors if n.startswith(f"{prefix}.")] for prefix in prefixes}
    state: State = {}
    bits = _Bits()
    for prefix, names in parts.items():
        weight = decode(_Part(tensors), prefix)
        state[f"{prefix}.weight"] = weight
        stored = [tensors[name] for name in names if not name.endswith((".weight_shape", ".bias"))]
        bits.add(f"{prefix}.weight", sum(each.nbytes for each in stored), weight.numel())
    used = {name for names in parts.values() for name in names if not name.endswith(".bias")}
    state |= {name: tensors[name].float() for name in tensors if name not in used}
    groups = settings.get("config_groups", {}).values()
    rounds = any(group.get("input_activations") for group in groups)
    return Artifact(
        state=state, linear_bits=bits.per_weight, nbytes=tensors.nbytes, activations=rounds
    )


class _Part(Mapping[str, torch.Tensor]):
    """Tensors as the mapping that decoders take."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(list(self._tensors))


def _plain(tensors: Tensors) -> Artifact:
    """Floats as they are; what they stand for, where the bench's own backend wrote them."""
    state = {name: tensors[name].float() for name in tensors}
    if stands_for := tensors.metadata.get(BENCH_METADATA):
        return Artifact(state=state, **json.loads(stands_for))
    bits = _Bits()
    for name in tensors:
        bits.add(name, tensors[name].nbytes, tensors[name].numel())
    return Artifact(state=state, linear_bits=bits.per_weight, nbytes=tensors.nbytes)
