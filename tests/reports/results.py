"""Validations made up for the tests of reports."""

from __future__ import annotations

from typing import Any

from qconv.validation import (
    ArtifactResult,
    BlockResult,
    GateResult,
    LogitsResult,
    RuntimeResult,
    Spread,
    TensorResult,
    TextSample,
    Validation,
    VramResult,
)

#: What a hostile file may call its tensors.
HOSTILE = "</title><script>alert('x')</script><img src=x onerror=\"y\"> & \x00\x1b[31m \u202eevil"


def logits(kl: float = 0.01, scored: str = "decoded weights", **changes: Any) -> LogitsResult:
    values = {
        "windows": 4,
        "tokens": 768,
        "kl": Spread(mean=kl, median=kl / 2, p90=kl * 2, p99=kl * 5, p999=kl * 8, max=kl * 9),
        "same_top1": 0.97,
        "top5_overlap": 0.95,
        "perplexity": 20.5,
        "reference_perplexity": 20.25,
        "perplexity_ratio": 20.5 / 20.25,
        "ratio_interval": (1.001, 1.022),
        "rms_probability": 0.012,
        "window_kl": (kl, kl),
    }
    return LogitsResult(scored=scored, **{**values, **changes})


def gate(status: str = "pass", value: float | None = 0.01, **changes: Any) -> GateResult:
    values: dict[str, Any] = {"name": "kl", "limit": 0.06, "relation": "<=", "why": "the default"}
    return GateResult(status=status, value=value, **{**values, **changes})


def tensor(name: str, error: float | None = 0.01, **changes: Any) -> TensorResult:
    values: dict[str, Any] = {
        "shape": (64, 32),
        "grid": "Q4_K",
        "bits_per_weight": 4.5,
        "cosine": 0.9999,
    }
    return TensorResult(name=name, relative_error=error, **{**values, **changes})


def artifact(target: str = "gguf:q4_k_m", **changes: Any) -> ArtifactResult:
    values: dict[str, Any] = {
        "path": f"{target.partition(':')[2]}.gguf",
        "method": "rtn",
        "grid_class": "4-bit",
        "bytes": 100_000_000,
        "bits_per_weight": 4.9,
        "digests": {"model.gguf": "ab" * 32},
        "tensors": tuple(
            tensor(f"blk.{block}.{kind}.weight", 0.01 * (block + 1))
            for block in range(4)
            for kind in ("attn_q", "ffn_up")
        ),
        "blocks": tuple(
            BlockResult(name=f"blk.{block}", relative_error=0.02 * (block + 1))
            for block in range(4)
        ),
        "logits": logits(),
        "runtimes": (
            RuntimeResult(
                engine="llama.cpp",
                version="1.2",
                logits=logits(0.011, "llama.cpp 1.2"),
                against_decoded=logits(0.001, "llama.cpp 1.2"),
                seconds=3.5,
                peak_bytes=400_000_000,
            ),
        ),
        "vram": VramResult(
            low=900_000_000,
            high=1_000_000_000,
            context=8192,
            batch=1,
            cache_type="f16",
            runtime="llama.cpp",
            parts={"weights": 100_000_000, "kv_cache": 400_000_000, "device_context": 500_000_000},
        ),
        "gates": (gate(),),
        "status": "pass",
        "samples": (
            TextSample(
                prompt="The capital of France is",
                texts={"source": "Paris, a city", target: "Paris, a river"},
                seconds={"source": 1.0, target: 0.5},
            ),
        ),
    }
    return ArtifactResult(target=target, **{**values, **changes})


def validation(*artifacts: ArtifactResult, **changes: Any) -> Validation:
    values: dict[str, Any] = {
        "qconv_version": "0.1.0",
        "source": "toy",
        "source_digest": "cd" * 32,
        "settings": {"windows": 4, "gates": {"kl": 0.06}, "depth": None},
        "environment": {"python": "3.11", "machine": "x86_64"},
        "status": "pass",
        "command": "qconv validate q4_k_m.gguf --against toy",
    }
    return Validation(artifacts=artifacts, **{**values, **changes})
