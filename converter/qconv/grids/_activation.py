"""How a runtime quantizes the input of a linear layer, for formats that compute in integers.

Symmetric: ``scale = max|x| / (2**(bits-1) - 1)``, as vLLM's int8 kernels and the SmoothQuant paper
(https://arxiv.org/abs/2211.10438, eq. 1) have it. Asymmetric: the range is stretched to hold zero,
``scale = (high - low) / (2**bits - 1)``, ``zero_point = round(-low / scale)``, as ONNX's
DynamicQuantizeLinear. Both divide by the scale and round ties to even, as ONNX's QuantizeLinear.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from qconv.errors import Unsupported, UnsupportedGrid, UsageError
from qconv.grids._checks import check_choice, from_options

if TYPE_CHECKING:
    import torch

    from qconv.grids._grid import Parameters

Scope = Literal["token", "tensor"]

#: The smallest normal float32: no scale is below it, so that none divides by zero.
_SMALLEST = 2.0**-126


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationGrid:
    """Evenly spaced values of an activation.

    Codes are int8 in ``[-2**(bits-1), 2**(bits-1) - 1]`` when symmetric, else uint8 in
    ``[0, 2**bits - 1]``. Parameters: ``scale`` float32, positive, and unless symmetric
    ``zero_point`` uint8; both are (rows, 1) per token and (1,) per tensor.

    bits: 2 to 8
    symmetric: no zero-point
    scope: ``token``: one scale per row; ``tensor``: one for all
    dynamic: the runtime finds the scale as it goes; otherwise calibration states it beforehand
    """

    bits: int = 8
    symmetric: bool = True
    scope: Scope = "token"
    dynamic: bool = True

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 2 <= self.bits <= 8:
            raise UsageError(
                f"activation grid: bits is {self.bits!r}; choose a whole number from 2 to 8"
            )
        for field in ("symmetric", "dynamic"):
            if type(getattr(self, field)) is not bool:
                raise UsageError(
                    f"activation grid: {field} is {getattr(self, field)!r}; choose true or false"
                )
        check_choice("activation grid", "scope", self.scope, get_args(Scope))
        if not self.dynamic and self.scope == "token":
            raise UsageError(
                "activation grid: a scale per token cannot be static, as tokens are not known "
                "beforehand; choose scope 'tensor' or dynamic"
            )

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
        """``int8_token``, ``uint8_tensor_static``."""
        kind = "int" if self.symmetric else "uint"
        return f"{kind}{self.bits}_{self.scope}{'' if self.dynamic else '_static'}"

    @property
    def lowest(self) -> int:
        """The lowest code."""
        return -(1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def highest(self) -> int:
        """The highest code."""
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
            UnsupportedGrid: a value is not finite.
        """
        import torch

        low, high = torch.aminmax(x, dim=1, keepdim=True)  # (rows, 1) both
        if self.scope == "tensor":
            low, high = low.amin(0), high.amax(0)  # (1,) both
        return self._of_range(low, high)

    def fit_abs_max(self, abs_max: torch.Tensor) -> Parameters:
        """The static parameters that calibration states: nothing when dynamic.

        abs_max: (in,) float32, largest magnitude per column, as statistics have it

        Raises:
            UnsupportedGrid: a magnitude is not finite.
            Unsupported: an asymmetric grid needs both ends of the range, not magnitudes.
        """
        if self.dynamic:
            return {}
        if not self.symmetric:
            raise Unsupported(
                f"activation grid {self.name}: calibration keeps magnitudes, not both ends of the "
                "range that a zero-point needs; use a symmetric or a dynamic activation grid"
            )
        high = abs_max.amax().view(1)
        return self._of_range(-high, high)

    def round(self, x: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """The codes of ``x``, ties to even: (rows, in) int8 or uint8.

        x: (rows, in) float32; values beyond the range take its end
        """
        import torch

        steps = (x / parameters["scale"]).round()
        if not self.symmetric:
            steps = steps + parameters["zero_point"].float()
        codes = steps.clamp(self.lowest, self.highest)
        return codes.to(torch.int8 if self.symmetric else torch.uint8)

    def decode(self, codes: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """``scale * (code - zero_point)``: (rows, in) float32."""
        steps = codes.float()
        if not self.symmetric:
            steps = steps - parameters["zero_point"].float()
        return steps * parameters["scale"]

    def fake_quantize(self, x: torch.Tensor, parameters: Parameters | None = None) -> torch.Tensor:
        """``x`` as the linear layer sees it at run time: (rows, in) float32, a new tensor.

        x: (rows, in) float32
        parameters: static ones; None fits them to ``x``
        """
        parameters = self.fit(x) if parameters is None else parameters
        return self.decode(self.round(x, parameters), parameters)

    def _of_range(self, low: torch.Tensor, high: torch.Tensor) -> Parameters:
        import torch

        from qconv.grids._uniform_fit import over

        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        if self.symmetric:
            scale = over(torch.maximum(-low, high), self.highest)
        else:
            # Divided first: the difference of two large ends would overflow.
            scale = over(high, self.highest) - over(low, self.highest)
        _check_finite(self.name, scale)
        scale = torch.where(scale > 0, scale.clamp(min=_SMALLEST), 1.0)
        if self.symmetric:
            return {"scale": scale}
        zero = (-low / scale).round().clamp(0, self.highest).to(torch.uint8)
        return {"scale": scale, "zero_point": zero}


def _check_finite(name: str, scale: torch.Tensor) -> None:
    largest = float(scale.max())
    if not math.isfinite(largest) or bool(scale.isnan().any()):
        raise UnsupportedGrid(
            f"activation grid {name}: the input has values that are not finite; repeat the "
            "calibration without the samples that overflow"
        )
