"""Finds the topology of a block by running it: who shares an input, and which folds are valid.

Candidates come from synthetic runs: the channels of one producer (a vector such as a norm's weight,
or the outputs of a linear) are multiplied by factors of their own, and the linears it reaches show
which column took which factor. A candidate that reaches nothing but such linears is then rescaled
on both sides in real runs, and accepted if the block's output stays. Nothing is known by name.

Cost: the synthetic runs read no weights; real runs are one, plus one per candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qconv.errors import Unsupported
from qconv.model._probe_candidates import Candidate, linear_candidates, vector_candidates
from qconv.model._probe_check import FOLD_TOLERANCE, Checker
from qconv.model._probe_run import BlockCall
from qconv.model._probe_world import World
from qconv.model._topology import BlockFold, Topology, Verdict

if TYPE_CHECKING:
    import torch
    from torch import nn


def probe_block(
    block: nn.Module,
    hidden: torch.Tensor,
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Topology:
    """Find which linears of a block share an input, and where scales fold in.

    The block is not modified. Fused experts must run one by one (transformers' ``eager``).
    Memory: the block, one copy of the parameters a candidate rescales, one weight in float64.

    hidden: (batch, tokens, hidden), a short window; 16 to 32 tokens do
    args, kwargs: what else the block is called with

    Raises:
        Unsupported: the block cannot be run so.
    """
    call = _call(block, hidden, args, kwargs)
    try:
        world = World(call)
        checker = Checker(call, world.deals)
        candidates = [*vector_candidates(world), *linear_candidates(world)]
        verdicts = [_judge(each, world, checker) for each in candidates]
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise _cannot_run(block, error) from error
    judged = zip(candidates, verdicts, strict=True)
    return Topology(
        shapes=parameter_shapes(block),
        inputs=world.input_groups(),
        folds=tuple(f for each, verdict in judged if verdict.accepted for f in each.folds),
        verdicts=tuple(verdicts),
    )


def folding_error(
    folds: Sequence[BlockFold],
    block: nn.Module,
    hidden: torch.Tensor,
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> float:
    """The relative change of a block's output when random scales are folded in at ``folds``.

    For folds found in another block of the same class and shapes: valid here if this is below
    :data:`FOLD_TOLERANCE`. Two real runs, more where tokens choose experts. Takes what
    :func:`probe_block` takes.

    Raises:
        Unsupported: the block cannot be run so.
    """
    call = _call(block, hidden, args, kwargs)
    try:
        return Checker(call, World(call).deals).error(folds)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise _cannot_run(block, error) from error


def parameter_shapes(block: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a block, by path."""
    return {path: tuple(parameter.shape) for path, parameter in block.named_parameters()}


def _call(
    block: nn.Module,
    hidden: torch.Tensor,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
) -> BlockCall:
    return BlockCall(block=block, hidden=hidden.detach(), args=tuple(args), kwargs=kwargs or {})


def _cannot_run(block: nn.Module, error: Exception) -> Unsupported:
    return Unsupported(
        f"block {type(block).__name__}: cannot be run in float64 to find where scales fold in: "
        f"{error}; use a method that rescales nothing, e.g. --method gptq"
    )


def _judge(candidate: Candidate, world: World, checker: Checker) -> Verdict:
    reason, error = candidate.objection, None
    if not reason and any(world.is_unreached(p) for f in candidate.folds for p in f.consumers):
        reason = "some experts were given no token, so they may read it too; use more tokens"
    if not reason:
        error = checker.error(candidate.folds)
        if error > FOLD_TOLERANCE:
            reason = "rescaling both sides changes the block's output"
    return Verdict(
        kind=candidate.kind,
        producer=candidate.producer,
        consumers=candidate.readers,
        accepted=not reason,
        reason=reason or "rescaling both sides leaves the block's output",
        folds=0 if reason else len(candidate.folds),
        error=error,
    )
