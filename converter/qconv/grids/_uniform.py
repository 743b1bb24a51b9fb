"""Uniform grids: evenly spaced values, symmetric or with a zero-point.

``value = scale * (code - zero_point)``, in float32. The symmetric grid uses its full range with a
signed scale, as llama.cpp's Q4_0 does: the largest magnitude lands on the lowest code, whichever
sign it has. At 4 bits that is 16 values where ``narrow`` has 15.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from qconv.errors import UnsupportedGrid, UsageError
from qconv.grids._checks import (
    check_choice,
    check_matrix,
    check_weight,
    from_options,
    relative_importance,
    widened,
)
from qconv.grids._grid import ColumnGrid, Parameters

if TYPE_CHECKING:
    import torch

    from qconv.grids._uniform_fit import Rule

ScaleDtype = Literal["float16", "bfloat16", "float32"]
Search = Literal["search", "absmax"]

#: Bits up to which grids with zero-points keep the whole range where no importance is known.
_NEVER_CLIPPED_BITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformGrid:
    """Evenly spaced values.

    Codes are int8 in ``[-2**(bits-1), 2**(bits-1) - 1]`` when symmetric, else uint8 in
    ``[0, 2**bits - 1]``. Parameters: ``scale`` (rows, groups) in ``scale_dtype``, never zero, and
    unless symmetric ``zero_point`` (rows, groups) uint8, in the range of the codes. Per tensor both
    are (1, 1).

    bits: 2 to 8
    symmetric: no zero-point
    group_size: columns per scale; ``channel``: a whole row; ``tensor``: all rows
    scale_dtype: torch dtype name of the scales as stored
    narrow: symmetric codes without the lowest one, and positive scales
    search: how to fit: ``absmax`` takes the largest magnitude, ``search`` the least error
    """

    bits: int
    symmetric: bool
    group_size: int | Literal["channel", "tensor"]
    scale_dtype: ScaleDtype = "float16"
    narrow: bool = False
    search: Search = "search"

    #: :meth:`quantize` takes weights in float16 and bfloat16 too.
    takes_stored: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_options(self)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> UniformGrid:
        """The grid that :meth:`spec` describes.

        Raises:
            UsageError: an option is missing, unknown or out of range.
        """
        return from_options(cls, "uniform grid", ", ".join(cls.__dataclass_fields__), spec)

    def spec(self) -> Mapping[str, Any]:
        """JSON-able description, the input of :meth:`from_spec`."""
        return {"family": "uniform", **asdict(self)}

    @property
    def name(self) -> str:
        """``int4_g64``, ``uint4_g128``, ``int8_channel``, ``int8_tensor``."""
        kind = "int" if self.symmetric else "uint"
        unit = f"g{self.group_size}" if isinstance(self.group_size, int) else self.group_size
        return f"{kind}{self.bits}_{unit}"

    @property
    def rows_independent(self) -> bool:
        """False per tensor: all rows share a scale."""
        return self.group_size != "tensor"

    def columns(self, in_features: int) -> int:
        """Columns per scale."""
        return self.group_size if isinstance(self.group_size, int) else in_features

    def check_shape(self, shape: tuple[int, int], name: str = "weight") -> None:
        """Raise UnsupportedGrid unless the groups divide the columns."""
        check_matrix(shape, name)
        size = self.columns(shape[1])
        if shape[1] % size:
            raise UnsupportedGrid(
                f"tensor {name!r}: {shape[1]} columns are not a multiple of group size {size}; "
                f"use {_suggestion(shape[1], size)} or skip it"
            )

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Codes and zero-points packed to ``bits``, scales in their dtype."""
        self.check_shape(shape)
        scale_bits = 32 if self.scale_dtype == "float32" else 16
        zero_bits = 0 if self.symmetric else self.bits
        rows, groups = self._parameter_shape(shape)
        return self.bits + rows * groups * (scale_bits + zero_bits) / (shape[0] * shape[1])

    def layout(self, shape: tuple[int, int]) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of codes and parameters."""
        self.check_shape(shape)
        parameter_shape = self._parameter_shape(shape)
        layout: dict[str, tuple[tuple[int, ...], str]] = {
            "codes": (tuple(shape), "int8" if self.symmetric else "uint8"),
            "scale": (parameter_shape, self.scale_dtype),
        }
        if not self.symmetric:
            layout["zero_point"] = (parameter_shape, "uint8")
        return layout

    def fit(self, weight: torch.Tensor, importance: torch.Tensor | None = None) -> Parameters:
        """Scales and zero-points of least importance-weighted squared error, as stored.

        Without importance, an error counts by the square of the weight it befalls.

        Raises:
            UnsupportedGrid: the shape does not suit, a value is not finite, or the scale dtype
                cannot hold the scale.
        """
        from qconv.grids import _uniform_fit

        weight = self._checked(weight)
        weights = relative_importance(weight, importance)
        rule = self._rule() if importance is not None else self._blind_rule()
        if self.rows_independent:
            groups = weight.shape[1] // self.columns(weight.shape[1])
            scale, zero = _uniform_fit.fit_rows(weight, weights, groups, rule)
        else:
            scale, zero = _uniform_fit.fit_tensor(weight, weights, rule)
        return self._as_stored(scale, zero)

    def round(self, weight: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """Codes of the nearest grid values, ties to even codes."""
        return self._codes(self._checked(weight), parameters)

    def quantize(
        self, weight: torch.Tensor, importance: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Parameters]:
        """:meth:`fit`, then the codes; also of weights in float16 or bfloat16."""
        from qconv.grids import _uniform_fit

        if importance is None and self.rows_independent:
            rule = self._blind_rule()
            if _uniform_fit.is_fused(weight, rule):
                return self._quantized_plainly(weight.detach(), rule)
        weight = widened(weight)
        parameters = self.fit(weight, importance)
        return self._codes(weight.detach(), parameters), parameters

    def _quantized_plainly(
        self, weight: torch.Tensor, rule: Rule
    ) -> tuple[torch.Tensor, Parameters]:
        from qconv.grids import _uniform_fit

        check_matrix(tuple(weight.shape), "weight")
        self.check_shape((weight.shape[0], weight.shape[1]))
        groups = weight.shape[1] // self.columns(weight.shape[1])
        done = _uniform_fit.quantize_rows(weight, groups, rule)
        if not (math.isfinite(done.low) and math.isfinite(done.high)):
            check_weight(widened(weight))
        self._check_span(done.low, done.high)
        return done.codes, self._as_stored(done.scale, done.zero)

    def decode(self, codes: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """``scale * (code - zero_point)``: (rows, columns) float32."""
        rows, columns = codes.shape
        steps = codes.float().view(rows, -1, self.columns(columns))  # (rows, groups, size)
        if not self.symmetric:
            steps = steps - parameters["zero_point"].float()[..., None]
        return (parameters["scale"].float()[..., None] * steps).view(rows, columns)

    def rescaled(self, parameters: Parameters, factor: torch.Tensor) -> Parameters:
        """Scales times ``factor``, neither zero nor infinite; the zero-points as they are."""
        from qconv.grids._uniform_fit import stored_scale

        scale = parameters["scale"]
        return {**parameters, "scale": stored_scale(scale.float() * factor, scale.dtype)}

    def column(self, parameters: Parameters, index: int) -> ColumnGrid:
        """The values of column ``index``; scale and offset are (1,) per tensor, else (rows,)."""
        group = index // self.group_size if isinstance(self.group_size, int) else 0
        scale = parameters["scale"][:, group].float()
        rule = self._rule()
        if self.symmetric:
            offset = scale.new_zeros(scale.shape)
        else:
            offset = -scale * parameters["zero_point"][:, group].float()
        return ColumnGrid(scale=scale, offset=offset, lowest=rule.lowest, highest=rule.highest)

    def column_run(self, in_features: int) -> int:
        """Columns per scale."""
        return self.columns(in_features)

    def _as_stored(self, scale: torch.Tensor, zero: torch.Tensor) -> Parameters:
        import torch

        stored = scale.to(getattr(torch, self.scale_dtype)).contiguous()
        if self.symmetric:
            return {"scale": stored}
        return {"scale": stored, "zero_point": zero.to(torch.uint8).contiguous()}

    def _parameter_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        if not self.rows_independent:
            return 1, 1
        return shape[0], shape[1] // self.columns(shape[1])

    def _rule(self) -> Rule:
        from qconv.grids._uniform_fit import Rule

        half = 1 << (self.bits - 1)
        lowest = (-half + 1 if self.narrow else -half) if self.symmetric else 0
        return Rule(
            bits=self.bits,
            lowest=lowest,
            highest=half - 1 if self.symmetric else 2 * half - 1,
            symmetric=self.symmetric,
            narrow=self.narrow,
            scale_dtype=self.scale_dtype,
            search=self.search == "search",
        )

    def _blind_rule(self) -> Rule:
        """How to fit where nothing is known of the input; see ``_uniform_fit``."""
        rule = self._rule()
        clips = self.symmetric or self.bits > _NEVER_CLIPPED_BITS
        return replace(rule, by_magnitude=True, search=rule.search and clips)

    def _codes(self, weight: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        import torch

        from qconv.grids._uniform_fit import bounds
        from qconv.kernels import uniform

        inverse = 1.0 / parameters["scale"].float()
        zero = torch.zeros_like(inverse)
        if not self.symmetric:
            zero = parameters["zero_point"].float()
        low, high = bounds(zero, self._rule())
        shape = (weight.shape[0], inverse.shape[1])
        inverse, low, high, zero = (
            each.expand(shape).contiguous() for each in (inverse, low, high, zero)
        )
        dtype = torch.int8 if self.symmetric else torch.uint8
        return uniform.codes(weight.contiguous(), inverse, low, high, zero, dtype)

    def _checked(self, weight: torch.Tensor) -> torch.Tensor:
        import torch

        weight = weight.detach()
        check_weight(weight)
        self.check_shape((weight.shape[0], weight.shape[1]))
        self._check_span(*(float(extreme) for extreme in torch.aminmax(weight)))
        return weight

    def _check_span(self, low: float, high: float) -> None:
        """Raise UnsupportedGrid where a weight needs a scale that its dtype cannot hold."""
        import torch

        from qconv.grids._uniform_fit import largest_scale

        limit = torch.finfo(getattr(torch, self.scale_dtype)).max
        scale = largest_scale(low, high, self._rule())
        if scale > limit:
            raise UnsupportedGrid(
                f"weight spans {low:.4g} to {high:.4g} and needs scale {scale:.4g}, but "
                f"{self.scale_dtype} ends at {limit:.4g}; use scale_dtype bfloat16 or float32"
            )


def _check_options(grid: UniformGrid) -> None:
    if type(grid.bits) is not int or not 2 <= grid.bits <= 8:
        raise UsageError(f"uniform grid: bits is {grid.bits!r}; choose a whole number from 2 to 8")
    size = grid.group_size
    if size not in ("channel", "tensor") and (type(size) is not int or size < 1):
        raise UsageError(
            f"uniform grid: group_size is {size!r}; choose a positive number, 'channel' or 'tensor'"
        )
    for field in ("symmetric", "narrow"):
        if type(getattr(grid, field)) is not bool:
            raise UsageError(
                f"uniform grid: {field} is {getattr(grid, field)!r}; choose true or false"
            )
    check_choice("uniform grid", "scale_dtype", grid.scale_dtype, get_args(ScaleDtype))
    check_choice("uniform grid", "search", grid.search, get_args(Search))
    if grid.narrow and not grid.symmetric:
        raise UsageError(
            "uniform grid: narrow goes with symmetric codes only; "
            "set symmetric to true or leave narrow out"
        )


def _suggestion(columns: int, size: int) -> str:
    """A group size that divides ``columns``, at most ``size``, and that kernels handle well."""
    # Kernels take powers of two from 32 on best, then multiples of 8 (whole bytes of packed codes).
    # None takes groups above 1024; a hostile file may ask for 2**48.
    divisors = [part for part in range(min(size, columns, 1024), 7, -1) if columns % part == 0]
    powers = [part for part in divisors if part >= 32 and part & (part - 1) == 0]
    whole = [part for part in divisors if part % 8 == 0]
    if powers or whole:
        return f"group size {(powers or whole)[0]}"
    return "group size 'channel'"
