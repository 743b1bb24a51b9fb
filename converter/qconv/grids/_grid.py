"""What a grid is: the set of values a weight may take in a format, and how they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

Parameters = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnGrid:
    """The values one input column may take: ``scale * (codebook[code] or code) + offset``.

    scale, offset: (out,) float32; (1,) where all rows share them; longer than ``out`` where blocks
        of rows share them and the last block ends early: those beyond are no rows'
    lowest, highest: inclusive range of codes
    codebook: (codes,) float32, indexed by code, in any order; of equal values the lowest code is
        the one to take; None when a code stands for itself
    """

    scale: torch.Tensor
    offset: torch.Tensor
    lowest: int
    highest: int
    codebook: torch.Tensor | None = None


@runtime_checkable
class Grid(Protocol):
    """Values a weight may take, and the arithmetic to get there. Frozen; equal specs, equal grids.

    All tensors live on the weight's device. Weights are ``(out, in)`` float32, importance is
    ``(in,)`` float32 (the diagonal of the Gram matrix of the input) or None for equal importance.
    Codes are one byte each, ``(out, in)`` uint8 or int8. Parameters are named tensors whose first
    dimension is ``out``, unless ``rows_independent`` is False. What the format rounds (float16
    scales, 6-bit sub-scales, integer zero-points) is rounded inside ``fit``. Inputs are never
    modified.
    """

    @property
    def name(self) -> str:
        """Short name for people and plans, e.g. ``q4_k``."""
        ...

    @property
    def rows_independent(self) -> bool:
        """True when a row's codes and parameters depend on that row only."""
        ...

    def spec(self) -> Mapping[str, Any]:
        """JSON-able; :func:`qconv.grids.grid_from_spec` builds an equal grid from it."""
        ...

    def columns(self, in_features: int) -> int:
        """How many consecutive inputs share one fit: 256, the group size, or ``in_features``."""
        ...

    def check_shape(self, shape: tuple[int, int], name: str = "weight") -> None:
        """Raise UnsupportedGrid, naming ``name`` and sizes that work, for an unfit shape."""
        ...

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Bits per weight as stored, parameters included."""
        ...

    def layout(self, shape: tuple[int, int]) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Shape and torch dtype name of ``codes`` and of every parameter, by name."""
        ...

    def fit(self, weight: torch.Tensor, importance: torch.Tensor | None = None) -> Parameters:
        """Find the parameters that lose least, in importance-weighted squared error."""
        ...

    def round(self, weight: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """Codes of the nearest grid values."""
        ...

    def quantize(
        self, weight: torch.Tensor, importance: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Parameters]:
        """``fit`` and ``round`` in one pass over the weights: codes and parameters.

        A grid with an attribute ``takes_stored`` that is true takes float16 and bfloat16 here too,
        and so saves whoever has them a copy.
        """
        ...

    def decode(self, codes: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """The float32 values a runtime computes, bit for bit."""
        ...

    def rescaled(self, parameters: Parameters, factor: torch.Tensor) -> Parameters:
        """Parameters under which every code is worth about ``factor`` times as much, as stored.

        factor: (rows, in / columns) float32, positive; (1, 1) where all rows share parameters
        """
        ...

    def column(self, parameters: Parameters, index: int) -> ColumnGrid:
        """The values that input column ``index`` may take, for column-wise methods."""
        ...

    def column_run(self, in_features: int) -> int:
        """How many consecutive columns share one :meth:`column`; it divides :meth:`columns`."""
        ...
