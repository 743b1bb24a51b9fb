"""Writes bitsandbytes.json: what bitsandbytes makes of some weights, as bit patterns.

Run where bitsandbytes is installed (written with 0.50.2 and torch 2.13.0 on a CPU):
``python tests/golden/make_bitsandbytes.py tests/golden/bitsandbytes.json``. Nested codes are of its
"default" backend, which takes the nearest value as its CUDA kernel does; its CPU library looks
values up in a coarser table.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch


def bits(values: torch.Tensor) -> list[int]:
    return values.float().contiguous().view(torch.int32).flatten().tolist()


def weights() -> dict[str, torch.Tensor]:
    """Normal, and heavy-tailed with a block of zeros."""
    generator = torch.Generator().manual_seed(7)
    normal = torch.randn(3, 128, generator=generator) * 0.02
    heavy = normal * torch.randn(3, 128, generator=generator) ** 2
    heavy[1, :64] = 0.0
    return {"normal": normal, "heavy": heavy}


def case(name: str, weight: torch.Tensor, quant_type: str, blocksize: int) -> dict:
    import bitsandbytes.functional as bnb

    packed, state = bnb.quantize_4bit(weight, blocksize=blocksize, quant_type=quant_type)
    offset = state.absmax.mean()
    nested, nested_absmax = nearest(state.absmax - offset, bnb.create_dynamic_map())
    largest = nested_absmax.repeat_interleave(256)[: len(nested)]
    absmax = bnb.create_dynamic_map()[nested.int()] * largest + offset
    double = bnb.quantize_4bit(weight, blocksize=blocksize, quant_type=quant_type)[1]
    double.absmax = absmax
    return {
        "name": f"{name}_{quant_type}_{blocksize}",
        "quant_type": quant_type,
        "blocksize": blocksize,
        "shape": list(weight.shape),
        "weight": bits(weight),
        "codes": torch.stack([packed >> 4, packed & 15], -1).view(weight.shape).tolist(),
        "absmax": bits(state.absmax),
        "values": bits(bnb.dequantize_4bit(packed, state)),
        "nested_codes": nested.tolist(),
        "nested_absmax": bits(nested_absmax),
        "nested_offset": bits(offset),
        "nested_values": bits(bnb.dequantize_4bit(packed, double)),
    }


def nearest(values: torch.Tensor, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``quantize_blockwise`` of the default backend, in blocks of 256: as for any other device."""
    elsewhere = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)
    kernel = torch.ops.bitsandbytes.quantize_blockwise.default
    return kernel.redispatch(elsewhere, values, code, 256)


def main() -> None:
    import bitsandbytes.functional as bnb

    document = {
        "tables": {
            "nf4": bits(bnb.get_4bit_type("nf4", device="cpu")),
            "fp4": bits(bnb.get_4bit_type("fp4", device="cpu")),
            "dynamic": bits(bnb.create_dynamic_map()),
        },
        "cases": [
            case(name, weight, quant_type, blocksize)
            for name, weight in weights().items()
            for quant_type, blocksize in (("nf4", 64), ("fp4", 64), ("nf4", 32))
        ],
    }
    Path(sys.argv[1]).write_text(json.dumps(document, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
