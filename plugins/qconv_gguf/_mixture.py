"""Which type each tensor gets: llama.cpp's mixture, in its order, with its fallbacks.

Follows https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp (eligibility,
categories, running counters, rules, fallbacks) for the file types of this backend, so that a file
of a given name holds what people know under that name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qconv.errors import UnreadableInput

from ._types import FLOATS, FileType, ggml_type

Category = Literal[
    "token_embd", "attn_q", "attn_v", "attn_k", "attn_output", "ffn_down", "output", "other"
]

#: A tensor whose name contains one of these keeps its type.
_NEVER = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
#: Tables of ids, not weights; llama.cpp gives up on them.
_INTEGERS = frozenset({"I8", "I16", "I32", "I64"})
_NEVER_EXACTLY = ("position_embd.weight", "token_types.weight")
#: The same for the architecture ``glm5-next`` alone, and what it never takes below Q8_0.
_GLM5_NEVER = (
    "hc_",
    "indexer.attn_q_b",
    "indexer.attn_k",
    "indexer.proj",
    "indexer_compressor_gate",
    "indexer_compressor_ape",
    "ssm_f_a.weight",
    "ssm_f_b.weight",
    "ssm_g_a.weight",
    "ssm_g_b.weight",
    "ssm_beta.weight",
    "attn_kv_a_mqa.weight",
    "attn_k_b.weight",
    "attn_v_b.weight",
)
_GLM5_Q8_0 = ("attn_q_a", "attn_q_b", "nextn.eh_proj")

#: In this order: the first that a name contains decides. Fused and low-rank values count as values.
_CATEGORIES: tuple[tuple[str, Category], ...] = (
    ("attn_qkv.weight", "attn_v"),
    ("attn_kv_b.weight", "attn_v"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "other"),
    ("ffn_gate", "other"),
    ("ffn_down", "ffn_down"),
)

#: What gets more bits than the base type in some formats, for people.
_WHAT: dict[Category, str] = {
    "attn_v": "attention values",
    "attn_k": "attention keys",
    "attn_output": "attention output",
    "ffn_down": "feed-forward down",
}

#: What a super-block type becomes when rows do not divide by 256.
_FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A tensor to be typed. shape: outermost first; stored: its type in the source, or F32."""

    name: str
    shape: tuple[int, ...]
    stored: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What the mixture asks about a model.

    architecture: ``general.architecture``
    heads_per_kv: attention heads that share one key-value head (0: no key-value heads)
    seventy_b: what llama.cpp classes as a 70B model
    """

    architecture: str
    layers: int
    heads_per_kv: int
    experts: int
    seventy_b: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The type a tensor gets. wanted: the type before the fallback, None without one."""

    type: str
    reason: str
    eligible: bool
    wanted: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Position:
    """A tensor among those of its category: ``index`` of ``count``, counted in file order."""

    index: int
    count: int

    @property
    def more_bits(self) -> bool:
        """Whether llama.cpp spends more bits: first and last eighth, every third between."""
        eighth = self.count // 8
        return (
            self.index < eighth
            or self.index >= 7 * self.count // 8
            or (self.index - eighth) % 3 == 2
        )


def file_order(name: str) -> tuple[int, bytes]:
    """Sort key of llama.cpp's files: what is in no block first, then block by block, by name."""
    match = re.match(r"blk\.(\d+)", name)
    return (int(match.group(1)) if match else -1, name.encode())


def seventy_b(architecture: str, layers: int, *, grouped: bool) -> bool:
    """Whether llama.cpp classes the model as 70B. grouped: fewer key-value heads than heads."""
    if architecture == "llama":
        return layers == 80 and grouped
    if architecture == "jais2":
        return layers == 68
    return architecture in {"deci", "olmo", "qwen2"} and layers == 80


def choose_types(
    tensors: Sequence[Candidate], traits: Traits, target: FileType, *, importance: bool
) -> dict[str, Choice]:
    """Choose every tensor's type, in any order of ``tensors``.

    importance: whether an importance matrix guides the quantization; it changes a few choices

    Raises:
        UnreadableInput: a tensor of a mixture of experts belongs to no block of the model.
    """
    ordered = sorted(tensors, key=lambda tensor: file_order(tensor.name))
    tied = all(tensor.name != "output.weight" for tensor in ordered)
    rules = _Rules(target=target, traits=traits, tied=tied, importance=importance)
    values = sum(_category(tensor.name) == "attn_v" for tensor in ordered)
    seen = {"attn_v": 0, "ffn_down": 0}
    choices = {}
    for tensor in ordered:
        if not is_eligible(tensor, traits.architecture):
            reason = "llama.cpp never quantizes this tensor"
            choices[tensor.name] = Choice(type=tensor.stored, reason=reason, eligible=False)
            continue
        category = _category(tensor.name)
        count = values if category == "attn_v" else traits.layers
        position = _Position(index=seen.get(category, 0), count=count)
        if category in seen:
            seen[category] += 1
        choices[tensor.name] = rules.choose(tensor, category, position)
    return choices


def is_eligible(tensor: Candidate, architecture: str) -> bool:
    """Whether llama.cpp lets this tensor change its type at all."""
    name = tensor.name
    # ggml does not count outer dimensions of size one: a (1, n) tensor is a vector to it
    matrix = any(size > 1 for size in tensor.shape[:-1])
    never = _NEVER + (_GLM5_NEVER if architecture == "glm5-next" else ())
    return (
        matrix
        and tensor.stored not in _INTEGERS
        and name.endswith("weight")
        and name not in _NEVER_EXACTLY
        and not any(part in name for part in never)
    )


