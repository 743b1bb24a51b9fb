"""Experts one by one, as the checkpoint has them, each computing the tokens sent to it only.

transformers joins the experts of a layer when it loads them, ``experts.N.w1.weight`` and its like
to ``experts.gate_up_proj``, (experts, out, in). A graph keeps them apart, so that each is the
weight of a product, and stores what the method computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qconv.errors import Unsupported

from ._loading import loaded_as

if TYPE_CHECKING:
    import torch
    from torch import nn

    from qconv.plugin import ModelInfo

#: Joins: experts on one another, and then what lies on one another in each.
_JOINS = (["MergeModulelist"], ["MergeModulelist", "Concatenate"])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Joined:
    """A parameter of a module of experts.

    sources: for each expert, the tensors that are its rows, one after the other
    """

    sources: tuple[tuple[str, ...], ...]


def separate_experts(info: ModelInfo, module: nn.Module) -> dict[str, str]:
    """Take joined experts of ``module`` apart; gives source tensors by the new parameters' names.

    Raises:
        Unsupported: experts are joined in the checkpoint, or do more than multiply and gate.
    """
    layers = [(path, each) for path, each in module.named_modules() if _has_experts(each)]
    joined = _joined(info, module) if layers else {}
    named: dict[str, str] = {}
    for path, experts in layers:
        up = joined.get(f"{path}.{'gate_up_proj' if _gated(experts) else 'up_proj'}")
        down = joined.get(f"{path}.down_proj")
        if up is None or down is None or not _is_plain(experts, up, down):
            raise Unsupported(
                f"{info.name}: {type(experts).__name__} at {path!r}: the checkpoint does not hold "
                "each expert's weights as tensors of their own, or experts have biases or norms, "
                "and a graph of experts is made of plain products only; use gguf or safetensors"
            )
        parent, _, name = path.rpartition(".")
        apart = _apart(experts, info, up.sources, down.sources)
        setattr(module.get_submodule(parent), name, apart)
        for expert, (above, below) in enumerate(zip(up.sources, down.sources, strict=True)):
            own = f"{path}.each.{expert}"
            named |= {f"{own}.up.{n}.weight": source for n, source in enumerate(above)}
            named[f"{own}.down.weight"] = below[0]
    return named


def _has_experts(module: nn.Module) -> bool:
    """As transformers' decorator ``use_experts_implementation`` marks them."""
    return hasattr(module, "num_experts") and hasattr(module, "is_concatenated")


def _gated(experts: nn.Module) -> bool:
    return bool(experts.has_gate)


def _is_plain(experts: Any, up: _Joined, down: _Joined) -> bool:  # noqa: ANN401
    """Products by weights, (out, in), and what is between them: no bias, and no norm."""
    return (
        experts.num_experts == len(up.sources) == len(down.sources)
        and not (experts.is_transposed or experts.has_bias or experts.has_post_expert_norm)
        and experts.is_concatenated
        and all(len(each) == 1 for each in down.sources)
    )


def _joined(info: ModelInfo, module: nn.Module) -> dict[str, _Joined]:
    """Parameters that are joined of tensors of each expert, by name."""
    state = module.state_dict()
    found: dict[str, dict[str, list[str]]] = {}
    for source, target, joining in loaded_as(module, sorted(info.tensors, key=_natural)):
        if joining is not None and target in state and _joins(joining[1]):
            pattern, converter = joining
            parts = found.setdefault(target, {each: [] for each in converter.source_patterns})
            parts[pattern].append(source)
    return {
        target: _Joined(sources=tuple(zip(*parts.values(), strict=True)))
        for target, parts in found.items()
        if len({len(each) for each in parts.values()}) == 1
    }


def _joins(converter: Any) -> bool:  # noqa: ANN401
    kinds = [type(each).__name__ for each in converter.operations]
    along = [each.dim for each in converter.operations] if kinds in _JOINS else []
    return along in ([0], [0, 1]) and len(converter.target_patterns) == 1


def _natural(name: str) -> list[tuple[int, int, str]]:
    """``experts.2`` before ``experts.10``, as transformers joins them."""
    parts = name.split(".")
    return [(0, int(each), "") if each.isdecimal() else (1, 0, each) for each in parts]


def _apart(
    experts: Any,  # noqa: ANN401
    info: ModelInfo,
    up: Sequence[Sequence[str]],
    down: Sequence[Sequence[str]],
) -> nn.Module:
    """A module that computes what ``experts`` does, with a weight for each tensor."""
    import torch

    dtype = experts.down_proj.dtype
    between = experts._apply_gate if _gated(experts) else experts.act_fn  # noqa: SLF001

    def linear(source: str) -> nn.Linear:
        rows, columns = info.tensors[source].shape
        return torch.nn.Linear(columns, rows, bias=False, device="meta", dtype=dtype)

    class Expert(torch.nn.Module):
        def __init__(self, above: Sequence[str], below: str) -> None:
            super().__init__()
            self.up = torch.nn.ModuleList([linear(each) for each in above])
            self.down = linear(below)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.down(between(torch.cat([up(x) for up in self.up], dim=-1)))
            return found

    class Experts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            pairs = zip(up, down, strict=True)
            self.each = torch.nn.ModuleList([Expert(above, below) for above, (below,) in pairs])

        def forward(
            self,
            hidden_states: torch.Tensor,
            top_k_index: torch.Tensor,
            top_k_weights: torch.Tensor,
        ) -> torch.Tensor:
            total = torch.zeros_like(hidden_states)
            for number, expert in enumerate(self.each):
                token, place = torch.where(top_k_index == number)
                found = expert(hidden_states[token]) * top_k_weights[token, place, None]
                total = total.index_add(0, token, found.to(total.dtype))
            return total

    return Experts()
