"""How a runtime quantizes the input of a linear layer, for formats that compute in few bits.

Symmetric: ``scale = max|x| / (2**(bits-1) - 1)``, as vLLM's int8 kernels and the SmoothQuant paper
(https://arxiv.org/abs/2211.10438, eq. 1) have it. Asymmetric: the range is stretched to hold zero,
``scale = (high - low) / (2**bits - 1)``, ``zero_point = round(-low / scale)``, as ONNX's
DynamicQuantizeLinear. Both divide by the scale and round ties to even, as ONNX's QuantizeLinear.
Float: ``scale = max|x| / 448``, then the nearest FP8 E4M3 value, as vLLM's FP8 kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from qconv.errors import UnsupportedGrid, UsageError
from qconv.grids import _e4m3
from qconv.grids._checks import check_choice, from_options

if TYPE_CHECKING:
    import torch

    from qconv.grids._grid import Parameters

Kind = Literal["int", "float"]
Scope = Literal["token", "tensor", "group"]

#: The smallest normal float32: no scale is below it, so that none divides by zero.
_SMALLEST = 2.0**-126


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationGrid:
    """Values of an activation: evenly spaced, or FP8 E4M3.

    Codes are int8 in ``[-2**(bits-1), 2**(bits-1) - 1]`` when symmetric, uint8 in
    ``[0, 2**bits - 1]`` when not, and uint8 bit patterns when float. Parameters: ``scale`` float32,
    positive, and unless symmetric ``zero_point`` uint8; both are (rows, 1) per token, (rows,
    in / group_size) per group, and (1,) per tensor.

    bits: 2 to 8; a float has 8
    symmetric: no zero-point; a float has none
    scope: ``token``: one scale per row; ``group``: one per ``group_size`` neighbours in a row;
        ``tensor``: one for all
    dynamic: the runtime finds the scale as it goes; otherwise calibration states it beforehand
    kind: ``int``: evenly spaced; ``float``: FP8 E4M3
    group_size: with scope ``group`` only
    """

    bits: int = 8
    symmetric: bool = True
    scope: Scope = "token"
    dynamic: bool = True
    kind: Kind = "int"
    group_size: int | None = None

    def __post_init__(self) -> None:
        _check_options(self)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> ActivationGrid:
        """The grid that :meth:`spec` describes.

        Raises:
            UsageError: an option is missing, unknown or out of range.
        """
        return from_options(cls, "activation grid", ", ".join(cls.__dataclass_fields__), spec)

    def spec(self) -> Mapping[str, Any]:
        """JSON-able description, the input of :meth:`from_spec`."""
        return {"family": "activation", **asdict(self)}

    @property
    def name(self) -> str:
        """``int8_token``, ``uint8_tensor_static``, ``fp8_g128``."""
        kind = "fp" if self.kind == "float" else "int" if self.symmetric else "uint"
        scope = f"g{self.group_size}" if self.scope == "group" else self.scope
        return f"{kind}{self.bits}_{scope}{'' if self.dynamic else '_static'}"

    @property
    def lowest(self) -> int:
        """The lowest code."""
        if self.kind == "float":
            return 0
        return -(1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def highest(self) -> int:
        """The highest code."""
        if self.kind == "float":
            return _e4m3.HIGHEST
        return (1 << (self.bits - 1)) - 1 if self.symmetric else (1 << self.bits) - 1

    def layout(self) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Shape and torch dtype name of what must be stored: nothing when dynamic."""
        if self.dynamic:
            return {}
        if self.symmetric:
            return {"scale": ((1,), "float32")}
        return {"scale": ((1,), "float32"), "zero_point": ((1,), "uint8")}

    def fit(self, x: torch.Tensor) -> Parameters:
        """The parameters that a runtime finds for ``x``, or that ``x`` as calibration gives.

        x: (rows, in) float32

        Raises:
            UnsupportedGrid: a value is not finite, or the groups do not divide the columns.
        """
        import torch

        low, high = torch.aminmax(self._grouped(x), dim=2)  # (rows, 1 or groups) both
        if self.scope == "tensor":
            low, high = low.amin(0), high.amax(0)  # (1,) both
        return self._of_range(low, high)

    def fit_range(self, low: torch.Tensor, high: torch.Tensor) -> Parameters:
        """The static parameters that calibration states: nothing when dynamic.

        low, high: (in,) float32, least and greatest value per column, as statistics have them

        Raises:
            UnsupportedGrid: an end is not finite.
        """
        if self.dynamic:
            return {}
        return self._of_range(low.amin().view(1), high.amax().view(1))

    def round(self, x: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """The codes of ``x``, ties to even: (rows, in) int8 or uint8.

        x: (rows, in) float32; values beyond the range take its end
        """
        import torch

        steps = self._grouped(x) / parameters["scale"][..., None]
        if self.kind == "float":
            return _e4m3.encode(steps).view(x.shape)
        steps = steps.round()
        if not self.symmetric:
            steps = steps + parameters["zero_point"].float()[..., None]
        codes = steps.clamp(self.lowest, self.highest)
        return codes.to(torch.int8 if self.symmetric else torch.uint8).view(x.shape)

    def decode(self, codes: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """``scale * (code - zero_point)``, or a float's value times scale: (rows, in) float32."""
        grouped = self._grouped(codes)
        steps = _e4m3.decode(grouped) if self.kind == "float" else grouped.float()
        if not self.symmetric:
            steps = steps - parameters["zero_point"].float()[..., None]
        return (steps * parameters["scale"][..., None]).view(codes.shape)

    def fake_quantize(self, x: torch.Tensor, parameters: Parameters | None = None) -> torch.Tensor:
        """``x`` as the linear layer sees it at run time: (rows, in) float32, a new tensor.

        x: (rows, in) float32
        parameters: static ones; None fits them to ``x``
        """
        parameters = self.fit(x) if parameters is None else parameters
        return self.decode(self.round(x, parameters), parameters)

    def _grouped(self, values: torch.Tensor) -> torch.Tensor:
        """(rows, in) as (rows, groups, size): one group unless the scope says otherwise."""
        rows, columns = values.shape
        size = columns if self.group_size is None else self.group_size
        if columns % size:
            raise UnsupportedGrid(
                f"activation grid {self.name}: an input of {columns} columns is not a multiple of "
                f"group size {size}; leave inputs of this layer as they are, or quantize per token"
            )
        return values.reshape(rows, columns // size, size)

    def _of_range(self, low: torch.Tensor, high: torch.Tensor) -> Parameters:
        import torch

        from qconv.grids._uniform_fit import over

        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        if self.symmetric:
            largest = _e4m3.LARGEST if self.kind == "float" else self.highest
            scale = over(torch.maximum(-low, high), largest)
        else:
            # Divided first: the difference of two large ends would overflow.
            scale = over(high, self.highest) - over(low, self.highest)
        _check_finite(self.name, scale)
        scale = torch.where(scale > 0, scale.clamp(min=_SMALLEST), 1.0)
        if self.symmetric:
            return {"scale": scale}
        zero = (-low / scale).round().clamp(0, self.highest).to(torch.uint8)
        return {"scale": scale, "zero_point": zero}


def _check_options(grid: ActivationGrid) -> None:
    title = "activation grid"
    if type(grid.bits) is not int or not 2 <= grid.bits <= 8:
        raise UsageError(f"{title}: bits is {grid.bits!r}; choose a whole number from 2 to 8")
    for field in ("symmetric", "dynamic"):
        if type(getattr(grid, field)) is not bool:
            raise UsageError(f"{title}: {field} is {getattr(grid, field)!r}; choose true or false")
    check_choice(title, "scope", grid.scope, get_args(Scope))
    check_choice(title, "kind", grid.kind, get_args(Kind))
    if grid.kind == "float" and not (grid.bits == 8 and grid.symmetric):
        raise UsageError(
            f"{title}: a float has 8 bits and no zero-point, but bits is {grid.bits} and symmetric "
            f"{grid.symmetric}; leave them out or set kind to 'int'"
        )
    if not grid.dynamic and grid.scope != "tensor":
        raise UsageError(
            f"{title}: a scale per {grid.scope} cannot be static, as tokens are not known "
            "beforehand; choose scope 'tensor' or dynamic"
        )
    _check_group(grid)


def _check_group(grid: ActivationGrid) -> None:
    size = grid.group_size
    if (grid.scope == "group") != (size is not None):
        raise UsageError(
            f"activation grid: scope is {grid.scope!r} and group_size {size!r}; scope 'group' "
            "needs a group_size, the others take none"
        )
    if size is not None and (type(size) is not int or size < 1):
        raise UsageError(f"activation grid: group_size is {size!r}; choose a positive number")


def _check_finite(name: str, scale: torch.Tensor) -> None:
    largest = float(scale.max())
    if not math.isfinite(largest) or bool(scale.isnan().any()):
        raise UnsupportedGrid(
            f"activation grid {name}: the input has values that are not finite; repeat the "
            "calibration without the samples that overflow"
        )
