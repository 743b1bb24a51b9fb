"""Which tensors of a checkpoint are quantized, which stay float, and which share one scheme.

Runtimes merge siblings into one matrix (vLLM: ``packed_modules_mapping`` of each model), and then
all of them must be stored alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: A linear weight inside a numbered block: ``model.layers.3.mlp.up_proj.weight``.
_IN_BLOCK = re.compile(r"(?P<stem>.+?)\.(?P<number>\d+)\.(?P<module>.+)\.weight")

#: Modules that decide where tokens go: a wrong route costs more than all rounding.
_ROUTERS = frozenset({"gate", "router", "shared_expert_gate", "wg", "classifier"})

#: Inside a block, but no linear layer: tables, and what kernels read as floats.
_NOT_LINEAR = frozenset({"relative_attention_bias", "dt_proj", "conv1d"})

#: Towers for images and sound: small, sensitive, and kept in float by every runtime's recipes.
_TOWERS = re.compile(r"(^|[._])(vision|visual|audio|image|speech)([._]|$)")

#: Layers that predict further tokens; runtimes load them on their own, as they are.
_FURTHER_TOKENS = re.compile(r"(^|\.)mtp(_\w+)?\.")

#: Last module names that runtimes merge, by what the merged matrix is called.
_MERGED: Mapping[str, str] = {
    "q_proj": "qkv",
    "k_proj": "qkv",
    "v_proj": "qkv",
    "query": "qkv",
    "key": "qkv",
    "value": "qkv",
    "gate_proj": "gate_up",
    "up_proj": "gate_up",
    "w1": "gate_up",
    "w3": "gate_up",
    "q_a_proj": "qkv_a",
    "kv_a_proj_with_mqa": "qkv_a",
}

#: Model types whose linear layers are stored transposed (transformers' ``Conv1D``).
TRANSPOSED = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What a tensor is to the planner.

    linear: to be quantized
    reason: why, for people
    """

    linear: bool
    reason: str


def counted_blocks(config: Mapping[str, Any]) -> int | None:
    """The decoder layers that the model runs; None when the config does not say.

    Layers stored beyond these predict further tokens (DeepSeek, GLM).
    """
    for settings in (config.get("text_config"), config):
        found = settings.get("num_hidden_layers") if isinstance(settings, Mapping) else None
        if type(found) is int and found > 0:
            return found
    return None


def role_of(name: str, shape: tuple[int, ...], blocks: int | None) -> Role:
    """The role of a tensor of a Hugging Face checkpoint.

    blocks: how many layers the config says the model runs; None when it does not say
    """
    match = _IN_BLOCK.fullmatch(name)
    reason = "not a linear weight of a block" if match is None else _exempt(match, shape, blocks)
    return Role(linear=not reason, reason=reason or "a linear of a block")


def _exempt(match: re.Match[str], shape: tuple[int, ...], blocks: int | None) -> str:
    """Why a weight of a numbered block stays float; empty when it does not."""
    last = match["module"].rpartition(".")[2]
    rules = {
        "not a matrix": len(shape) != 2,
        "the tower for images or sound stays float": bool(_TOWERS.search(match["stem"])),
        "a layer that predicts further tokens stays float": _further(match, blocks),
        "a router stays float": last in _ROUTERS,
        "not a linear layer": last in _NOT_LINEAR or "norm" in last or "embed" in last,
    }
    return next((reason for reason, holds in rules.items() if holds), "")


def _further(match: re.Match[str], blocks: int | None) -> bool:
    """Whether it is in a layer that predicts further tokens, by its name or its number."""
    counted = match["stem"] == "layers" or match["stem"].endswith("model.layers")
    beyond = blocks is not None and counted and int(match["number"]) >= blocks
    return beyond or bool(_FURTHER_TOKENS.search(match[0]))


def experts_of(name: str) -> str | None:
    """The module that holds all experts of a layer, of a tensor or module of one of them."""
    match = re.match(r"(.+?\.experts)\.\d+\.", name)
    return match[1] if match else None


def sibling_key(name: str) -> str:
    """What the weights that a runtime merges have in common; of others, their own name."""
    module = name.removesuffix(".weight")
    experts = experts_of(module)
    if experts:
        return experts
    parent, _, last = module.rpartition(".")
    return f"{parent}.{_MERGED[last]}" if last in _MERGED else module


def siblings(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The names that share a scheme, by what they have in common."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(sibling_key(name), []).append(name)
    return {key: tuple(members) for key, members in groups.items()}


def is_table(module: str) -> bool:
    """Whether a module looks rows up by number: not GPT-NeoX's head ``embed_out``."""
    last = module.rpartition(".")[2]
    return last in {"wte", "wpe"} or ("embed" in last and last != "embed_out")


def is_float_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor left in float is a linear module that a runtime must be told to skip."""
    if not name.endswith(".weight") or len(shape) != 2:
        return False
    module = name.removesuffix(".weight")
    last = module.rpartition(".")[2]
    return not (is_table(module) or "norm" in last or last in _NOT_LINEAR)


def float_experts(name: str, shape: tuple[int, ...]) -> str | None:
    """The module of stacked experts, which stay float and which a runtime must skip."""
    match = re.fullmatch(r"(.+\.experts)\.\w+", name)
    return match[1] if match and len(shape) == 3 else None
