"""Super-block grids: 256 values share a float16 super-scale, and 16 or 32 a small integer one.

llama.cpp's Q2_K to Q6_K (https://github.com/ggml-org/llama.cpp, ``ggml/src/ggml-quants.c``:
dequantize_row_*).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from qconv.grids._block import (
    BlockSearch,
    check_blocks,
    check_choice,
    check_weight,
    from_options,
    nearest_codes,
    run_search,
)
from qconv.grids._grid import ColumnGrid, Parameters

if TYPE_CHECKING:
    import torch

SuperBlockType = Literal["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]

_SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class _Codes:
    """Codes ``0 .. highest``; ``centre`` is the code of zero, None when there are minimums."""

    highest: int
    centre: int | None
    subs: int
    nbytes: int


def _codes_of(block_type: SuperBlockType) -> _Codes:
    return {
        "q2_k": _Codes(highest=3, centre=None, subs=16, nbytes=84),
        "q3_k": _Codes(highest=7, centre=4, subs=16, nbytes=110),
        "q4_k": _Codes(highest=15, centre=None, subs=8, nbytes=144),
        "q5_k": _Codes(highest=31, centre=None, subs=8, nbytes=176),
        "q6_k": _Codes(highest=63, centre=32, subs=16, nbytes=210),
    }[block_type]


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperBlockGrid:
    """Super-blocks of 256 along a row, in sub-blocks of 16 (Q2_K, Q3_K, Q6_K) or 32 (Q4_K, Q5_K).

    Q2_K, Q4_K, Q5_K: ``super_scale * sub_scale * code - super_minimum * sub_minimum``, sub-scales
    and sub-minimums uint8 of 4 or 6 bits. Q3_K, Q6_K: ``super_scale * sub_scale * (code - 4)``, or
    32, sub-scales int8 of 6 or 8 bits. Codes are uint8. ``super_*`` is (rows, super-blocks)
    float16, ``sub_*`` (rows, super-blocks, sub-blocks).

    search: ``ggml`` gives llama.cpp's own codes and parameters, byte for byte; ``default`` errs
        less
    """

    type: SuperBlockType
    search: BlockSearch = "default"

    def __post_init__(self) -> None:
        check_choice("super-block grid", "type", self.type, get_args(SuperBlockType))
        check_choice("super-block grid", "search", self.search, get_args(BlockSearch))

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> SuperBlockGrid:
        """The grid that :meth:`spec` describes.

        Raises:
            UsageError: an option is missing, unknown or out of range.
        """
        return from_options(cls, "super-block grid", spec)

    def spec(self) -> Mapping[str, Any]:
        """JSON-able description, the input of :meth:`from_spec`."""
        return {"family": "superblock", "type": self.type, "search": self.search}

    @property
    def name(self) -> str:
        """The ggml type, in lower case."""
        return self.type

    @property
    def rows_independent(self) -> bool:
        """True: no super-block crosses rows."""
        return True

    def columns(self, in_features: int) -> int:  # noqa: ARG002 - super-blocks have one size
        """Columns per super-block: 256."""
        return _SIZE

    def check_shape(self, shape: tuple[int, int], name: str = "weight") -> None:
        """Raise UnsupportedGrid unless whole super-blocks fill the rows."""
        check_blocks(shape, _SIZE, self.type, name)

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Bytes of a super-block over its 256 values."""
        self.check_shape(shape)
        return _codes_of(self.type).nbytes * 8 / _SIZE

    def layout(self, shape: tuple[int, int]) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of codes and parameters."""
        self.check_shape(shape)
        kind = _codes_of(self.type)
        blocks = (shape[0], shape[1] // _SIZE)
        layout: dict[str, tuple[tuple[int, ...], str]] = {
            "codes": (tuple(shape), "uint8"),
            "super_scale": (blocks, "float16"),
        }
        if kind.centre is not None:
            return {**layout, "sub_scales": ((*blocks, kind.subs), "int8")}
        return {
            **layout,
            "super_minimum": (blocks, "float16"),
            "sub_scales": ((*blocks, kind.subs), "uint8"),
            "sub_minimums": ((*blocks, kind.subs), "uint8"),
        }

    def fit(self, weight: torch.Tensor, importance: torch.Tensor | None = None) -> Parameters:
        """The parameters of :meth:`quantize`."""
        return self.quantize(weight, importance)[1]

    def round(self, weight: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """Codes of the nearest grid values; where the scale is 0, the code of zero."""
        import torch

        check_weight(weight)
        self.check_shape((weight.shape[0], weight.shape[1]))
        kind = _codes_of(self.type)
        scale = _product(parameters, "scale")[..., None]  # (rows, super-blocks, subs, 1)
        steps = weight.detach().reshape(weight.shape[0], -1, kind.subs, _SIZE // kind.subs)
        if kind.centre is None:
            steps = steps + _product(parameters, "minimum")[..., None]
        codes = nearest_codes(steps, scale, kind.centre or 0, 0, kind.highest)
        return codes.to(torch.uint8).view(weight.shape)

    def quantize(
        self, weight: torch.Tensor, importance: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Parameters]:
        """Codes and parameters by the grid's search.

        Raises:
            UnsupportedGrid: the shape does not suit, a value is not finite, or a super-scale or
                super-minimum does not fit float16.
        """
        check_weight(weight)
        self.check_shape((weight.shape[0], weight.shape[1]))
        return run_search(self.type, self.search, weight, importance)

    def decode(self, codes: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """The float32 values llama.cpp dequantizes to, (rows, columns)."""
        kind = _codes_of(self.type)
        # (rows, super-blocks, sub-blocks, 16 or 32), a new tensor
        values = codes.float().view(codes.shape[0], -1, kind.subs, _SIZE // kind.subs)
        if kind.centre is not None:
            values -= kind.centre
        values *= _product(parameters, "scale")[..., None]
        if kind.centre is None:  # two operations, for a fused one would round once
            values -= _product(parameters, "minimum")[..., None]
        return values.view(codes.shape)

    def column(self, parameters: Parameters, index: int) -> ColumnGrid:
        """The values of column ``index``; for Q6_K they may be one rounding off."""
        kind = _codes_of(self.type)
        block, sub = index // _SIZE, index % _SIZE * kind.subs // _SIZE
        super_scale = parameters["super_scale"][:, block].float()
        scale = super_scale * parameters["sub_scales"][:, block, sub].float()
        if kind.centre is None:
            super_minimum = parameters["super_minimum"][:, block].float()
            offset = -(super_minimum * parameters["sub_minimums"][:, block, sub].float())
        else:
            offset = scale * -float(kind.centre)
        return ColumnGrid(scale=scale, offset=offset, lowest=0, highest=kind.highest)


def _product(parameters: Parameters, which: str) -> torch.Tensor:
    """Super times sub, ``scale`` or ``minimum``: (rows, super-blocks, sub-blocks) float32."""
    return parameters[f"super_{which}"].float()[..., None] * parameters[f"sub_{which}s"].float()
