"""What block and super-block grids share: llama.cpp's types, whose blocks run along a row.

``value = scale * (code - centre)`` or ``scale * code + offset``; a family says what its types store
and how scale and offset come from it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from qconv.errors import UnsupportedGrid
from qconv.grids._checks import (
    check_choice,
    check_importance,
    check_matrix,
    check_weight,
    from_options,
    refuse_huge,
)
from qconv.grids._grid import ColumnGrid, Parameters

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

Search = Literal["default", "ggml"]
#: Parameters as a layout states them: shape and torch dtype name.
Layout = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockType:
    """What a type stores per block.

    lowest, highest: inclusive range of codes; int8 if some are negative, else uint8
    centre: the code of zero, None when an offset is stored
    scales: scales per block
    nbytes: bytes per block
    """

    highest: int
    nbytes: int
    lowest: int = 0
    centre: int | None = None
    scales: int = 1

    @property
    def dtype(self) -> str:
        """Torch dtype name of the codes."""
        return "int8" if self.lowest < 0 else "uint8"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockedGrid(ABC):
    """A grid whose blocks have one size; families say the rest."""

    type: str
    search: Search = "default"

    _title: ClassVar[str]  # in messages
    _family: ClassVar[str]  # in specs
    _size: ClassVar[int]  # columns per block
    _types: ClassVar[Mapping[str, BlockType]]

    def __post_init__(self) -> None:
        check_choice(self._title, "type", self.type, tuple(self._types))
        check_choice(self._title, "search", self.search, get_args(Search))

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """The grid that :meth:`spec` describes.

        Raises:
            UsageError: an option is missing, unknown or out of range.
        """
        return from_options(cls, cls._title, "type, search", spec)

    def spec(self) -> Mapping[str, Any]:
        """JSON-able description, the input of :meth:`from_spec`."""
        return {"family": self._family, "type": self.type, "search": self.search}

    @property
    def name(self) -> str:
        """The ggml type, in lower case."""
        return self.type

    @property
    def rows_independent(self) -> bool:
        """True: no block crosses rows."""
        return True

    def columns(self, in_features: int) -> int:  # noqa: ARG002 - blocks have one size
        """Columns per block."""
        return self._size

    def check_shape(self, shape: tuple[int, int], name: str = "weight") -> None:
        """Raise UnsupportedGrid unless whole blocks fill the rows."""
        check_matrix(shape, name)
        columns, size = shape[1], self._size
        if columns % size == 0:
            return
        below = columns // size * size
        near = f"{below} or {below + size}" if below else f"{size}"
        other = "q8_0 or q5_0, whose blocks are 32" if columns % 32 == 0 else "float16"
        raise UnsupportedGrid(
            f"tensor {name!r}: {columns} columns are not a multiple of {self.type}'s block of "
            f"{size} ({near} would be); use {other}"
        )

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Bytes of a block over its values."""
        self.check_shape(shape)
        return self._stored().nbytes * 8 / self._size

    def layout(self, shape: tuple[int, int]) -> Layout:
        """Shape and dtype of codes and parameters."""
        self.check_shape(shape)
        parameters = self._parameter_layout((shape[0], shape[1] // self._size))
        return {"codes": (tuple(shape), self._stored().dtype), **parameters}

    def fit(self, weight: torch.Tensor, importance: torch.Tensor | None = None) -> Parameters:
        """The parameters of :meth:`quantize`."""
        return self.quantize(weight, importance)[1]

    def round(self, weight: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """Codes of the nearest grid values; where the scale is 0, the code of zero."""
        import torch

        self._check_weight(weight)
        stored = self._stored()
        centre = stored.centre or 0
        scale = self._scale(parameters)[..., None]
        length = self._size // stored.scales
        steps = weight.detach().reshape(len(weight), -1, length)  # (rows, scales, length)
        if stored.centre is None:
            steps = steps - self._offset(parameters)[..., None]
        codes = (steps / scale).round_().add_(centre).clamp_(stored.lowest, stored.highest)
        codes = torch.where(scale == 0, float(centre), codes)
        return codes.to(getattr(torch, stored.dtype)).view(weight.shape)

    def quantize(
        self, weight: torch.Tensor, importance: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Parameters]:
        """Codes and parameters by the grid's search; Q8_0's ``ggml`` ignores importance.

        Raises:
            UnsupportedGrid: the shape does not suit, a value is not finite, or a scale or minimum
                does not fit float16.
        """
        self._check_weight(weight)
        if importance is not None:
            check_importance(importance, weight.shape[1])
        weight = weight.detach()
        if self.search == "ggml":
            from qconv.kernels import ggml

            codes, parameters = ggml.quantize(self.type, weight, importance)
        else:
            from qconv.kernels import search

            codes, parameters = search.quantize(self.type, weight, importance)
        self._check_halves(weight, parameters)
        return codes, parameters

    def decode(self, codes: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """The float32 values llama.cpp dequantizes to, (rows, columns)."""
        stored = self._stored()
        length = self._size // stored.scales
        values = codes.float().view(len(codes), -1, length)  # (rows, scales, length), a new tensor
        if stored.centre:
            values -= stored.centre
        values *= self._scale(parameters)[..., None]
        if stored.centre is None:  # two operations, for a fused one would round once
            values += self._offset(parameters)[..., None]
        return values.view(codes.shape)

    def rescaled(self, parameters: Parameters, factor: torch.Tensor) -> Parameters:
        """The float16 parameters times ``factor``, never infinite; the integers as they are."""
        import torch

        half = torch.finfo(torch.float16)
        return {
            name: (values.float() * factor).clamp(half.min, half.max).half()
            if values.dtype == torch.float16
            else values
            for name, values in parameters.items()
        }

    def column(self, parameters: Parameters, index: int) -> ColumnGrid:
        """The values of column ``index``; for Q6_K they may be one rounding off."""
        stored = self._stored()
        block, place = divmod(index, self._size)
        which = place * stored.scales // self._size
        own = {name: values[:, block, None] for name, values in parameters.items()}
        scale = self._scale(own)[:, which].contiguous()
        if stored.centre is None:
            offset = self._offset(own)[:, which].contiguous()
        else:
            offset = scale * -float(stored.centre)
        return ColumnGrid(scale=scale, offset=offset, lowest=stored.lowest, highest=stored.highest)

    def column_run(self, in_features: int) -> int:  # noqa: ARG002 - blocks have one size
        """Columns per scale of a block."""
        return self._size // self._stored().scales

    @abstractmethod
    def _parameter_layout(self, blocks: tuple[int, int]) -> Layout:
        """Shape and dtype of the parameters of (rows, blocks per row)."""

    @abstractmethod
    def _scale(self, parameters: Parameters) -> torch.Tensor:
        """What a step of one code is worth: (rows, scales per row) float32."""

    @abstractmethod
    def _offset(self, parameters: Parameters) -> torch.Tensor:
        """The value of code 0, for types without a centre: (rows, scales per row) float32."""

    def _stored(self) -> BlockType:
        return self._types[self.type]

    def _check_weight(self, weight: torch.Tensor) -> None:
        refuse_huge(weight, check_weight(weight))
        self.check_shape((weight.shape[0], weight.shape[1]))

    def _check_halves(self, weight: torch.Tensor, parameters: Parameters) -> None:
        import torch

        for name, values in parameters.items():
            # The sum of halves is finite in float32 if all of them are: one fast pass.
            if values.dtype != torch.float16 or math.isfinite(values.sum(dtype=torch.float32)):
                continue
            row, block = (~torch.isfinite(values)).nonzero()[0].tolist()
            first, end = block * self._size, (block + 1) * self._size
            largest = float(weight[row, first:end].abs().max())
            raise UnsupportedGrid(
                f"row {row}, columns {first}..{end - 1}: "
                f"values up to {largest:.4g} need a {name.replace('_', ' ')} "
                f"that {self.type} cannot store, float16 ends at 65504; keep the tensor in bfloat16"
            )
