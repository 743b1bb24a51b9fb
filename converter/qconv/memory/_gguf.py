"""The shape of a model from a GGUF file's metadata, with the layers that llama.cpp makes of it.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What no key says, but llama.cpp
holds in its code per architecture, is in tables here (``src/models/*.cpp``, ``llama-hparams.cpp``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qconv.errors import UnreadableInput, Unsupported
from qconv.memory._numbers import Numbers
from qconv.memory._shape import Attention, Cache, Latent, ModelShape, State

if TYPE_CHECKING:
    from qconv.plugin import TensorInfo

#: Architectures of which every n-th layer sees everything: n; the last of each n is the one.
_PERIODS = {
    "afmoe": 4,
    "cohere2": 4,
    "exaone4": 4,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "llama4": 4,
    "olmo2": 4,
    "plamo3": 8,
}

#: Llama 4's chunk is no key of the file.
_LLAMA4_WINDOW = 8192

#: Architectures whose file gives a window that llama.cpp does not use.
_UNUSED_WINDOW = frozenset({"llama", "phi3", "qwen2", "qwen2moe", "starcoder2"})

#: Gemma 3n's later layers use the cache of earlier ones; the number is in the code only.
_GEMMA3N_OWN = 20

#: Encoders, which keep nothing.
_ENCODERS = frozenset(
    {
        "bert",
        "modern-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "jina-bert-v2",
        "gemma-embedding",
        "neo-bert",
        "eurobert",
    }
)

_STATES_ONLY = frozenset({"mamba", "mamba2"})
_BOTH = frozenset({"falcon-h1"})
#: Every n-th layer attends, the others keep a state; n where the file does not say.
_INTERVAL = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}
_RWKV = frozenset({"rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})


def shape_of_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo], name: str = "the GGUF file"
) -> ModelShape:
    """The shape of the model in a GGUF file.

    metadata: plain values by key
    name: of the file, for messages

    Raises:
        UnreadableInput: a number is missing or is none.
        Unsupported: an encoder with a decoder.
    """
    family = str(metadata.get("general.architecture") or "")
    if family in ("t5", "t5encoder"):
        raise Unsupported(
            f"{name}: architecture {family!r} has an encoder and a decoder, whose memory is not "
            "predicted; run it and look, e.g. with nvidia-smi"
        )
    own = {
        key[len(family) + 1 :]: value
        for key, value in metadata.items()
        if key.startswith(f"{family}.")
    }
    numbers = Numbers(own, name)
    notes: list[str] = []
    hidden = numbers.need("embedding_length")
    layers = _layers(_Read(family=family, own=own, numbers=numbers, hidden=hidden), notes)
    heads = max(_heads(numbers, len(layers)), default=0)
    return ModelShape(
        family=family,
        layers=layers,
        hidden=hidden,
        vocab=0 if family in _ENCODERS else _vocab(numbers, metadata, tensors),
        inner=_inner(numbers, hidden),
        heads=max(1, heads * (numbers.find("attention.key_length") or hidden // max(1, heads))),
        context_length=numbers.find("context_length"),
        query_heads=heads,
        notes=tuple(notes),
    )


class _Read:
    """What is read over and over while layers are looked at."""

    def __init__(
        self, *, family: str, own: Mapping[str, Any], numbers: Numbers, hidden: int
    ) -> None:
        self.family, self.own, self.numbers, self.hidden = family, own, numbers, hidden
        count = numbers.need("block_count") - (numbers.find("nextn_predict_layers") or 0)
        if not 0 < count <= 4096:
            raise UnreadableInput(
                f"{family}.block_count {count}: models have between 1 and 4096 layers; "
                "get the file anew from the model's publisher"
            )
        self.count = count
        every = numbers.need("block_count")
        heads = _heads(numbers, every)
        kv_heads = numbers.per_layer(every, "attention.head_count_kv") or heads
        self.heads, self.kv_heads = heads[:count], kv_heads[:count]
        self.inner = (numbers.per_layer(every, "feed_forward_length") or [0] * every)[:count]
        self.key = numbers.find("attention.key_length")
        self.value = numbers.find("attention.value_length")

    def width(self, index: int) -> int:
        """Values of a head, where no key says it."""
        return self.hidden // max(1, self.heads[index])


def _heads(numbers: Numbers, count: int) -> list[int]:
    every = numbers.find("block_count") or count
    return numbers.per_layer(every, "attention.head_count") or [0] * every


def _layers(read: _Read, notes: list[str]) -> tuple[tuple[Cache, ...], ...]:
    if read.family in _ENCODERS:
        return ((),) * read.count
    windows = _windows(read, notes)
    own = _own_layers(read)
    made: list[tuple[Cache, ...]] = []
    for index in range(read.count):
        caches: list[Cache] = []
        state, attends = _keeps(read, index)
        if attends and index < own:
            caches.append(_attention(read, index, windows[index]))
        if state:
            caches.append(_state(read))
        made.append(tuple(caches))
    return tuple(made)


def _own_layers(read: _Read) -> int:
    """How many layers, from the first, have a cache of their own."""
    shared = read.numbers.find("attention.shared_kv_layers")
    if shared is not None:
        return read.count - shared
    return _GEMMA3N_OWN if read.family == "gemma3n" else read.count


def _keeps(read: _Read, index: int) -> tuple[bool, bool]:
    """Whether a layer keeps a state, and whether it attends."""
    if read.family in _STATES_ONLY or read.family in _RWKV:
        return True, False
    if read.family in _BOTH:
        return True, True
    if read.family in _INTERVAL:
        every = read.numbers.find("full_attention_interval") or _INTERVAL[read.family]
        return (index + 1) % every != 0, (index + 1) % every == 0
    recurrent = any(key.startswith(("ssm.", "shortconv.", "wkv.", "kda.")) for key in read.own)
    attends = read.kv_heads[index] > 0
    # Nemotron-H has layers that are feed-forward only, and those alone are not recurrent
    fed = read.family.startswith("nemotron_h") and read.inner[index] > 0
    return recurrent and not attends and not fed, attends


def _attention(read: _Read, index: int, window: int | None) -> Cache:
    numbers = read.numbers
    key, value = read.key, read.value
    if numbers.find("attention.kv_lora_rank") and numbers.find("attention.key_length_mla"):
        keys = numbers.need("attention.key_length_mla")
        values = numbers.find("attention.value_length_mla") or keys
        return Latent(
            width=read.kv_heads[index] * numbers.need("attention.key_length"),
            expanded=read.heads[index] * (keys + values),
        )
    if window is not None:
        key = numbers.find("attention.key_length_swa") or key
        value = numbers.find("attention.value_length_swa") or value
    heads, width = read.kv_heads[index], read.width(index)
    return Attention(keys=heads * (key or width), values=heads * (value or width), window=window)


def _windows(read: _Read, notes: list[str]) -> list[int | None]:
    window = read.numbers.find("attention.sliding_window")
    if read.family == "llama4" and window != 0:
        window = _LLAMA4_WINDOW
    if not window or read.family in _UNUSED_WINDOW:
        return [None] * read.count
    written = read.own.get("attention.sliding_window_pattern")
    if isinstance(written, Sequence) and not isinstance(written, str) and written:
        return [window if written[index % len(written)] else None for index in range(read.count)]
    if written is None and read.family not in _PERIODS:
        notes.append(
            f"sliding_window {window} is left out of account: which layers of architecture "
            f"{read.family!r} have it is not known"
        )
        return [None] * read.count
    every = _PERIODS.get(read.family, 1)
    if written is not None:
        every = max(1, read.numbers.whole("attention.sliding_window_pattern", written))
    return [window if index % every < every - 1 else None for index in range(read.count)]


def _state(read: _Read) -> State:
    """As ``llama_hparams::n_embd_r`` and ``n_embd_s`` count."""
    numbers, hidden = read.numbers, read.hidden
    head = numbers.find("wkv.head_size")
    if head:
        return State(values=hidden * head + (numbers.find("token_shift_count") or 2) * hidden)
    short = numbers.find("shortconv.l_cache")
    if short:
        return State(channels=hidden, kernel=short)
    kda = numbers.find("kda.head_dim")
    kernel = numbers.find("ssm.conv_kernel") or 0
    if kda:
        width = max(read.heads) * kda
        return State(channels=3 * width, kernel=kernel, values=width * kda)
    inner, state = numbers.need("ssm.inner_size"), numbers.need("ssm.state_size")
    groups = numbers.find("ssm.group_count") or 0
    return State(channels=inner + 2 * groups * state, kernel=kernel, values=inner * state)


def _vocab(numbers: Numbers, metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> int:
    for name in ("output.weight", "token_embd.weight"):
        if name in tensors:
            return tensors[name].shape[0]
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, Sequence) and not isinstance(tokens, str):
        return len(tokens)
    return numbers.need("vocab_size")


def _inner(numbers: Numbers, hidden: int) -> int:
    dense = numbers.largest("feed_forward_length") or 4 * hidden
    expert = numbers.find("expert_feed_forward_length")
    used = numbers.find("expert_used_count")
    return max(dense, (expert or dense) * used) if used else dense
