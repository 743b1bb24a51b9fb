"""What a runtime takes besides weights and cache: logits, activations, and the device's context.

Every figure is a range: what is surely there, and what may come on top. llama.cpp's was fitted to
the buffers that build b11549 reserves (``sched_reserve``), the others follow their sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.memory._cache import layer_nbytes

if TYPE_CHECKING:
    from qconv.memory._cache import Setting
    from qconv.memory._shape import ModelShape

_MIB = 1 << 20

#: CUDA's own, with kernels and cuBLAS' workspace: between an idle context and one of a process
#: that has loaded most of torch's kernels. Seen: 617 MiB (H100, torch 2.11 with CUDA 13).
CONTEXT = (300 * _MIB, 700 * _MIB)

#: What a process' allocator and threads hold on to, beside what is asked of them.
_PROCESS = (0, 32 * _MIB)

#: vLLM's graphs of the forward pass for every batch size that it captures.
_VLLM_GRAPHS = (0, 600 * _MIB)

#: Sequences of which vLLM's first run samples: ``max_num_seqs``.
_VLLM_SEQUENCES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Working:
    """Bytes beside weights and cache, each at least and at most."""

    logits: tuple[int, int]
    activations: tuple[int, int]
    device_context: tuple[int, int]


def working_nbytes(shape: ModelShape, setting: Setting, device: str) -> Working:
    """What the runtime of ``setting`` takes. device: ``cuda`` or ``cpu``."""
    logits, activations = _RUNTIMES[setting.runtime](shape, setting, device)
    context = CONTEXT if device == "cuda" else _PROCESS
    if setting.runtime == "vllm" and device == "cuda":
        context = (context[0] + _VLLM_GRAPHS[0], context[1] + _VLLM_GRAPHS[1])
    return Working(logits=logits, activations=activations, device_context=context)


Pair = tuple[tuple[int, int], tuple[int, int]]


def _llama(shape: ModelShape, setting: Setting, device: str) -> Pair:
    """The graph's buffers, in float32: logits of a whole step, or a layer, whichever is larger.

    Keys and values are masked by a float16 per cell and token. Buffers are used again and again,
    so that of a layer only what its logits leave no room for comes on top.
    """
    step = min(setting.step, setting.context)
    logits = 4 * step * shape.vocab
    state = 4 * step * shape.hidden
    mask = 2 * step * -(-setting.context // 256) * 256
    masks = mask * (2 if any(getattr(cache, "window", None) for cache in shape.caches) else 1)
    layer = 6 * state + 4 * step * 2 * (shape.inner + shape.heads)
    least = logits + state
    most = max(logits + 6 * state, layer) + masks
    # CUDA has a pool of its own for quantized inputs; the CPU's graph holds its inputs, too
    most += 4 * step * shape.inner if device == "cuda" else 2 * state
    output = 4 * setting.batch * shape.vocab
    return (logits, logits + output), (least - logits, most - logits)


def _vllm(shape: ModelShape, setting: Setting, device: str) -> Pair:
    """A first run of as many tokens as it ever computes at once, in 16 bits."""
    del device
    rows = min(_VLLM_SEQUENCES, max(setting.batch, 1) * setting.context)
    logits = (4 * setting.batch * shape.vocab, 3 * 4 * rows * shape.vocab)
    least = 2 * setting.step * (2 * shape.hidden + shape.inner)
    most = 2 * setting.step * (6 * shape.hidden + 3 * shape.inner + 3 * shape.heads)
    return logits, (least, most)


def _torch(shape: ModelShape, setting: Setting, device: str) -> Pair:
    """A step's states and the widest intermediates, in 16 bits on a GPU and in 32 without.

    ``generate`` computes logits of the last token only.
    """
    value = 2 if device == "cuda" else 4
    step = min(setting.step, setting.context) * setting.batch
    logits = value * setting.batch * shape.vocab
    least = value * step * (2 * shape.hidden + shape.inner)
    most = value * step * (8 * shape.hidden + 4 * shape.inner + 4 * shape.heads)
    return (logits, 3 * 4 * setting.batch * shape.vocab), (least, most)


def _packed(shape: ModelShape, setting: Setting, device: str) -> Pair:
    """As :func:`_torch`; besides, a linear's codes and values, and what attention makes of a layer.

    Decoding takes up to 12 bytes per weight: codes, values, and what is between them. Keys and
    values of a layer are there twice while they grow, and once per head where heads share them.
    """
    logits, (least, most) = _torch(shape, setting, device)
    linear = shape.hidden * max(shape.inner, shape.heads)
    value = 2 if device == "cuda" else 4
    expanded = 2 * value * setting.batch * setting.context * shape.heads
    grown = max((2 * sum(layer) for layer in layer_nbytes(shape, setting)), default=0)
    mask = value * setting.batch * setting.step * setting.context
    return logits, (least, most + 12 * linear + expanded + grown + 2 * mask)


def _onnx(shape: ModelShape, setting: Setting, device: str) -> Pair:
    """In the graph's float32; logits of every token that is given, a prompt at once at worst.

    Attention is plain operators: scores of every head and pair of tokens, and their softmax.
    """
    del device
    tokens = setting.batch * setting.context
    logits = (4 * setting.batch * shape.vocab, 4 * tokens * shape.vocab)
    least = 4 * setting.batch * (2 * shape.hidden + shape.inner)
    # onnxruntime plans its buffers per run, and its arena grows by doubling
    most = 2 * 4 * tokens * (4 * shape.hidden + 2 * shape.inner + 2 * shape.heads)
    most += 2 * 4 * tokens * setting.context * shape.query_heads
    return logits, (least, most)


_RUNTIMES: Mapping[str, Callable[[ModelShape, Setting, str], Pair]] = {
    "llama.cpp": _llama,
    "vllm": _vllm,
    "transformers": _torch,
    "onnxruntime": _onnx,
    "torch": _packed,
}
