"""Codebook grids: bitsandbytes' NF4 and FP4, 16 uneven values under a scale per block.

``value = table[code] * absmax``, in float32. With double quantization the scales are themselves
stored in 8 bits: ``absmax = dynamic[code] * nested_absmax + nested_offset``, one ``nested_absmax``
for 256 scales as they follow one another row by row, one offset for all.
Format: https://github.com/bitsandbytes-foundation/bitsandbytes, ``bitsandbytes/functional.py``
(quantize_4bit, dequantize_4bit).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from qconv.errors import UnsupportedGrid, UsageError
from qconv.grids import _bitsandbytes as tables
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

    from qconv.grids._codebook_fit import Levels

Codebook = Literal["nf4", "fp4"]
Search = Literal["search", "absmax"]

#: What bitsandbytes has kernels for.
_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookGrid:
    """bitsandbytes' 4-bit values.

    Codes are uint8, 0 to 15, places in bitsandbytes' own tables. ``absmax`` is
    (rows, in / block_size): float32, or with double quantization uint8, beside ``nested_absmax``
    (blocks / 256, rounded up) float32 and ``nested_offset`` (1,) float32.

    codebook: which table
    block_size: columns per scale
    double_quant: the scales are quantized, too; then rows share parameters
    search: how to fit: ``absmax`` gives bitsandbytes' own codes and parameters, ``search`` the
        least error
    """

    codebook: Codebook
    block_size: int = 64
    double_quant: bool = False
    search: Search = "search"

    def __post_init__(self) -> None:
        check_choice("codebook grid", "codebook", self.codebook, get_args(Codebook))
        check_choice("codebook grid", "search", self.search, get_args(Search))
        if type(self.block_size) is not int or self.block_size not in _BLOCK_SIZES:
            raise UsageError(
                f"codebook grid: block_size is {self.block_size!r}; bitsandbytes has "
                f"{', '.join(map(str, _BLOCK_SIZES))}"
            )
        if type(self.double_quant) is not bool:
            raise UsageError(
                f"codebook grid: double_quant is {self.double_quant!r}; choose true or false"
            )

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> CodebookGrid:
        """The grid that :meth:`spec` describes.

        Raises:
            UsageError: an option is missing, unknown or out of range.
        """
        return from_options(cls, "codebook grid", ", ".join(cls.__dataclass_fields__), spec)

    def spec(self) -> Mapping[str, Any]:
        """JSON-able description, the input of :meth:`from_spec`."""
        return {"family": "codebook", **asdict(self)}

    @property
    def name(self) -> str:
        """``nf4_b64``, ``fp4_b128_double``."""
        return f"{self.codebook}_b{self.block_size}{'_double' if self.double_quant else ''}"

    @property
    def rows_independent(self) -> bool:
        """False with double quantization: rows share an offset, and scales of scales."""
        return not self.double_quant

    def table(self) -> torch.Tensor:
        """The value of every code: (16,) float32."""
        import torch

        return torch.tensor(tables.values_of(self.codebook))

    def nested_table(self) -> torch.Tensor:
        """What the codes of double-quantized scales are worth: (256,) float32."""
        import torch

        return torch.tensor(tables.dynamic_values())

    def columns(self, in_features: int) -> int:
        """Columns per scale; with double quantization all, as all is fitted at once."""
        return in_features if self.double_quant else self.block_size

    def check_shape(self, shape: tuple[int, int], name: str = "weight") -> None:
        """Raise UnsupportedGrid unless whole blocks fill the rows."""
        check_matrix(shape, name)
        if shape[1] % self.block_size:
            fitting = [size for size in _BLOCK_SIZES if shape[1] % size == 0]
            use = f"block size {fitting[-1]}" if fitting else "int8 per channel"
            raise UnsupportedGrid(
                f"tensor {name!r}: {shape[1]} columns are not a multiple of {self.name}'s block "
                f"size {self.block_size}; use {use} or skip it"
            )

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Four bits, and the scales."""
        layout = self.layout(shape)
        bits = {"uint8": 8, "float32": 32}
        total = 4 * shape[0] * shape[1]
        for name, (sizes, dtype) in layout.items():
            total += 0 if name == "codes" else math.prod(sizes) * bits[dtype]
        return total / (shape[0] * shape[1])

    def layout(self, shape: tuple[int, int]) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of codes and parameters."""
        from qconv.grids._nested import NESTED

        self.check_shape(shape)
        blocks = shape[0], shape[1] // self.block_size
        codes = {"codes": (tuple(shape), "uint8")}
        if not self.double_quant:
            return {**codes, "absmax": (blocks, "float32")}
        return {
            **codes,
            "absmax": (blocks, "uint8"),
            "nested_absmax": ((-(-math.prod(blocks) // NESTED),), "float32"),
            "nested_offset": ((1,), "float32"),
        }

    def fit(self, weight: torch.Tensor, importance: torch.Tensor | None = None) -> Parameters:
        """The scales, as stored. Only a ``search`` heeds importance.

        Raises:
            UnsupportedGrid: the shape does not suit, or a value is not finite.
        """
        from qconv.grids import _nested

        absmax = self._absmax(self._checked(weight), importance)
        return _nested.quantized(absmax) if self.double_quant else {"absmax": absmax}

    def round(self, weight: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """Codes of the nearest grid values."""
        return self._codes(self._checked(weight), self._decoded_absmax(parameters))

    def quantize(
        self, weight: torch.Tensor, importance: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Parameters]:
        """:meth:`fit`, then the codes; by ``absmax`` those of the scales before they are quantized.

        So bitsandbytes has it.
        """
        from qconv.grids import _nested

        absmax = self._absmax(self._checked(weight), importance)
        parameters = _nested.quantized(absmax) if self.double_quant else {"absmax": absmax}
        if self.search == "search":
            absmax = self._decoded_absmax(parameters)
        return self._codes(weight.detach(), absmax), parameters

    def decode(self, codes: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """``table[code] * absmax``: (rows, columns) float32."""
        rows, columns = codes.shape
        values = self.table().to(codes.device)[codes.int()].view(rows, -1, self.block_size)
        values *= self._decoded_absmax(parameters)[..., None]
        return values.view(rows, columns)

    def rescaled(self, parameters: Parameters, factor: torch.Tensor) -> Parameters:
        """The scales times ``factor``, never infinite; double-quantized ones by way of theirs."""
        import torch

        largest = torch.finfo(torch.float32).max
        return {
            name: values
            if values.dtype == torch.uint8
            else (values * (factor.view(-1) if values.dim() == 1 else factor)).clamp(
                -largest, largest
            )
            for name, values in parameters.items()
        }

    def column(self, parameters: Parameters, index: int) -> ColumnGrid:
        """The values of column ``index``."""
        scale = self._decoded_absmax(parameters)[:, index // self.block_size].contiguous()
        return ColumnGrid(
            scale=scale,
            offset=scale.new_zeros(scale.shape),
            lowest=0,
            highest=15,
            codebook=self.table().to(scale.device),
        )

    def column_run(self, in_features: int) -> int:  # noqa: ARG002 - blocks have one size
        """Columns per scale."""
        return self.block_size

    def _absmax(self, weight: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
        """The scales as float32: (rows, blocks)."""
        from qconv.grids import _codebook_fit

        weights = relative_importance(weight, importance)
        # Measured on SmolLM2-135M, in KL divergence: least squared error, with nothing known of the
        # input, loses 11 % more than plain scales on FP4, whose values lie far apart at its end.
        blind = importance is None and self.codebook == "fp4"
        if self.search == "absmax" or blind:
            return _codebook_fit.plain(weight, self.block_size)
        return _codebook_fit.searched(weight, weights, self.block_size, self._levels(weight))

    def _decoded_absmax(self, parameters: Parameters) -> torch.Tensor:
        from qconv.grids import _nested

        return _nested.decoded(parameters) if self.double_quant else parameters["absmax"]

    def _codes(self, weight: torch.Tensor, absmax: torch.Tensor) -> torch.Tensor:
        from qconv.grids._codebook_fit import inverse
        from qconv.kernels import codebook

        levels = self._levels(weight)
        return codebook.codes(
            weight.contiguous(), inverse(absmax).contiguous(), levels.bounds, levels.codes
        )

    def _levels(self, weight: torch.Tensor) -> Levels:
        from qconv.grids._codebook_fit import Levels

        return Levels.of(self.table().to(weight.device))

    def _checked(self, weight: torch.Tensor) -> torch.Tensor:
        weight = weight.detach()
        check_weight(weight)
        self.check_shape((weight.shape[0], weight.shape[1]))
        return weight
