"""Bytes of keys, values and states, layer by layer, as each runtime allocates them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from qconv.errors import UnsupportedGrid, UsageError
from qconv.memory._shape import Attention, Latent, State

if TYPE_CHECKING:
    from qconv.memory._shape import Cache, ModelShape

#: Bytes of a value. Blocks of 32 with a scale of two bytes: ``ggml-common.h``.
CACHE_TYPES: Mapping[str, Fraction] = {
    "f32": Fraction(4),
    "f16": Fraction(2),
    "q8_0": Fraction(34, 32),
    "q4_0": Fraction(18, 32),
    "fp8": Fraction(1),
}

_BLOCKED = ("q8_0", "q4_0")

#: llama.cpp's cells come in multiples of so many: ``GGML_PAD`` in ``llama-context.cpp`` and
#: ``llama-kv-cache-iswa.cpp``.
_PAD = 256

#: Families whose windows llama.cpp does not know: it keeps all tokens, and attends to all.
_FULL = frozenset(
    {"mistral", "mixtral", "ministral", "phi3", "phimoe", "starcoder2", "qwen2", "qwen2_moe"}
    | {"qwen3", "qwen3_moe"}
)

#: Runtimes that keep the latent vector; transformers keeps the keys and values made of it.
_LATENT = frozenset({"llama.cpp", "vllm"})

#: Where modules of transformers keep states.
_TORCH = frozenset({"transformers", "torch"})

#: Tokens of a block of vLLM's cache: ``CacheConfig.block_size`` on CUDA.
_VLLM_BLOCK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is asked of a runtime.

    context: tokens of a sequence
    batch: sequences at a time, each with a cache of its own
    step: tokens computed at a time while the prompt is read (llama.cpp's ``-ub``)
    """

    runtime: str
    context: int
    batch: int = 1
    cache_type: str = "f16"
    step: int = 512


def cache_nbytes(shape: ModelShape, setting: Setting) -> int:
    """Bytes that all layers keep for ``setting.batch`` sequences.

    Raises:
        UnsupportedGrid: a blocked cache type does not divide a layer's keys or values.
        UsageError: the cache type is unknown.
    """
    return sum(sum(layer) for layer in layer_nbytes(shape, setting))


def layer_nbytes(shape: ModelShape, setting: Setting) -> list[list[int]]:
    """Bytes of every cache of every layer; raises as :func:`cache_nbytes` does."""
    if setting.cache_type not in CACHE_TYPES:
        raise UsageError(
            f"cache type {setting.cache_type!r} is unknown; known are {', '.join(CACHE_TYPES)}"
        )
    return [[_nbytes(cache, shape.family, setting) for cache in layer] for layer in shape.layers]


def _nbytes(cache: Cache, family: str, setting: Setting) -> int:
    if isinstance(cache, State):
        return setting.batch * _state_nbytes(cache, setting)
    if isinstance(cache, Attention) and setting.runtime == "llama.cpp" and family in _FULL:
        cache = replace(cache, window=None)
    cells = _CELLS[setting.runtime](cache, setting)
    widths = _widths(cache, setting.runtime)
    return setting.batch * sum(_row_nbytes(width, setting.cache_type) * cells for width in widths)


def _widths(cache: Attention | Latent, runtime: str) -> tuple[int, ...]:
    if isinstance(cache, Attention):
        return cache.keys, cache.values
    return (cache.width if runtime in _LATENT else cache.expanded,)


def _row_nbytes(width: int, cache_type: str) -> int:
    if cache_type in _BLOCKED and width % 32:
        raise UnsupportedGrid(
            f"cache type {cache_type}: {width} keys or values of a token are not a multiple of its "
            "block of 32; use --cache f16"
        )
    nbytes = width * CACHE_TYPES[cache_type]
    return -(-nbytes.numerator // nbytes.denominator)


def _state_nbytes(state: State, setting: Setting) -> int:
    """In float32, whatever the cache type; all but transformers drop the oldest input."""
    kept = state.kernel if setting.runtime in _TORCH else max(0, state.kernel - 1)
    return 4 * (state.channels * kept + state.values)


def _window(cache: Attention | Latent) -> int | None:
    return cache.window if isinstance(cache, Attention) else None


def _llama_cells(cache: Attention | Latent, setting: Setting) -> int:
    window, context = _window(cache), _padded(setting.context, _PAD)
    return context if window is None else _padded(min(context, window + setting.step), _PAD)


def _vllm_cells(cache: Attention | Latent, setting: Setting) -> int:
    """``SlidingWindowSpec``: a window and what is computed at a time, and a block not aligned."""
    window, context = _window(cache), _padded(setting.context, _VLLM_BLOCK)
    if window is None:
        return context
    cells = min(setting.context, window - 1 + setting.step)
    return min(context, _padded(cells, _VLLM_BLOCK) + _VLLM_BLOCK)


def _torch_cells(cache: Attention | Latent, setting: Setting) -> int:
    """Transformers keeps what the next token sees beside itself: ``DynamicSlidingWindowLayer``."""
    window = _window(cache)
    return setting.context if window is None else min(setting.context, window - 1 + setting.step)


def _onnx_cells(_: Attention | Latent, setting: Setting) -> int:
    """The graph gives keys and values of all tokens back, whatever the window."""
    return setting.context


def _padded(count: int, to: int) -> int:
    return -(-count // to) * to


_CELLS: Mapping[str, Callable[[Attention | Latent, Setting], int]] = {
    "llama.cpp": _llama_cells,
    "vllm": _vllm_cells,
    "transformers": _torch_cells,
    "onnxruntime": _onnx_cells,
    "torch": _torch_cells,
}

#: The runtimes whose memory can be predicted; ``torch`` is qconv's own run, which measures.
RUNTIMES = tuple(_CELLS)
