"""Which kind each layer is of: what it keeps of past tokens depends on that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qconv.errors import Unsupported

if TYPE_CHECKING:
    from qconv.memory._text import TextConfig

#: How configs call kinds of layers -> how they are called here (as transformers 5 does).
_NAMES = {
    **dict.fromkeys(("full_attention", "attention", "global_attention", "*"), "full_attention"),
    **dict.fromkeys(("sliding_attention", "local_attention"), "sliding_attention"),
    "chunked_attention": "chunked_attention",
    "indexed_attention": "indexed_attention",
    **dict.fromkeys(("linear_attention", "mamba", "mamba2", "recurrent", "conv", "M"), "state"),
    "hybrid": "hybrid",
    **dict.fromkeys(("moe", "mlp", "-", "E"), "none"),
}

#: Kinds that keep keys and values; kinds that keep a state.
ATTENDING = frozenset(
    {"full_attention", "sliding_attention", "chunked_attention", "indexed_attention", "hybrid"}
)
KEEPING = frozenset({"state", "hybrid"})

#: Every layer of theirs keeps a state, and no keys and values.
STATES_ONLY = frozenset({"mamba", "mamba2", "falcon_mamba", "rwkv"})

#: Every layer of theirs does both.
_BOTH = frozenset({"falcon_h1"})

#: Parts of keys that speak of states; a family with such, but no list of kinds, is unknown.
_TELLING = ("mamba", "ssm_", "linear_num", "lru_", "wkv", "rwkv", "recurrent")


def layer_kinds(text: TextConfig, count: int | None) -> list[str]:
    """The kind of every layer: one of ``ATTENDING``, ``KEEPING`` or ``none``.

    count: of the layers; None where their list says it

    Raises:
        Unsupported: a kind, or how kinds are told, is not known.
    """
    config, family = text.values, text.family
    written = _written(text, count)
    if written is None:
        return [_kind_of_all(config, family)] * (count or 0)
    if count is not None and len(written) != count:
        raise Unsupported(
            f"model_type {family!r}: config.json lists {len(written)} kinds of layers for {count} "
            "layers; get it anew from the model's publisher"
        )
    return [_known(kind, family) for kind in written]


def _written(text: TextConfig, count: int | None) -> Sequence[str] | None:
    config = text.values
    for key in ("layer_types", "layers_block_type"):
        if isinstance(config.get(key), Sequence) and config[key]:
            return [str(kind) for kind in config[key]]
    if isinstance(config.get("hybrid_override_pattern"), str):
        return list(config["hybrid_override_pattern"])
    if count is None:
        return None
    if isinstance(config.get("block_types"), Sequence) and config["block_types"]:  # RecurrentGemma
        cycle = ["local_attention" if k == "attention" else str(k) for k in config["block_types"]]
        return [cycle[index % len(cycle)] for index in range(count)]
    if isinstance(config.get("attn_type_list"), Sequence):  # MiniMax: 1 attends, 0 is linear
        return ["attention" if each else "linear_attention" for each in config["attn_type_list"]]
    return _by_rule(text, count)


def _by_rule(text: TextConfig, count: int) -> Sequence[str] | None:
    """Families that tell the attending layers by numbers."""
    numbers, family = text.numbers, text.family
    attending: set[int] | None = None
    if family == "jamba":
        period = numbers.period("attn_layer_period", 8)
        offset = numbers.find("attn_layer_offset")
        offset = 4 if offset is None else offset
        attending = {n for n in range(count) if n % period == offset}
    elif family in ("bamba", "granitemoehybrid"):
        attending = numbers.indices("attn_layer_indices")
    elif family == "lfm2" and "full_attn_idxs" in text.values:
        attending = numbers.indices("full_attn_idxs")
    elif family in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"):
        every = numbers.period("full_attention_interval", 4)
        attending = {n for n in range(count) if (n + 1) % every == 0}
    elif crossing := numbers.indices("cross_attention_layers"):
        # Mllama: those keep what an image gave, no text
        return ["mlp" if n in crossing else "attention" for n in range(count)]
    if attending is None:
        return None
    return ["attention" if n in attending else "mamba" for n in range(count)]


def _kind_of_all(config: Mapping[str, Any], family: str) -> str:
    if family in STATES_ONLY:
        return "state"
    if family in _BOTH:
        return "hybrid"
    telling = [key for key in config if key.startswith(_TELLING)]
    if telling:
        raise Unsupported(
            f"model_type {family!r}: config.json has {telling[0]!r}, but does not list which "
            "layers keep a state and which attend; its memory cannot be predicted"
        )
    return "full_attention"


def _known(kind: str, family: str) -> str:
    if kind not in _NAMES:
        raise Unsupported(
            f"model_type {family!r}: layers of kind {kind!r} are not known, so their memory cannot "
            f"be predicted; known are {', '.join(sorted(set(_NAMES) - {'*', '-', 'M', 'E'}))}"
        )
    return _NAMES[kind]
