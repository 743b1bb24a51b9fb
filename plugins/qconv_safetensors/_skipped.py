"""Which modules a runtime must be told to leave alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qconv.errors import Unsupported

from ._roles import experts_of, float_experts, is_float_linear

if TYPE_CHECKING:
    from ._planner import PlannedTensor


def float_modules(plans: Sequence[PlannedTensor]) -> list[str]:
    """Names of the linear modules left in float, sorted; so is a head that is tied."""
    names = set() if quantized_head(plans) else {"lm_head"}
    for plan in plans:
        if plan.grid is not None:
            continue
        if is_float_linear(plan.name, plan.shape):
            names.add(plan.name.removesuffix(".weight"))
        experts = float_experts(plan.name, plan.shape)
        if experts:
            names.add(experts)
    return sorted(names)


def merged_experts(skipped: Sequence[str], quantized: Sequence[PlannedTensor]) -> list[str]:
    """The names with one for all experts of a layer, which runtimes merge into one module.

    transformers and vLLM ask for that one's name where they do not know compressed-tensors.
    """
    mixed = {experts_of(plan.name) for plan in quantized}
    names = set()
    for name in skipped:
        experts = experts_of(name)
        names.add(name if experts is None or experts in mixed else experts)
    return sorted(names)


def quantized_head(plans: Sequence[PlannedTensor]) -> bool:
    """Whether the head is quantized, as it may be in what is transcoded."""
    return any(plan.grid is not None and plan.name == "lm_head.weight" for plan in plans)


def need_apart(
    format_name: str, skipped: Sequence[str], quantized: Sequence[PlannedTensor]
) -> None:
    """Refuse names that vLLM or transformers would take for those of quantized modules, too.

    Both look for a skipped name anywhere inside a module's name.

    Raises:
        Unsupported: names the two modules.
    """
    modules = [plan.name.removesuffix(".weight") for plan in quantized]
    everything = "\n".join(modules)
    for name in skipped:
        if name not in everything:
            continue
        taken = next(module for module in modules if name in module)
        raise Unsupported(
            f"safetensors:{format_name}: module {name!r} stays float, but its runtimes would skip "
            f"{taken!r} with it, whose name holds that name; use safetensors:int4, which tells "
            "them apart"
        )


def pattern(name: str) -> str:
    """A regular expression for one module's name, or for experts and all within."""
    within = r"(\..+)?" if name.endswith(".experts") else ""
    return f"^{re.escape(name)}{within}$"
