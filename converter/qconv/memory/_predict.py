"""Memory of a model on a device, predicted without one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.errors import UsageError
from qconv.memory._cache import RUNTIMES, Setting, cache_nbytes
from qconv.memory._result import VramResult
from qconv.memory._working import working_nbytes

if TYPE_CHECKING:
    from qconv.memory._shape import ModelShape
    from qconv.memory._weights import Weights

#: Tokens that each runtime computes at a time while it reads a prompt: llama.cpp's ``-ub``, vLLM's
#: ``max_num_batched_tokens``; None: the whole prompt.
STEPS: dict[str, int | None] = {
    "llama.cpp": 512,
    "vllm": 2048,
    "transformers": None,
    "onnxruntime": None,
    "torch": 512,
}

#: Cache types that each runtime knows.
CACHES = {
    "llama.cpp": ("f16", "f32", "q8_0", "q4_0"),
    "vllm": ("f16", "fp8"),
    "transformers": ("f16", "f32"),
    "onnxruntime": ("f32", "f16"),
    "torch": ("f16", "f32"),
}


def make_setting(
    runtime: str,
    *,
    context: int,
    batch: int = 1,
    cache_type: str | None = None,
    step: int | None = None,
) -> Setting:
    """A setting that the runtime knows. cache_type, step: None for its default.

    Raises:
        UsageError: an unknown runtime or cache type, or no tokens.
    """
    if runtime not in RUNTIMES:
        raise UsageError(f"runtime {runtime!r} is unknown; choose one of {', '.join(RUNTIMES)}")
    if context < 1 or batch < 1:
        raise UsageError(f"context {context}, batch {batch}: at least one token of one sequence")
    known = CACHES[runtime]
    if cache_type is not None and cache_type not in known:
        raise UsageError(
            f"{runtime} has no cache of type {cache_type!r}; it has {', '.join(known)}"
        )
    return Setting(
        runtime=runtime,
        context=context,
        batch=batch,
        cache_type=cache_type or known[0],
        step=step or STEPS[runtime] or context,
    )


def predict(
    shape: ModelShape, weights: Weights, setting: Setting, *, device: str = "cuda"
) -> VramResult:
    """What serving the model takes.

    device: ``cuda``; ``cpu`` leaves the device's context out and counts in 32 bits where CPUs do

    Raises:
        UnsupportedGrid: the cache type does not suit the model's keys.
    """
    working = working_nbytes(shape, setting, device)
    held = weights.on_device(setting.runtime, device)
    cache = cache_nbytes(shape, setting)
    copies = 2 if setting.runtime == "onnxruntime" else 1
    ranges = {
        "weights": (held, held),
        "kv_cache": (cache, copies * cache),
        "logits": working.logits,
        "activations": working.activations,
        "device_context": working.device_context,
    }
    return VramResult(
        low=sum(least for least, _ in ranges.values()),
        high=sum(most for _, most in ranges.values()),
        context=setting.context,
        batch=setting.batch,
        cache_type=setting.cache_type,
        runtime=setting.runtime,
        parts={name: most for name, (_, most) in ranges.items()},
        device=device,
        assumptions=(*_assumed(setting, device), *shape.notes),
    )


def _assumed(setting: Setting, device: str) -> list[str]:
    asked = f"{setting.batch} x {setting.context} tokens, cache in {setting.cache_type}"
    lines = [f"{asked}, {setting.runtime}, {min(setting.step, setting.context)} at a time"]
    if setting.runtime == "llama.cpp":
        lines.append("flash attention; full offload, embeddings on the host; --swa-full off")
    if setting.runtime == "vllm":
        lines.append(
            "CUDA graphs up to 600 MiB; vLLM fills its share of the device "
            "(gpu_memory_utilization) with cache, whatever the model needs"
        )
    if setting.runtime == "torch":
        lines.append("weights as stored, decoded in float32 one linear at a time")
    if setting.runtime == "transformers":
        lines.append("sdpa attention; a dynamic cache; logits of the last token")
    if setting.runtime == "onnxruntime":
        lines.append(
            "at most: a whole prompt at once, with keys and values of before and after side by side"
        )
    if device == "cuda":
        lines.append("CUDA context of 300 to 700 MiB; nothing else on the device")
    return lines
