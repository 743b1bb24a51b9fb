"""Re-codes a quantized tensor onto another grid that holds the very same values, or refuses to.

A value of a uniform grid is ``scale * level``, the level being the code less its zero-point. Kept
as they are, a level on a scale gives the same float32 product on every grid: only how levels and
scales are written down changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qconv.errors import Unsupported
from qconv.grids import UniformGrid

if TYPE_CHECKING:
    import torch

    from qconv.grids import Grid
    from qconv.tensors._quant_tensor import QuantTensor

_OTHERWISE = "choose another format or options, or quantize the float checkpoint with qconv convert"


def carried_over(tensor: QuantTensor, grid: Grid, name: str = "weight") -> QuantTensor:
    """The tensor on ``grid``, every value as it was; zeros may change their sign.

    name: of the tensor, for messages

    Raises:
        Unsupported: the grid does not hold these values; it says what is in the way.
        UnsupportedGrid: the tensor's shape does not suit the grid.
    """
    if tensor.grid == grid:
        return tensor
    if _meaning(tensor.grid) == _meaning(grid):
        return replace(tensor, grid=grid)
    if not isinstance(tensor.grid, UniformGrid) or not isinstance(grid, UniformGrid):
        raise Unsupported(
            f"tensor {name!r}: codes of {tensor.grid.name} {_meaning(tensor.grid)} cannot be "
            f"written as {grid.name} {_meaning(grid)} with the same values; {_OTHERWISE}"
        )
    grid.check_shape(tensor.shape, name)
    levels = _Levels.of(tensor, tensor.grid, name).grouped_for(grid)
    if grid.narrow:
        levels = levels.with_positive_scales()
    codes, parameters = levels.symmetric(grid) if grid.symmetric else levels.shifted(grid)
    return replace(
        tensor,
        grid=grid,
        codes=codes.reshape(tensor.shape),
        parameters={"scale": levels.stored_scale(grid), **parameters},
    )


def _meaning(grid: Grid) -> dict[str, object]:
    """The grid's description without how its parameters were found."""
    return {key: value for key, value in grid.spec().items() if key != "search"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Levels:
    """A uniform tensor without the way its levels are written.

    values: (rows, groups, columns of a group) int16; all rows are one where they share a scale
    scale: (rows, groups), as stored
    zero: (rows, groups) int16, where a zero-point is best put
    """

    name: str
    values: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor

    @classmethod
    def of(cls, tensor: QuantTensor, grid: UniformGrid, name: str) -> _Levels:
        """Those of a tensor, a scale for every row."""
        import torch

        rows, columns = tensor.shape
        shape = (rows, columns // grid.columns(columns))
        values = tensor.codes.to(torch.int16).view(*shape, -1)
        middle = torch.full(shape, 1 << (grid.bits - 1), dtype=torch.int16, device=values.device)
        zero = middle
        if not grid.symmetric:
            zero = tensor.parameters["zero_point"].to(torch.int16).expand(shape)
            values = values - zero[..., None]
        scale = tensor.parameters["scale"].expand(shape)
        return cls(name=name, values=values, scale=scale, zero=zero)

    def grouped_for(self, grid: UniformGrid) -> _Levels:
        """The same levels, in the groups of ``grid``."""
        rows, groups, size = self.values.shape
        wanted = grid.columns(groups * size)
        if size % wanted == 0:
            times = size // wanted
            scale, zero = (each.repeat_interleave(times, 1) for each in (self.scale, self.zero))
        elif wanted % size == 0:
            scale, zero = self._merged(self.scale, wanted), self._first(self.zero, wanted)
        else:
            raise Unsupported(
                f"tensor {self.name!r}: groups of {size} columns do not make up groups of "
                f"{wanted}; {_OTHERWISE}"
            )
        values = self.values.reshape(rows, -1, wanted)
        if not grid.rows_independent:  # one group of all rows
            values, scale = values.reshape(1, 1, -1), self._merged(scale.reshape(1, -1), None)
            zero = zero[:1, :1]
        return replace(self, values=values, scale=scale, zero=zero)

    def _first(self, parameter: torch.Tensor, wanted: int | None) -> torch.Tensor:
        size = self.values.shape[2]
        count = parameter.shape[1] if wanted is None else wanted // size
        return parameter.reshape(parameter.shape[0], -1, count)[..., 0]

    def _merged(self, scale: torch.Tensor, wanted: int | None) -> torch.Tensor:
        """One scale of several that are equal. wanted: columns they span; None: all there are."""
        first = self._first(scale, wanted)
        together = scale.reshape(*first.shape, -1)
        mixed = int((together != first[..., None]).any(2).sum())
        if mixed:
            unit = "tensor" if wanted is None else f"group of {wanted} columns"
            raise Unsupported(
                f"tensor {self.name!r}: {mixed} of {first.numel()} scales per {unit} would have to "
                f"stand for several that differ; {_OTHERWISE}"
            )
        return first

    def with_positive_scales(self) -> _Levels:
        """The same values: where a scale is negative, it and the levels change their signs."""
        import torch

        flipped = torch.where(self.scale < 0, -1, 1).to(torch.int16)
        return replace(self, values=self.values * flipped[..., None], scale=self.scale.abs())

    def stored_scale(self, grid: UniformGrid) -> torch.Tensor:
        """The scales in the grid's dtype.

        Raises:
            Unsupported: one of them would be rounded.
        """
        import torch

        stored = self.scale.to(getattr(torch, grid.scale_dtype)).contiguous()
        lost = torch.nonzero((stored.float() != self.scale.float()) | (stored == 0))
        if len(lost):
            row, group = lost[0].tolist()
            raise Unsupported(
                f"tensor {self.name!r}: {len(lost)} of {stored.numel()} scales do not fit "
                f"{grid.scale_dtype} exactly, the first in row {row}, group {group}: "
                f"{float(self.scale[row, group])}; {_OTHERWISE}"
            )
        return stored

    def symmetric(self, grid: UniformGrid) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Levels as they are: int8 codes, and no parameter besides the scale."""
        import torch

        highest = (1 << (grid.bits - 1)) - 1
        lowest = -highest if grid.narrow else -highest - 1
        low, high = self.values.amin(2), self.values.amax(2)
        self._refuse((low < lowest) | (high > highest), grid, f"levels {lowest} to {highest}")
        return self.values.to(torch.int8), {}

    def shifted(self, grid: UniformGrid) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Levels above a zero-point: uint8 codes, and the zero-points, changed where need be."""
        import torch

        last = (1 << grid.bits) - 1
        low, high = self.values.amin(2), self.values.amax(2)
        least, most = (-low).clamp(min=0), (last - high).clamp(max=last)
        self._refuse(least > most, grid, f"{last + 1} neighbouring levels, zero among them")
        zero = torch.minimum(torch.maximum(self.zero, least), most)
        codes = (self.values + zero[..., None]).to(torch.uint8)
        return codes, {"zero_point": zero.to(torch.uint8).contiguous()}

    def _refuse(self, unfit: torch.Tensor, grid: UniformGrid, holds: str) -> None:
        import torch

        bad = torch.nonzero(unfit)
        if not len(bad):
            return
        row, group = bad[0].tolist()
        there = self.values[row, group]
        raise Unsupported(
            f"tensor {self.name!r}: {len(bad)} of {unfit.numel()} groups do not fit {grid.name}, "
            f"which holds {holds}: the first, in row {row}, group {group}, has levels "
            f"{int(there.min())} to {int(there.max())}; {_OTHERWISE}"
        )
