"""Which part of a checkpoint's tensor fills which part of a module's parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A box of a source tensor and the box of a parameter it fills.

    source: tensor of the checkpoint
    source_box: (start, stop) along every dimension of the source
    parameter: name in the model
    box: (start, stop) along every dimension of the parameter
    axes: for every dimension of the source, the parameter's dimension it lies along; a dimension
        of the parameter that is not named (the expert's) has size 1 in ``box``
    """

    source: str
    source_box: tuple[tuple[int, int], ...]
    parameter: str
    box: tuple[tuple[int, int], ...]
    axes: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Values in the box."""
        total = 1
        for start, stop in self.source_box:
            total *= stop - start
        return total

    def of_source(self, source: torch.Tensor) -> torch.Tensor:
        """The box of the whole source tensor, a view."""
        return source[tuple(slice(start, stop) for start, stop in self.source_box)]

    def of_parameter(self, parameter: torch.Tensor) -> torch.Tensor:
        """The box of the parameter, its dimensions ordered as the source's: a view."""
        view = parameter
        for dim, (start, stop) in enumerate(self.box):
            view = view.narrow(dim, start, stop - start)
        gone = [dim for dim in range(parameter.dim()) if dim not in self.axes]
        for dim in reversed(gone):
            view = view.select(dim, 0)
        left = [dim for dim in range(parameter.dim()) if dim in self.axes]
        return view.permute([left.index(axis) for axis in self.axes])

    def is_whole(self, parameter: torch.Tensor, source_shape: tuple[int, ...]) -> bool:
        """True when source and parameter are the same tensor."""
        return (
            self.axes == tuple(range(parameter.dim()))
            and tuple(parameter.shape) == source_shape
            and self.numel == parameter.numel()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearRef:
    """A linear weight of a block: where the checkpoint has it, and where the module has it.

    source: tensor of the checkpoint
    source_rows: rows ``start:stop`` of its outputs that this reference covers, usually all
    parameter: path inside the block's module
    expert: index along the parameter's first dimension; None when the parameter is 2-D
    rows: outputs ``start:stop`` inside the parameter (or its expert's slice)
    transposed: the source is stored ``(in, out)``, as by GPT-2's Conv1D
    shape: (out, in) of the rows covered
    """

    source: str
    source_rows: tuple[int, int]
    parameter: str
    expert: int | None
    rows: tuple[int, int]
    transposed: bool
    shape: tuple[int, int]
