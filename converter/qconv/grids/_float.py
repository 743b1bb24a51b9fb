"""Float grids: FP8 E4M3 values under a scale per tensor, row or square block.

``value = float32(code) * scale``, codes being bit patterns as torch's ``float8_e4m3fn`` has them.
Weights are divided by their scale, saturate at 448, and round to nearest, ties to even: what
compressed-tensors' and vLLM's quantizers do (https://github.com/vllm-project/compressed-tensors).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from qconv.errors import UnsupportedGrid, UsageError
from qconv.grids import _e4m3
from qconv.grids._checks import (
    check_choice,
    check_matrix,
    check_weight,
    from_options,
    relative_importance,
)
from qconv.grids._grid import ColumnGrid, Parameters

if TYPE_CHECKING:
    import torch

    from qconv.grids._float_fit import Tiles

Scope = Literal["tensor", "channel", "block"]
ScaleDtype = Literal["float16", "bfloat16", "float32"]
Search = Literal["search", "absmax"]

#: Rows and columns of a block where none are named: those of DeepSeek-V3's weights
#: (https://arxiv.org/abs/2412.19437, section 3.3.2), which runtimes have kernels for.
_BLOCK = (128, 128)
#: Far beyond what any runtime has; a hostile file may ask for 2**60.
_LARGEST_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatGrid:
    """FP8 E4M3 values.

    Codes are uint8 bit patterns, never the two that are NaN. ``scale`` is positive, in
    ``scale_dtype``: (1, 1) per tensor, (rows, 1) per channel, and per block one for each, the last
    ones of a row or column being as small as what is left.

    scope: what shares a scale: the ``tensor``, a ``channel`` (row), or a ``block``
    block: rows and columns of a block; with scope ``block`` only
    scale_dtype: torch dtype name of the scales as stored
    search: how to fit: ``absmax`` takes the largest magnitude, ``search`` the least error
    """

    scope: Scope
    block: tuple[int, int] | None = None
    scale_dtype: ScaleDtype = "float32"
    search: Search = "absmax"

    def __post_init__(self) -> None:
        check_choice("float grid", "scope", self.scope, get_args(Scope))
        check_choice("float grid", "scale_dtype", self.scale_dtype, get_args(ScaleDtype))
        check_choice("float grid", "search", self.search, get_args(Search))
        object.__setattr__(self, "block", _checked_block(self.scope, self.block))

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> FloatGrid:
        """The grid that :meth:`spec` describes.

        Raises:
            UsageError: an option is missing, unknown or out of range.
        """
        return from_options(cls, "float grid", ", ".join(cls.__dataclass_fields__), spec)

    def spec(self) -> Mapping[str, Any]:
        """JSON-able description, the input of :meth:`from_spec`."""
        block = {} if self.block is None else {"block": list(self.block)}
        rest = {"scale_dtype": self.scale_dtype, "search": self.search}
        return {"family": "float", "scope": self.scope, **block, **rest}

    @property
    def name(self) -> str:
        """``fp8_tensor``, ``fp8_channel``, ``fp8_block128x128``."""
        return f"fp8_{self.scope}" + ("" if self.block is None else "{}x{}".format(*self.block))

    @property
    def rows_independent(self) -> bool:
        """True per channel only: otherwise rows share scales."""
        return self.scope == "channel"

    def columns(self, in_features: int) -> int:
        """Columns per scale; all where the last block is smaller than the others."""
        size = in_features if self.block is None else self.block[1]
        return size if in_features % size == 0 else in_features

    def check_shape(self, shape: tuple[int, int], name: str = "weight") -> None:
        """Raise UnsupportedGrid unless ``shape`` is 2-D and not empty; blocks may end early."""
        check_matrix(shape, name)

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """A byte per weight, and the scales in their dtype."""
        self.check_shape(shape)
        rows, columns = self._scale_shape(shape)
        bits = 32 if self.scale_dtype == "float32" else 16
        return 8 + rows * columns * bits / (shape[0] * shape[1])

    def layout(self, shape: tuple[int, int]) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of codes and scales."""
        self.check_shape(shape)
        return {
            "codes": (tuple(shape), "uint8"),
            "scale": (self._scale_shape(shape), self.scale_dtype),
        }

    def fit(self, weight: torch.Tensor, importance: torch.Tensor | None = None) -> Parameters:
        """The scales, as stored. Only a ``search`` heeds importance.

        Raises:
            UnsupportedGrid: the shape does not suit, a value is not finite, or the scale dtype
                cannot hold the scale.
        """
        import torch

        from qconv.grids import _float_fit

        weight = self._checked(weight)
        weights = relative_importance(weight, importance)
        dtype, tiles = getattr(torch, self.scale_dtype), self._tiles(weight)
        scale = _float_fit.plain(tiles, dtype)
        if self.search == "search":
            scale = _float_fit.searched(tiles, weights, scale, dtype)
        return {"scale": scale.to(dtype)}

    def round(self, weight: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """Codes of the nearest grid values, ties to even."""
        return self._codes(self._checked(weight), parameters)

    def quantize(
        self, weight: torch.Tensor, importance: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Parameters]:
        """:meth:`fit`, then the codes."""
        parameters = self.fit(weight, importance)
        return self._codes(weight.detach(), parameters), parameters

    def decode(self, codes: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """The code's value times the scale: (rows, columns) float32."""
        values = _e4m3.decode(codes.contiguous())
        for rows, scale in self._tiles(values).parts(parameters["scale"].float()):
            values[rows] *= scale
        return values

    def rescaled(self, parameters: Parameters, factor: torch.Tensor) -> Parameters:
        """Scales times ``factor``, neither zero nor infinite."""
        from qconv.grids._uniform_fit import stored_scale

        scale = parameters["scale"]
        return {"scale": stored_scale(scale.float() * factor, scale.dtype)}

    def column(self, parameters: Parameters, index: int) -> ColumnGrid:
        """The values of column ``index``; see :class:`ColumnGrid` for rows that share a scale."""
        height, width = (1, None) if self.block is None else self.block
        which = 0 if width is None else index // width
        scale = parameters["scale"][:, which].float().repeat_interleave(height)
        return ColumnGrid(
            scale=scale,
            offset=scale.new_zeros(scale.shape),
            lowest=0,
            highest=_e4m3.HIGHEST,
            codebook=_e4m3.codebook(scale.device),
        )

    def column_run(self, in_features: int) -> int:
        """Columns per scale, or what divides both them and all columns."""
        return in_features if self.block is None else math.gcd(self.block[1], in_features)

    def _scale_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        height, width = self._tile(shape)
        return -(-shape[0] // height), -(-shape[1] // width)

    def _tile(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns under one scale."""
        if self.block is not None:
            return self.block
        return (shape[0] if self.scope == "tensor" else 1), shape[1]

    def _tiles(self, weight: torch.Tensor) -> Tiles:
        from qconv.grids._float_fit import Tiles

        height, width = self._tile((weight.shape[0], weight.shape[1]))
        return Tiles(weight=weight, height=height, width=width)

    def _codes(self, weight: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        import torch

        codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
        for rows, scale in self._tiles(weight).parts(parameters["scale"].float()):
            codes[rows] = _e4m3.encode(weight[rows] / scale)
        return codes

    def _checked(self, weight: torch.Tensor) -> torch.Tensor:
        import torch

        weight = weight.detach()
        check_weight(weight)
        self.check_shape((weight.shape[0], weight.shape[1]))
        low, high = (float(extreme) for extreme in torch.aminmax(weight))
        limit = torch.finfo(getattr(torch, self.scale_dtype)).max
        scale = max(high, -low) / _e4m3.LARGEST
        if scale > limit:
            raise UnsupportedGrid(
                f"weight spans {low:.4g} to {high:.4g} and needs scale {scale:.4g}, but "
                f"{self.scale_dtype} ends at {limit:.4g}; use scale_dtype bfloat16 or float32"
            )
        return weight


def _checked_block(scope: str, block: object) -> tuple[int, int] | None:
    """The block as a pair: the usual one where a block is asked for and none is named."""
    if scope != "block":
        if block is None:
            return None
        raise UsageError(
            f"float grid: block is {block!r}, but scope is {scope!r}; leave block out, or set "
            "scope to 'block'"
        )
    pair = _BLOCK if block is None else block
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise UsageError(f"float grid: block is {pair!r}; choose [rows, columns]")
    height, width = pair
    if any(type(size) is not int or not 1 <= size <= _LARGEST_BLOCK for size in pair):
        raise UsageError(
            f"float grid: block is {pair!r}; choose two whole numbers from 1 to {_LARGEST_BLOCK}"
        )
    return height, width
