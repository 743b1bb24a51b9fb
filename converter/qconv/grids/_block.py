"""Block grids: 32 consecutive values share a float16 scale, some also a float16 minimum.

llama.cpp's Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 (https://github.com/ggml-org/llama.cpp,
``ggml/src/ggml-quants.c``: dequantize_row_*).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from qconv.grids._blocked import BlockedGrid, BlockType, Layout

if TYPE_CHECKING:
    import torch

    from qconv.grids._grid import Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockGrid(BlockedGrid):
    """Blocks of 32 along a row.

    Q8_0: ``scale * code``, int8. Q4_0, Q5_0: ``scale * (code - 8 or 16)``, uint8, the scale of
    either sign. Q4_1, Q5_1: ``scale * code + minimum``, uint8. ``scale`` and ``minimum`` are
    (rows, blocks) float16.

    search: ``ggml`` gives llama.cpp's own codes and parameters, byte for byte; ``default`` errs
        less, or as much for Q4_1 and Q5_1 without importance, which take the range as it is
    """

    type: Literal["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]

    _title: ClassVar = "block grid"
    _family: ClassVar = "block"
    _size: ClassVar = 32
    _types: ClassVar = {
        "q4_0": BlockType(highest=15, centre=8, nbytes=18),
        "q4_1": BlockType(highest=15, nbytes=20),
        "q5_0": BlockType(highest=31, centre=16, nbytes=22),
        "q5_1": BlockType(highest=31, nbytes=24),
        # It could store -128, but llama.cpp never writes it.
        "q8_0": BlockType(lowest=-127, highest=127, centre=0, nbytes=34),
    }

    def _parameter_layout(self, blocks: tuple[int, int]) -> Layout:
        names = ("scale", "minimum") if self._stored().centre is None else ("scale",)
        return dict.fromkeys(names, (blocks, "float16"))

    def _scale(self, parameters: Parameters) -> torch.Tensor:
        return parameters["scale"].float()

    def _offset(self, parameters: Parameters) -> torch.Tensor:
        return parameters["minimum"].float()
