"""The verdict on a fold: rescale both sides for real, and see that the block's output stays."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from qconv.model._probe_run import BlockCall, Run, run_real
from qconv.model._topology import BlockFold, apply_folds

if TYPE_CHECKING:
    import torch

#: Relative change of the output below which a rescaling counts as float32 rounding. Valid folds
#: come out near 1e-14; what stays below this limit could not be told from rounding anyway.
FOLD_TOLERANCE = 1e-6


class Checker:
    """Runs one block with its real weights, as they are and rescaled.

    The scales are powers of two, drawn anew for every channel, so that rescaling rounds nothing
    and float64 arithmetic leaves a clear verdict.

    Memory: the block, one copy of each parameter that is rescaled, activations in float64.

    deals: where dealing tokens to experts begins, in the runs that make sure of all experts
    """

    def __init__(self, call: BlockCall, deals: Sequence[int]) -> None:
        self._call, self._deals = call, tuple(deals)

    @cached_property
    def _vectors(self) -> dict[str, torch.Tensor]:
        """In float64, lest ``1 + weight`` be rounded before rescaling and not after."""
        parameters = self._call.parameters()
        return {path: each.double() for path, each in parameters.items() if each.dim() == 1}

    @cached_property
    def _before(self) -> tuple[Run, ...]:
        own = run_real(self._call, parameters=self._vectors)
        if not own.routed:
            return (own,)
        dealt = (run_real(self._call, parameters=self._vectors, deal=d) for d in self._deals)
        return (own, *dealt)

    def error(self, folds: Sequence[BlockFold]) -> float:
        """The largest relative change of a token's output when all ``folds`` are rescaled at once.

        Relative to what the block adds to the token. Infinite when the output is not finite.
        """
        scaled = apply_folds(self._originals(folds), [(fold, _scales(fold)) for fold in folds])
        scaled = {**self._vectors, **scaled}
        errors = [0.0]
        for deal, before in zip((None, *self._deals), self._before, strict=False):
            after = run_real(self._call, parameters=scaled, deal=deal)
            errors.append(_change(self._call.hidden, before, after))
        return max(errors)

    def _originals(self, folds: Sequence[BlockFold]) -> dict[str, torch.Tensor]:
        """The block's parameters, in dtypes in which rescaling by powers of two rounds nothing."""
        import torch

        parameters = {**self._call.parameters(), **self._vectors}
        touched = {part.parameter for fold in folds for part in fold.consumers}
        touched |= {path for fold in folds for path in (fold.producer, fold.bias) if path}
        for path in touched:
            if parameters[path].dtype == torch.float16:  # too narrow to divide small numbers in
                parameters[path] = parameters[path].float()
        return parameters


def _scales(fold: BlockFold) -> torch.Tensor:
    """A random power of two per channel, from 1/4 to 4 but not 1, fixed by the fold's name."""
    import torch

    name = f"{fold.producer} {fold.expert} {fold.rows[0]}"
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 4, (fold.channels,), generator=generator)
    return torch.tensor([0.25, 0.5, 2.0, 4.0], dtype=torch.float64)[drawn]


def _change(hidden: torch.Tensor, before: Run, after: Run) -> float:
    if len(before.outputs) != len(after.outputs):
        return math.inf
    pairs = zip(before.outputs, after.outputs, strict=True)
    return max((_relative(hidden, *pair) for pair in pairs), default=math.inf)


def _relative(hidden: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> float:
    """Per token, the change against what the block added, or against the output where none is."""
    if before.shape != after.shape:
        return math.inf
    size = before.norm(dim=-1)
    added = size
    if before.shape == hidden.shape:
        # A token that the block hardly changes must not make rounding look like damage.
        added = (before - hidden.to(before)).norm(dim=-1).maximum(1e-3 * size)
    change = (after - before).norm(dim=-1)
    worst = float((change / added.clamp(min=1e-30)).max()) if change.numel() else 0.0
    return worst if math.isfinite(worst) else math.inf
