"""Codes that the source holds already, re-coded where need be: nothing is rounded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qconv._recent import Recent
from qconv.conversion._rounding import joined
from qconv.errors import UnreadableInput
from qconv.tensors import carried_over

if TYPE_CHECKING:
    from qconv.checkpoint import DecodedCheckpoint
    from qconv.conversion._work import Rows
    from qconv.grids import Grid
    from qconv.plugin import TensorPlan
    from qconv.statistics import Statistics
    from qconv.tensors import QuantTensor

#: Re-coded tensors in memory, about a byte per weight each: slabs of one come one after the other.
KEPT = 4

#: Bytes per weight of one that is being re-coded, levels and new codes; measured.
BYTES_IN_CARRYING = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Landing:
    """A source tensor and the grid it is to be on, equal by the grid's description."""

    name: str
    spec: str
    grid: Grid = field(compare=False)


class Carrying:
    """The :class:`qconv.conversion.Rounding` that keeps every code's value. Thread-safe.

    Peak memory: :data:`KEPT` tensors of codes and parameters, and on each thread four bytes per
    weight of one that is being re-coded.
    """

    def __init__(self, checkpoint: DecodedCheckpoint) -> None:
        self._checkpoint = checkpoint
        self._carried = Recent(self._carry, keep=KEPT)

    @property
    def statistics(self) -> Mapping[str, Statistics]:
        """None: no text is run."""
        return {}

    def quantize(self, rows: Rows, plan: TensorPlan, grid: Grid) -> QuantTensor:
        """The slab's codes on ``grid``, rows as in the artifact.

        Raises:
            Unsupported: the grid does not hold the values.
            UnreadableInput: a parameter is NaN or infinite.
        """
        spec = json.dumps(dict(grid.spec()), sort_keys=True)
        landings = [_Landing(name=name, spec=spec, grid=grid) for name in plan.sources]
        return joined(rows, [self._carried[landing] for landing in landings])

    def _carry(self, landing: _Landing) -> QuantTensor:
        held = self._checkpoint.held(landing.name)
        _refuse_non_finite(landing.name, held)
        return carried_over(held, landing.grid, landing.name)


def _refuse_non_finite(name: str, held: QuantTensor) -> None:
    import torch

    for part, value in held.parameters.items():
        bad = 0 if not value.is_floating_point() else int((~torch.isfinite(value)).sum())
        if bad:
            raise UnreadableInput(
                f"tensor {name!r}: {bad} of {value.numel()} values of its {part} are NaN or "
                "infinite; the checkpoint is damaged, get it anew"
            )
