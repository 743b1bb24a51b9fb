"""What of a model its memory depends on, wherever it was read from: layers and what each keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Keys and values of past tokens.

    keys, values: per token, over all key-value heads
    window: most tokens that are looked back at; None for all of them
    """

    keys: int
    values: int
    window: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """Multi-head latent attention: one compressed vector per token, for keys and values together.

    DeepSeek-V2, https://arxiv.org/abs/2405.04434, section 2.1.

    width: ``kv_lora_rank`` and the rotary part
    expanded: keys and values over all heads, which some runtimes keep instead
    """

    width: int
    expanded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """State-space or linear attention: constant, whatever the context.

    channels, kernel: of the causal convolution that remembers its last inputs; 0 for none
    values: of the recurrent state
    """

    channels: int = 0
    kernel: int = 0
    values: int = 0


Cache: TypeAlias = Attention | Latent | State


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes that memory depends on.

    family: ``model_type`` of config.json, or ``general.architecture`` of a GGUF
    layers: per layer, what it keeps: nothing where layers share an earlier one's, or keep none
    hidden, vocab: sizes; vocab is 0 where no logits are computed
    inner: widest intermediate of a feed-forward layer, over the experts a token goes through
    heads: values of a token's queries
    query_heads: how many heads these are of; 0 where nothing attends
    context_length: the longest the model was made for; None where it sets no limit
    notes: what was assumed while reading, for people
    """

    family: str
    layers: tuple[tuple[Cache, ...], ...]
    hidden: int
    vocab: int
    inner: int
    heads: int
    context_length: int | None
    query_heads: int = 0
    notes: tuple[str, ...] = ()

    @property
    def caches(self) -> tuple[Cache, ...]:
        """Of all layers."""
        return tuple(cache for layer in self.layers for cache in layer)
