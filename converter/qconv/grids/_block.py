"""Block grids: 32 consecutive values share a float16 scale, some also a float16 minimum.

llama.cpp's Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 (https://github.com/ggml-org/llama.cpp,
``ggml/src/ggml-quants.c``: dequantize_row_*). Also here is what super-block grids share with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, get_args

from qconv.errors import UnsupportedGrid, UsageError
from qconv.grids._grid import ColumnGrid, Parameters

if TYPE_CHECKING:
    import torch

BlockType = Literal["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]
BlockSearch = Literal["default", "ggml"]
_Made = TypeVar("_Made")

_SIZE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class _Codes:
    """Codes ``lowest .. highest``; ``centre`` is the code of zero, None when there is a minimum."""

    lowest: int
    highest: int
    centre: int | None
    nbytes: int


def _codes_of(block_type: BlockType) -> _Codes:
    # Q8_0 could store -128, but llama.cpp never writes it.
    return {
        "q4_0": _Codes(lowest=0, highest=15, centre=8, nbytes=18),
        "q4_1": _Codes(lowest=0, highest=15, centre=None, nbytes=20),
        "q5_0": _Codes(lowest=0, highest=31, centre=16, nbytes=22),
        "q5_1": _Codes(lowest=0, highest=31, centre=None, nbytes=24),
        "q8_0": _Codes(lowest=-127, highest=127, centre=0, nbytes=34),
    }[block_type]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockGrid:
    """Blocks of 32 along a row.

    Q8_0: ``scale * code``, int8. Q4_0, Q5_0: ``scale * (code - 8 or 16)``, uint8, the scale of
    either sign. Q4_1, Q5_1: ``scale * code + minimum``, uint8. ``scale`` and ``minimum`` are
    (rows, blocks) float16.

    search: ``ggml`` gives llama.cpp's own codes and parameters, byte for byte; ``default`` errs
        less
    """

    type: BlockType
    search: BlockSearch = "default"

    def __post_init__(self) -> None:
        check_choice("block grid", "type", self.type, get_args(BlockType))
        check_choice("block grid", "search", self.search, get_args(BlockSearch))

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> BlockGrid:
        """The grid that :meth:`spec` describes.

        Raises:
            UsageError: an option is missing, unknown or out of range.
        """
        return from_options(cls, "block grid", spec)

    def spec(self) -> Mapping[str, Any]:
        """JSON-able description, the input of :meth:`from_spec`."""
        return {"family": "block", "type": self.type, "search": self.search}

    @property
    def name(self) -> str:
        """The ggml type, in lower case."""
        return self.type

    @property
    def rows_independent(self) -> bool:
        """True: no block crosses rows."""
        return True

    def columns(self, in_features: int) -> int:  # noqa: ARG002 - blocks have one size
        """Columns per block: 32."""
        return _SIZE

    def check_shape(self, shape: tuple[int, int], name: str = "weight") -> None:
        """Raise UnsupportedGrid unless whole blocks fill the rows."""
        check_blocks(shape, _SIZE, self.type, name)

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Bytes of a block over its 32 values."""
        self.check_shape(shape)
        return _codes_of(self.type).nbytes * 8 / _SIZE

    def layout(self, shape: tuple[int, int]) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of codes and parameters."""
        self.check_shape(shape)
        blocks = (shape[0], shape[1] // _SIZE)
        layout: dict[str, tuple[tuple[int, ...], str]] = {
            "codes": (tuple(shape), "int8" if self.type == "q8_0" else "uint8"),
            "scale": (blocks, "float16"),
        }
        if _codes_of(self.type).centre is None:
            layout["minimum"] = (blocks, "float16")
        return layout

    def fit(self, weight: torch.Tensor, importance: torch.Tensor | None = None) -> Parameters:
        """The parameters of :meth:`quantize`."""
        return self.quantize(weight, importance)[1]

    def round(self, weight: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """Codes of the nearest grid values; where the scale is 0, the code of zero."""
        import torch

        check_weight(weight)
        self.check_shape((weight.shape[0], weight.shape[1]))
        kind = _codes_of(self.type)
        scale = parameters["scale"].float()[..., None]  # (rows, blocks, 1)
        steps = weight.detach().reshape(weight.shape[0], -1, _SIZE)
        if kind.centre is None:
            steps = steps - parameters["minimum"].float()[..., None]
        codes = nearest_codes(steps, scale, kind.centre or 0, kind.lowest, kind.highest)
        return codes.to(torch.int8 if self.type == "q8_0" else torch.uint8).view(weight.shape)

    def quantize(
        self, weight: torch.Tensor, importance: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Parameters]:
        """Codes and parameters by the grid's search; Q8_0 does not look at importance.

        Raises:
            UnsupportedGrid: the shape does not suit, a value is not finite, or a scale or minimum
                does not fit float16.
        """
        check_weight(weight)
        self.check_shape((weight.shape[0], weight.shape[1]))
        return run_search(self.type, self.search, weight, importance)

    def decode(self, codes: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """The float32 values llama.cpp dequantizes to, (rows, columns)."""
        kind = _codes_of(self.type)
        values = codes.float().view(codes.shape[0], -1, _SIZE)  # (rows, blocks, 32), a new tensor
        if kind.centre:
            values -= kind.centre
        values *= parameters["scale"].float()[..., None]
        if kind.centre is None:  # two operations, for a fused one would round once
            values += parameters["minimum"].float()[..., None]
        return values.view(codes.shape)

    def column(self, parameters: Parameters, index: int) -> ColumnGrid:
        """The values of column ``index``."""
        kind = _codes_of(self.type)
        scale = parameters["scale"][:, index // _SIZE].float()
        if kind.centre is None:
            offset = parameters["minimum"][:, index // _SIZE].float()
        else:
            offset = scale * -float(kind.centre)
        return ColumnGrid(scale=scale, offset=offset, lowest=kind.lowest, highest=kind.highest)


# --- shared with super-block grids ----------------------------------------------------------------


def check_choice(grid: str, option: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise UsageError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UsageError(f"{grid}: {option} is {value!r}; choose {' or '.join(choices)}")


def from_options(grid: type[_Made], title: str, spec: Mapping[str, Any]) -> _Made:
    """Make a grid from a spec without its family.

    Raises:
        UsageError: an option is missing, unknown or out of range.
    """
    options = {key: value for key, value in spec.items() if key != "family"}
    try:
        return grid(**options)
    except TypeError as error:
        raise UsageError(f"{title} {dict(spec)!r}: {error}; options are type, search") from None


def check_blocks(shape: tuple[int, ...], size: int, grid: str, name: str) -> None:
    """Raise UnsupportedGrid unless ``shape`` is 2-D and blocks of ``size`` fill its rows."""
    if len(shape) != 2 or min(shape) < 1:
        raise UnsupportedGrid(
            f"tensor {name!r}: shape {tuple(shape)} is not (rows, columns), both at least 1; "
            "quantize linear weights only, copy this one"
        )
    if shape[1] % size == 0:
        return
    below = shape[1] // size * size
    near = f"{below} or {below + size}" if below else f"{size}"
    other = "q8_0 or q5_0, whose blocks are 32" if shape[1] % _SIZE == 0 else "float16"
    raise UnsupportedGrid(
        f"tensor {name!r}: {shape[1]} columns are not a multiple of {grid}'s block of {size} "
        f"({near} would be); use {other}"
    )


def check_weight(weight: torch.Tensor) -> None:
    """Raise UnsupportedGrid unless ``weight`` is 2-D float32 and finite: one pass, no copy."""
    import torch

    if weight.dtype != torch.float32 or weight.ndim != 2:
        raise UnsupportedGrid(
            f"weight is {weight.ndim}-D {weight.dtype}; grids work on 2-D float32: "
            "reshape it and call .float() first"
        )
    if not weight.numel():
        return
    extremes = torch.stack(torch.aminmax(weight.detach())).tolist()
    if not all(map(math.isfinite, extremes)):
        _refuse_non_finite(weight)


def run_search(
    grid: str, search: BlockSearch, weight: torch.Tensor, importance: torch.Tensor | None
) -> tuple[torch.Tensor, Parameters]:
    """Run the named search and refuse what float16 cannot hold."""
    _check_importance(weight, importance)
    weight = weight.detach()
    if search == "ggml":
        from qconv.kernels import ggml

        codes, parameters = ggml.quantize(grid, weight, importance)
    else:
        from qconv.kernels import search as best

        codes, parameters = best.quantize(grid, weight, importance)
    _check_halves(grid, weight, parameters)
    return codes, parameters


def nearest_codes(
    steps: torch.Tensor, scale: torch.Tensor, centre: int, lowest: int, highest: int
) -> torch.Tensor:
    """``round(steps / scale) + centre`` in range, float32; ``centre`` where the scale is 0."""
    import torch

    codes = (steps / scale).round_().add_(centre).clamp_(lowest, highest)
    return torch.where(scale == 0, float(centre), codes)


def _check_importance(weight: torch.Tensor, importance: torch.Tensor | None) -> None:
    import torch

    if importance is None:
        return
    columns = weight.shape[1]
    if tuple(importance.shape) != (columns,) or importance.dtype != torch.float32:
        raise UnsupportedGrid(
            f"importance is {tuple(importance.shape)} {importance.dtype}; "
            f"a weight with {columns} columns needs ({columns},) torch.float32"
        )
    low, high = torch.stack(torch.aminmax(importance.detach())).tolist()
    if not 0.0 <= low <= high < math.inf:
        raise UnsupportedGrid(
            f"importance ranges from {low} to {high}; it must be finite and not negative: "
            "repeat the calibration without the samples that overflow"
        )


def _check_halves(grid: str, weight: torch.Tensor, parameters: Parameters) -> None:
    import torch

    for name, values in parameters.items():
        if values.dtype != torch.float16 or bool(torch.isfinite(values).all()):
            continue
        row, block = (~torch.isfinite(values)).nonzero()[0].tolist()
        size = weight.shape[1] // values.shape[1]
        largest = float(weight[row, block * size : (block + 1) * size].abs().max())
        raise UnsupportedGrid(
            f"row {row}, columns {block * size}..{(block + 1) * size - 1}: "
            f"values up to {largest:.4g} need a {name.replace('_', ' ')} "
            f"that {grid} cannot store, float16 ends at 65504; keep the tensor in bfloat16"
        )


def _refuse_non_finite(weight: torch.Tensor) -> NoReturn:
    import torch

    bad = (~torch.isfinite(weight)).nonzero()
    row, column = bad[0].tolist()
    raise UnsupportedGrid(
        f"weight has {len(bad)} values that are not finite, the first in row {row}, "
        f"column {column}: {float(weight[row, column])}; no grid holds them: "
        "repair the checkpoint or skip the tensor"
    )
