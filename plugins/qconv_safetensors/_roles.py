"""Which tensors of a checkpoint are quantized, which stay float, and which share one scheme.

Runtimes merge siblings into one matrix (vLLM: ``packed_modules_mapping`` of each model), and then
all of them must be stored alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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


def role_of(name: str, shape: tuple[int, ...], blocks: int | None) -> Role:
    """The role of a tensor of a Hugging Face checkpoint.

    blocks: how many layers the config says the model runs; None when it does not say
    """
    match = _IN_BLOCK.fullmatch(name)
    if match is None:
        return Role(linear=False, reason="not a linear weight of a block")
    if len(shape) != 2:
        return Role(linear=False, reason="not a matrix")
    last = match["module"].rpartition(".")[2]
    if _TOWERS.search(match["stem"]):
        return Role(linear=False, reason="the tower for images or sound stays float")
    if _FURTHER_TOKENS.search(name) or _beyond(match, blocks):
        return Role(linear=False, reason="a layer that predicts further tokens stays float")
    if last in _ROUTERS:
        return Role(linear=False, reason="a router stays float")
    if last in _NOT_LINEAR or "norm" in last or "embed" in last:
        return Role(linear=False, reason="not a linear layer")
    return Role(linear=True, reason="a linear of a block")


def _beyond(match: re.Match[str], blocks: int | None) -> bool:
    """Whether it is in a decoder layer that the config does not count: one that predicts ahead."""
    counted = match["stem"] == "layers" or match["stem"].endswith("model.layers")
    return blocks is not None and counted and int(match["number"]) >= blocks


def sibling_key(name: str) -> str:
    """What the weights that a runtime merges have in common; of others, their own name."""
    module = name.removesuffix(".weight")
    experts = re.match(r"(.+?\.experts)\.\d+\.", module)
    if experts:
        return experts[1]
    parent, _, last = module.rpartition(".")
    return f"{parent}.{_MERGED[last]}" if last in _MERGED else module


def siblings(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The names that share a scheme, by what they have in common."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(sibling_key(name), []).append(name)
    return {key: tuple(members) for key, members in groups.items()}


def is_float_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor left in float is a linear module that a runtime must be told to skip."""
    if not name.endswith(".weight") or len(shape) != 2:
        return False
    last = name.removesuffix(".weight").rpartition(".")[2]
    table = "embed" in last or last in {"wte", "wpe", *_NOT_LINEAR}
    return not table and "norm" not in last


def float_experts(name: str, shape: tuple[int, ...]) -> str | None:
    """The module of stacked experts, which stay float and which a runtime must skip."""
    match = re.fullmatch(r"(.+\.experts)\.\w+", name)
    return match[1] if match and len(shape) == 3 else None
