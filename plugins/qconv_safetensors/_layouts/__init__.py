"""One module per on-disk layout: which parts a weight has, and how they are packed."""

from __future__ import annotations

from functools import cache
from typing import Literal

from qconv_safetensors._part import PartLayout

LayoutName = Literal[
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "gptq",
    "gptq_v2",
    "awq",
    "bitsandbytes",
]


@cache
def layout_of(name: LayoutName) -> PartLayout:
    """The layout of that name; compressed-tensors' by their names there."""
    from . import _awq, _float_quantized, _gptq, _int_quantized, _pack_quantized

    if name == "bitsandbytes":
        from qconv_safetensors import _bitsandbytes

        return PartLayout(parts=_bitsandbytes.parts, pack=_bitsandbytes.pack)
    return {
        "pack-quantized": PartLayout(parts=_pack_quantized.parts, pack=_pack_quantized.pack),
        "int-quantized": PartLayout(parts=_int_quantized.parts, pack=_int_quantized.pack),
        "float-quantized": PartLayout(parts=_float_quantized.parts, pack=_float_quantized.pack),
        "gptq": PartLayout(parts=_gptq.parts, pack=_gptq.pack_v1),
        "gptq_v2": PartLayout(parts=_gptq.parts, pack=_gptq.pack_v2),
        "awq": PartLayout(parts=_awq.parts, pack=_awq.pack),
    }[name]
