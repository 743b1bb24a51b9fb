"""Probes a block on the beginning of a calibration window, trying what is known of others first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qconv.errors import Unsupported
from qconv.model._probe import folding_error, parameter_shapes, probe_block
from qconv.model._probe_check import FOLD_TOLERANCE

if TYPE_CHECKING:
    import torch
    from torch import nn

    from qconv.model._hidden import Arguments
    from qconv.model._topology import Topology

#: Tokens to run on: so many differ enough, and cost little beside reading the weights.
_TOKENS = 32


def probe_window(
    block: nn.Module, state: torch.Tensor, arguments: Arguments, known: Sequence[Topology] = ()
) -> Topology:
    """The topology of a block.

    state: (tokens, hidden), of which the first 32 tokens are used
    arguments: what the block is called with besides the states, for all tokens
    known: topologies of other blocks; one that names the same parameters in the same shapes is
        taken over if random scales at all its folds together leave this block's output

    Raises:
        Unsupported: the block cannot be run in float64.
    """
    tokens = len(state)
    if tokens <= _TOKENS:
        return _probe(block, state, arguments, known)
    try:
        short = _first_tokens(arguments, tokens)
        return _probe(block, state[:_TOKENS], short, known)
    except Unsupported:  # something of another meaning was as long as the window, and was cut
        return _probe(block, state, arguments, known)


def _probe(
    block: nn.Module, state: torch.Tensor, arguments: Arguments, known: Sequence[Topology]
) -> Topology:
    args, kwargs = arguments
    shapes = parameter_shapes(block)
    for topology in known:
        if topology.shapes == shapes:
            error = folding_error(topology.folds, block, state[None], args=args, kwargs=kwargs)
            if error <= FOLD_TOLERANCE:
                return topology
    return probe_block(block, state[None], args=args, kwargs=kwargs)


def _first_tokens(value: Any, tokens: int) -> Any:
    """The same for the first tokens only: masks, positions and rotary embeddings cut."""
    import torch

    if isinstance(value, torch.Tensor):
        # Rotary embeddings are (batch, tokens, width): their width may be as long as the window.
        rotary = value.dim() == 3 and value.is_floating_point()
        for dim in range(value.dim() - rotary):
            if value.shape[dim] == tokens:
                value = value.narrow(dim, 0, _TOKENS)
        return value
    if isinstance(value, dict):
        return {key: _first_tokens(each, tokens) for key, each in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(_first_tokens(each, tokens) for each in value)
    return value
