"""Super-block grids: 256 values share a float16 super-scale, and 16 or 32 a small integer one.

llama.cpp's Q2_K to Q6_K (https://github.com/ggml-org/llama.cpp, ``ggml/src/ggml-quants.c``:
dequantize_row_*).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from qconv.grids._blocked import BlockedGrid, BlockType, Layout

if TYPE_CHECKING:
    import torch

    from qconv.grids._grid import Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperBlockGrid(BlockedGrid):
    """Super-blocks of 256 along a row, in sub-blocks of 16 (Q2_K, Q3_K, Q6_K) or 32 (Q4_K, Q5_K).

    Q2_K, Q4_K, Q5_K: ``super_scale * sub_scale * code - super_minimum * sub_minimum``, sub-scales
    and sub-minimums uint8 of 4 or 6 bits. Q3_K, Q6_K: ``super_scale * sub_scale * (code - 4)``, or
    32, sub-scales int8 of 6 or 8 bits. Codes are uint8. ``super_*`` is (rows, super-blocks)
    float16, ``sub_*`` (rows, super-blocks, sub-blocks).

    search: ``ggml`` gives llama.cpp's own codes and parameters, byte for byte; ``default`` errs
        less
    """

    type: Literal["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]

    _title: ClassVar = "super-block grid"
    _family: ClassVar = "superblock"
    _size: ClassVar = 256
    _types: ClassVar = {
        "q2_k": BlockType(highest=3, scales=16, nbytes=84),
        "q3_k": BlockType(highest=7, centre=4, scales=16, nbytes=110),
        "q4_k": BlockType(highest=15, scales=8, nbytes=144),
        "q5_k": BlockType(highest=31, scales=8, nbytes=176),
        "q6_k": BlockType(highest=63, centre=32, scales=16, nbytes=210),
    }

    def _parameter_layout(self, blocks: tuple[int, int]) -> Layout:
        stored = self._stored()
        subs = (*blocks, stored.scales)
        if stored.centre is not None:
            return {"super_scale": (blocks, "float16"), "sub_scales": (subs, "int8")}
        return {
            "super_scale": (blocks, "float16"),
            "super_minimum": (blocks, "float16"),
            "sub_scales": (subs, "uint8"),
            "sub_minimums": (subs, "uint8"),
        }

    def _scale(self, parameters: Parameters) -> torch.Tensor:
        return _product(parameters["super_scale"], parameters["sub_scales"])

    def _offset(self, parameters: Parameters) -> torch.Tensor:
        return -_product(parameters["super_minimum"], parameters["sub_minimums"])


def _product(supers: torch.Tensor, subs: torch.Tensor) -> torch.Tensor:
    """Super times sub: (rows, sub-blocks per row) float32."""
    return (supers.float()[..., None] * subs.float()).flatten(1)
