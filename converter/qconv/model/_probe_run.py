"""Runs a block once, in float64, while what its linear weights are given is watched.

There are two ways to run it. A *real* run computes what the block computes. In a *synthetic* run
the output of every linear is replaced by fixed random numbers, so that a change somewhere reaches
the next linears and the block's output only: that shows who reads whom, and reads no weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qconv.model._probe_watch import Seen, Use, Watch, in_float64
from qconv.model._probe_weights import ParameterFinder

if TYPE_CHECKING:
    import torch
    from torch import nn

    from qconv.model._topology import LinearPart

#: What outputs of a linear are multiplied by, (out,) float64; None for nothing.
Factors = Callable[["LinearPart"], "torch.Tensor | None"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockCall:
    """A block and what it is called with: hidden states first, then the rest."""

    block: nn.Module
    hidden: torch.Tensor
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def parameters(self) -> dict[str, torch.Tensor]:
        """The block's parameters by path, tied ones under each of their names."""
        named = self.block.named_parameters(remove_duplicate=False)
        return {path: parameter.detach() for path, parameter in named}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """What one run showed.

    uses: of linear weights, in order; of synthetic runs only
    outputs: every floating tensor the block returned, or left in a list or dict it was given
    routed: a choice among experts was made
    """

    uses: Mapping[Use, Seen]
    outputs: tuple[torch.Tensor, ...]
    routed: bool


def run_real(
    call: BlockCall, *, parameters: Mapping[str, torch.Tensor], deal: int | None = None
) -> Run:
    """Compute the block's output in float64.

    Memory: activations, and one weight at a time in float64.

    parameters: take the place of the block's own, by path
    deal: as in :func:`run_synthetic`; None lets the router choose
    """
    return _run(call, parameters, Watch(weights=None, factors=None, deal=deal))


def run_synthetic(
    call: BlockCall,
    *,
    parameters: Mapping[str, torch.Tensor],
    factors: Factors | None = None,
    deal: int = 0,
) -> Run:
    """Run the block with random numbers, fixed by the weights' names, for the linears' outputs.

    deal: tokens are dealt to experts in turn beginning with this one, whatever the router says, so
        that few tokens reach all experts
    """
    weights = ParameterFinder({**call.parameters(), **parameters})
    return _run(call, parameters, Watch(weights=weights, factors=factors, deal=deal))


def _run(call: BlockCall, parameters: Mapping[str, torch.Tensor], watch: Watch) -> Run:
    import torch

    args, kwargs = in_float64(call.args), in_float64(dict(call.kwargs))
    training = call.block.training
    call.block.eval()
    try:
        with torch.no_grad(), watch.mode():
            result = torch.func.functional_call(
                call.block, dict(parameters), (in_float64(call.hidden), *args), kwargs
            )
    finally:
        call.block.train(training)
    # Layers that lend their keys and values to later layers leave them in such a container.
    left = [each for each in (*args, *kwargs.values()) if isinstance(each, (dict, list))]
    outputs = tuple(each for each in _tensors_in((result, left)) if each.is_floating_point())
    return Run(uses=watch.uses, outputs=outputs, routed=watch.routed)


def _tensors_in(value: Any) -> Iterable[torch.Tensor]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors_in(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors_in(each)