def _category(name: str) -> Category:
    if name == "output.weight":
        return "output"
    if name in {"token_embd.weight", "per_layer_token_embd.weight"}:
        return "token_embd"
    for part, category in _CATEGORIES:
        if part in name:
            return category
    return "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    target: FileType
    traits: Traits
    tied: bool
    importance: bool

    def choose(self, tensor: Candidate, category: Category, position: _Position) -> Choice:
        """The type of an eligible tensor."""
        if self.target.base in FLOATS:
            return Choice(type=self.target.base, reason="type of the format", eligible=True)
        wanted, reason = self._wanted(tensor, category, position)
        columns = tensor.shape[-1]
        fitting = _fitting(wanted, columns)
        if fitting == wanted:
            return Choice(type=wanted, reason=reason, eligible=True)
        block = ggml_type(wanted).block
        why = f"{reason}; {columns} columns do not divide by {block}, which {wanted} needs"
        return Choice(type=fitting, reason=why, eligible=True, wanted=wanted)

    def _wanted(
        self, tensor: Candidate, category: Category, position: _Position
    ) -> tuple[str, str]:
        """The type before any fallback, and why."""
        if self.traits.architecture == "glm5-next" and any(p in tensor.name for p in _GLM5_Q8_0):
            return "Q8_0", "glm5-next keeps this at 8 bits"
        if category == "output":
            return self._output(), "output projection"
        if category == "token_embd" and self.tied:
            return self._output(), "embedding that is the output projection too"
        chosen = self._by_category(tensor, category, position)
        if chosen == self.target.base:
            return chosen, "base type of the format"
        return chosen, f"{_WHAT[category]}: more bits than the base type"

    def _by_category(self, tensor: Candidate, category: Category, position: _Position) -> str:
        if category == "ffn_down":
            return self._ffn_down(self._layer(tensor.name, position))
        if category == "attn_v":
            return self._attn_v(position)
        if category == "attn_k":
            return self._attn_k()
        return self._attn_output() if category == "attn_output" else self.target.base

    @property
    def _falcon(self) -> bool:
        return self.traits.architecture == "falcon"

    def _output(self) -> str:
        return "Q8_0" if self._falcon or self.target.base == "Q8_0" else "Q6_K"

    def _attn_v(self, position: _Position) -> str:
        if self.traits.experts == 8:
            return "Q8_0"
        chosen = self._attn_v_by_format(position)
        if self.traits.seventy_b and chosen in {"Q3_K", "Q4_K"}:
            return "Q5_K"
        return chosen

    def _attn_v_by_format(self, position: _Position) -> str:
        name = self.target.name
        if name == "Q2_K":
            return "Q4_K" if self.traits.heads_per_kv >= 4 else "Q3_K"
        if name == "Q3_K_M":
            return "Q5_K" if position.index < 2 else "Q4_K"
        if name == "Q3_K_L":
            return "Q5_K"
        if name in {"Q4_K_M", "Q5_K_M"} and position.more_bits:
            return "Q6_K"
        if name == "Q4_K_S" and position.index < 4:
            return "Q5_K"
        return self.target.base

    def _layer(self, name: str, position: _Position) -> _Position:
        """Where a tensor stands among the blocks: experts of a block do not follow one another."""
        if self.traits.experts <= 1:
            return position
        block, _ = file_order(name)
        if not 0 <= block < position.count:
            raise UnreadableInput(
                f"tensor {name!r}: belongs to none of the model's {position.count} blocks, as its "
                "block_count says; the file is damaged, convert it again"
            )
        return _Position(index=block, count=position.count)

    def _ffn_down(self, layer: _Position) -> str:
        if self._falcon and self.target.name in {"Q3_K_M", "Q3_K_L", "Q4_K_M", "Q4_K_S"}:
            return self._falcon_down(layer)
        first_eighth = layer.index < layer.count // 8
        first_sixteenth = layer.index < layer.count // 16
        raised = {
            "Q2_K": "Q3_K",
            "Q3_K_M": "Q5_K" if first_sixteenth else "Q4_K",
            "Q3_K_L": "Q5_K",
            "Q4_K_M": "Q6_K" if layer.more_bits else "Q4_K",
            "Q5_K_M": "Q6_K" if layer.more_bits else "Q5_K",
            "Q4_K_S": "Q5_K" if first_eighth else "Q4_K",
            "Q4_0": "Q4_1" if first_eighth and self.importance else "Q4_0",
            "Q5_0": "Q5_1" if first_eighth and self.importance else "Q5_0",
        }
        return raised.get(self.target.name, self.target.base)

    def _falcon_down(self, layer: _Position) -> str:
        first_sixteenth = layer.index < layer.count // 16
        if self.target.name == "Q3_K_M":
            more = "Q4_K" if layer.more_bits else "Q3_K"
            return "Q5_K" if first_sixteenth else more
        if self.target.name == "Q4_K_M":
            more = "Q5_K" if layer.more_bits else "Q4_K"
            return "Q6_K" if first_sixteenth else more
        return "Q4_K"

    def _attn_k(self) -> str:
        return "Q8_0" if self.traits.experts == 8 else self.target.base

    def _attn_output(self) -> str:
        name, base = self.target.name, self.target.base
        if self._falcon:
            return "Q4_K" if name == "Q3_K_L" else base
        if self.traits.experts == 8:
            raised = {"Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M"}
            return "Q5_K" if name in raised else base
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(name, base)


def _fitting(wanted: str, columns: int) -> str:
    """``wanted``, or what llama.cpp takes instead when rows do not divide by its block."""
    if columns % ggml_type(wanted).block == 0:
        return wanted
    fallback = _FALLBACKS.get(wanted, wanted)
    return fallback if columns % ggml_type(fallback).block == 0 else "F16"
