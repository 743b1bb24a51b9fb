"""Whether a model fits a device, and what would make it fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from qconv.errors import UnsupportedGrid
from qconv.memory._cache import layer_nbytes
from qconv.memory._predict import CACHES, STEPS, predict
from qconv.memory._working import working_nbytes

if TYPE_CHECKING:
    from qconv.memory._cache import Setting
    from qconv.memory._result import VramResult
    from qconv.memory._shape import ModelShape
    from qconv.memory._weights import Weights

_MIB = 1 << 20

#: Left free: for the display, other programs, and what a prediction misses.
_HEADROOM, _HEADROOM_SHARE = 512 * _MIB, 0.05

#: vLLM takes this share of the device and no more: ``gpu_memory_utilization``.
_VLLM_SHARE = 0.9

#: A context shorter than this serves nobody.
_SHORTEST = 256

#: Where a model sets no limit, contexts are looked for up to here.
_LONGEST = 1 << 24

#: The cache of half the size.
_HALVED = {"llama.cpp": "q8_0", "vllm": "fp8"}

Answer = Literal["fits", "smaller_cache", "shorter_context", "offload", "no"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether it fits as asked, and every way that makes it fit.

    answer: ``fits``, or the way that gives up least: a cache in 8 bits, a shorter context, layers
        in the host's memory; or ``no``
    budget: bytes of the device that may be used
    max_context: the longest context that fits, with the cache asked for; None when none does
    cache_type: of half the size, with which it fits as asked; None where none does
    gpu_layers: how many of llama.cpp's ``-ngl`` layers fit as asked; None where that is not done
    layers: how many there are, with the output as one
    """

    answer: Answer
    budget: int
    max_context: int | None
    cache_type: str | None
    gpu_layers: int | None
    layers: int


def budget_of(vram: int, runtime: str) -> int:
    """Bytes of a device of ``vram`` bytes that a model may take."""
    left = vram - max(_HEADROOM, int(vram * _HEADROOM_SHARE))
    return max(0, min(left, int(vram * _VLLM_SHARE)) if runtime == "vllm" else left)


def judge(
    shape: ModelShape, weights: Weights, setting: Setting, vram: int
) -> tuple[VramResult, Verdict]:
    """The prediction as asked, and whether that fits ``vram`` bytes.

    Raises:
        UnsupportedGrid: the cache type does not suit the model's keys.
    """
    asked = predict(shape, weights, setting)
    budget = budget_of(vram, setting.runtime)
    longest = _longest(shape, weights, setting, budget)
    halved = gpu_layers = None
    if asked.high > budget:
        halved = _halved(shape, weights, setting, budget)
        gpu_layers = _gpu_layers(shape, weights, setting, budget)
    return asked, Verdict(
        answer=_answer(asked.high <= budget, halved, longest, gpu_layers),
        budget=budget,
        max_context=longest,
        cache_type=halved,
        gpu_layers=gpu_layers,
        layers=len(shape.layers) + 1,
    )


def _answer(
    fits: bool,  # noqa: FBT001 - one of four answers
    halved: str | None,
    longest: int | None,
    gpu_layers: int | None,
) -> Answer:
    if fits:
        return "fits"
    if halved:
        return "smaller_cache"
    if longest:
        return "shorter_context"
    return "offload" if gpu_layers else "no"


def with_context(setting: Setting, context: int) -> Setting:
    """The same setting, of another context; runtimes that read a prompt at once read all of it."""
    whole = STEPS[setting.runtime] is None
    return replace(setting, context=context, step=context if whole else setting.step)


def _longest(shape: ModelShape, weights: Weights, setting: Setting, budget: int) -> int | None:
    """The longest context that fits, found by halving: more tokens never take less.

    Up to what the model was made for, or what is asked.
    """

    def fits(context: int) -> bool:
        return predict(shape, weights, with_context(setting, context)).high <= budget

    least, most = _SHORTEST, max(setting.context, shape.context_length or _LONGEST)
    if most < least or not fits(least):
        return most if most < least and fits(most) else None
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least


def _halved(shape: ModelShape, weights: Weights, setting: Setting, budget: int) -> str | None:
    smaller = _HALVED.get(setting.runtime)
    if smaller is None or setting.cache_type != CACHES[setting.runtime][0]:
        return None
    try:
        high = predict(shape, weights, replace(setting, cache_type=smaller)).high
    except UnsupportedGrid:
        return None
    return smaller if high <= budget else None


def _gpu_layers(shape: ModelShape, weights: Weights, setting: Setting, budget: int) -> int | None:
    """The most layers that fit, as llama.cpp takes them: the output first, then from the last.

    Keys and values go where their layer is.
    """
    if setting.runtime != "llama.cpp":
        return None
    working = working_nbytes(shape, setting, "cuda")
    used = working.logits[1] + working.activations[1] + working.device_context[1]
    blocks = weights.layers(len(shape.layers))
    caches = [sum(each) for each in layer_nbytes(shape, setting)] + [0]
    count = 0
    for weight, cache in zip(reversed(blocks), reversed(caches), strict=True):
        used += weight + cache
        if used > budget:
            break
        count += 1
    return count if count > 1 else None
