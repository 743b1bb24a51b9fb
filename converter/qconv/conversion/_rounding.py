"""How codes are chosen: by a rounder tensor by tensor, or beforehand for a whole block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qconv.tensors import QuantTensor

if TYPE_CHECKING:
    import torch

    from qconv.conversion._work import Rounding, Rows
    from qconv.grids import Grid
    from qconv.plugin import Rounder, TensorPlan
    from qconv.statistics import Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class ByRounder:
    """A rounder, and what is known of each source tensor's input."""

    rounder: Rounder
    statistics: Mapping[str, Statistics] = field(default_factory=dict)

    def quantize(self, rows: Rows, plan: TensorPlan, grid: Grid) -> QuantTensor:
        """Quantize the slab; sources whose inputs differ are quantized each on its own."""
        known = [self.statistics.get(name) for name in plan.sources]
        if all(each is known[0] for each in known[1:]):
            weight = self._taken(rows.stored(plan))
            return self.rounder.quantize(weight, grid, known[0] if known else None)
        parts = [
            self.rounder.quantize(self._taken(rows.source.read_rows(name, 0, count)), grid, each)
            for (name, count), each in zip(rows.job.sources, known, strict=True)
        ]
        return joined(rows, parts)

    def _taken(self, weight: torch.Tensor) -> torch.Tensor:
        """In the dtype that the rounder takes."""
        return weight if getattr(self.rounder, "takes_stored", False) else weight.float()


@dataclass(frozen=True, slots=True, kw_only=True)
class Beforehand:
    """Source tensors of a block that were rounded together, onto the grids of one target.

    otherwise: for tensors that were not
    """

    rounded: Mapping[str, QuantTensor]
    otherwise: ByRounder

    @property
    def statistics(self) -> Mapping[str, Statistics]:
        """What is known of inputs."""
        return self.otherwise.statistics

    def quantize(self, rows: Rows, plan: TensorPlan, grid: Grid) -> QuantTensor:
        """Put the rows of what was rounded in the artifact's order."""
        parts = [self.rounded.get(name) for name in plan.sources]
        there = [part for part in parts if part is not None]
        if len(there) != len(parts):
            return self.otherwise.quantize(rows, plan, grid)
        return joined(rows, there)


def joined(rows: Rows, parts: list[QuantTensor]) -> QuantTensor:
    """Rows ``rows.start:rows.stop`` of the artifact, out of whole source tensors."""
    whole = parts[0] if len(parts) == 1 else QuantTensor.stack(parts)
    order = rows.job.order
    if order is not None:
        return whole.take_rows(list(order.index[rows.start : rows.stop]))
    if (rows.start, rows.stop) == (0, whole.shape[0]):
        return whole
    return whole.take_rows(range(rows.start, rows.stop))


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """Another rounding, whose decoded results are kept: what the next block will see.

    kept: decoded source tensors by name, (rows, columns) float32
    """

    rounding: Rounding
    kept: dict[str, torch.Tensor]

    @property
    def statistics(self) -> Mapping[str, Statistics]:
        """What is known of inputs."""
        return self.rounding.statistics

    def quantize(self, rows: Rows, plan: TensorPlan, grid: Grid) -> QuantTensor:
        """Quantize the slab, and keep its values in the order of the sources."""
        result = self.rounding.quantize(rows, plan, grid)
        values = result.dequantize()
        counts = [count for _, count in rows.job.sources]
        if (rows.start, rows.stop) == (0, sum(counts)):
            self._keep(rows, values, counts)
        return result

    def _keep(self, rows: Rows, values: torch.Tensor, counts: list[int]) -> None:
        import torch

        if rows.job.order is not None:
            index = torch.tensor(list(rows.job.order.index), device=values.device)
            placed = torch.empty_like(values)
            placed[index] = values
            values = placed
        for (name, _), part in zip(rows.job.sources, torch.split(values, counts), strict=True):
            self.kept[name] = part
