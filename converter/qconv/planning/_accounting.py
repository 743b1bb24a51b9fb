"""Tensor accounting: every source tensor is used or rightly dropped, or it is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.errors import BrokenPlugin, UnusedTensors

if TYPE_CHECKING:
    from collections.abc import Collection

    from qconv.plugin import ModelInfo, TensorPlans

_LISTED = 8  # names in an error message; the rest is counted


def unused_tensors(label: str, model: ModelInfo, plans: TensorPlans) -> tuple[str, ...]:
    """Source tensors that ``plans`` neither uses nor drops, in source order.

    Raises:
        BrokenPlugin: the plan names a tensor the source lacks, uses a dropped one, or says a name
            twice.
    """
    used = {source for plan in plans.tensors for source in plan.sources}
    dropped = {drop.name for drop in plans.dropped}
    for name in sorted((used | dropped) - set(model.tensors)):
        raise BrokenPlugin(
            f"plugin author: the plan for {label} names source tensor {name!r}, "
            "which the checkpoint does not have"
        )
    for name in sorted(used & dropped):
        raise BrokenPlugin(
            f"plugin author: the plan for {label} both uses and drops source tensor {name!r}"
        )
    names = [plan.name for plan in plans.tensors]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise BrokenPlugin(f"plugin author: the plan for {label} writes {twice[0]!r} twice")
    return tuple(name for name in model.tensors if name not in used and name not in dropped)


def refuse_unused(label: str, unused: Collection[str]) -> None:
    """Raise UnusedTensors when there are any.

    Raises:
        UnusedTensors: names the first few and says how to go on.
    """
    if not unused:
        return
    raise UnusedTensors(
        f"{label}: {len(unused)} source tensors have no place in this format: {listed(unused)}; "
        "nothing is dropped unasked: pass --allow-unused to leave them out"
    )


def listed(names: Collection[str]) -> str:
    """The first few names, and how many more there are."""
    some = ", ".join(repr(name) for name in list(names)[:_LISTED])
    return f"{some} and {len(names) - _LISTED} more" if len(names) > _LISTED else some
