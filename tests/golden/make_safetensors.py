"""Golden vectors of the safetensors layouts, packed by the projects that own each layout.

    PEER_PYTHON tests/golden/make_safetensors.py compressed-tensors tests/golden/safetensors
    PEER_PYTHON tests/golden/make_safetensors.py bitsandbytes tests/golden/safetensors
    PEER_PYTHON tests/golden/make_safetensors.py gptqmodel tests/golden/safetensors

Run by a Python that has the peer: ``pip install compressed-tensors==0.19.0``,
``bitsandbytes==0.50.2``, ``gptqmodel==7.7.0``, each with torch. Every file is one linear weight:

codes: (rows, in), qconv's: int8 when symmetric, else uint8; left out for FP8, as stored there
scale, zero_point, absmax, ...: what turns codes into values, unpacked, (rows, groups)
values: (rows, in), what the peer decodes from its packed tensors, in the dtype it decodes to
packed.SUFFIX: the tensors as the peer writes them below the module's name

and in the file's metadata under ``golden``, as JSON: peer, version, layout, and the grid's options.
Codes and scales are random, not fitted: signed scales, extreme codes and zero-points all occur.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One file. about: layout, grid and what else the reader needs to know."""

    name: str
    about: dict[str, Any]
    plain: Tensors
    packed: Tensors


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """A random weight on a uniform grid: codes, scales and zero-points in qconv's convention."""

    bits: int
    symmetric: bool
    group_size: int | str
    scale_dtype: str
    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None

    @property
    def grid(self) -> dict[str, Any]:
        names = ("bits", "symmetric", "group_size", "scale_dtype")
        return {"family": "uniform", **{name: getattr(self, name) for name in names}}

    @property
    def half(self) -> int:
        return 1 << (self.bits - 1)

    def signed(self) -> torch.Tensor:
        """Codes from -half on: (rows, in) int8."""
        return self.codes if self.symmetric else (self.codes.int() - self.half).to(torch.int8)

    def unsigned(self) -> torch.Tensor:
        """Codes from 0 on: (rows, in) int32."""
        return self.codes.int() + self.half if self.symmetric else self.codes.int()

    def zeros(self) -> torch.Tensor:
        """Zero-points of the unsigned codes: (rows, groups) int32."""
        if self.zero_point is None:
            return torch.full(self.scale.shape, self.half, dtype=torch.int32)
        return self.zero_point.int()

    def weight(self) -> torch.Tensor:
        """The values, ``scale * (code - zero_point)``: (rows, in) float32."""
        size = self.codes.shape[1] // self.scale.shape[1]
        steps = self.unsigned() - self.zeros().repeat_interleave(size, 1)
        return self.scale.float().repeat_interleave(size, 1) * steps

    def plain(self) -> Tensors:
        zero = {} if self.zero_point is None else {"zero_point": self.zero_point}
        return {"codes": self.codes, "scale": self.scale, **zero}


def uniform(
    shape: tuple[int, int],
    *,
    bits: int,
    symmetric: bool = True,
    group_size: int | str = 16,
    scale_dtype: str = "bfloat16",
) -> Uniform:
    """Seeded by its own options, so that a new vector leaves the others as they are."""
    generator = torch.Generator().manual_seed(bits * 2 + symmetric)
    rows, columns = shape
    groups = columns // group_size if isinstance(group_size, int) else 1
    count = 1 << bits
    codes = torch.randint(0, count, shape, generator=generator)
    codes[0, :2] = torch.tensor([0, count - 1])
    scale = torch.rand((rows, groups), generator=generator).mul_(0.02).add_(0.001)
    zero = None
    if symmetric:
        scale *= torch.randint(0, 2, scale.shape, generator=generator) * 2 - 1
        codes = (codes - count // 2).to(torch.int8)
    else:
        zero = torch.randint(0, count, scale.shape, generator=generator).to(torch.uint8)
        zero[:2] = torch.tensor([[0], [count - 1]])
        codes = codes.to(torch.uint8)
    return Uniform(
        bits=bits,
        symmetric=symmetric,
        group_size=group_size,
        scale_dtype=scale_dtype,
        codes=codes,
        scale=scale.to(getattr(torch, scale_dtype)),
        zero_point=zero,
    )


# --- compressed-tensors ---------------------------------------------------------------------------


def compressed_tensors() -> Iterator[Golden]:
    for bits in (2, 3, 4, 5, 6, 8):
        # 12 rows: packed zero-points end within a word
        yield _pack_quantized(uniform((12, 32), bits=bits))
        yield _pack_quantized(uniform((12, 32), bits=bits, symmetric=False))
    # 40 columns of 3 bits end within a word; other scale dtypes; a whole row as a group
    yield _pack_quantized(uniform((8, 40), bits=3, group_size=8), "ragged")
    half = uniform((8, 64), bits=4, symmetric=False, group_size="channel", scale_dtype="float16")
    yield _pack_quantized(half, "channel")
    yield _int_quantized(uniform((16, 64), bits=8, group_size="channel"))
    yield _int_quantized(uniform((16, 64), bits=8, symmetric=False, group_size="channel"))
    yield _float_quantized((16, 64), "channel", "bfloat16")
    yield _float_quantized((16, 64), "tensor", "float32")
    yield _float_quantized((16, 136), "block", "bfloat16", "wide")
    yield _float_quantized((132, 16), "block", "bfloat16", "tall")


def _scheme(weights: dict[str, Any], activations: dict[str, Any] | None = None) -> Any:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    inputs = None if activations is None else QuantizationArgs(**activations)
    weights_args = QuantizationArgs(**weights)
    return QuantizationScheme(targets=["Linear"], weights=weights_args, input_activations=inputs)


def _uniform_arguments(value: Uniform) -> dict[str, Any]:
    grouped = isinstance(value.group_size, int)
    return {
        "num_bits": value.bits,
        "type": "int",
        "symmetric": value.symmetric,
        "strategy": "group" if grouped else "channel",
        "group_size": value.group_size if grouped else None,
    }


def _compress(compressor: Any, state: Tensors, scheme: Any) -> tuple[Tensors, torch.Tensor]:
    """What the peer writes, and what it decodes from that."""
    packed = compressor.compress(state, scheme)
    values = compressor.decompress(packed, scheme)["weight"]
    return {name: tensor.contiguous() for name, tensor in packed.items()}, values.contiguous()


def _state(value: Uniform) -> Tensors:
    state = {"weight": value.weight(), "weight_scale": value.scale}
    if value.zero_point is not None:
        signed = (value.zero_point.int() - value.half).to(torch.int8)
        state["weight_zero_point"] = signed
    return state


def _pack_quantized(value: Uniform, label: str | None = None) -> Golden:
    from compressed_tensors.compressors import PackedQuantizationCompressor

    scheme = _scheme(_uniform_arguments(value))
    packed, values = _compress(PackedQuantizationCompressor, _state(value), scheme)
    kind = "" if value.symmetric else "-asym"
    return Golden(
        name=f"pack-quantized-{value.bits}{kind}" + (f"-{label}" if label else ""),
        about={"layout": "pack-quantized", "grid": value.grid},
        plain=value.plain() | {"values": values},
        packed=packed,
    )


def _int_quantized(value: Uniform) -> Golden:
    from compressed_tensors.compressors import IntQuantizationCompressor

    dynamic = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    scheme = _scheme(_uniform_arguments(value), dynamic)
    packed, values = _compress(IntQuantizationCompressor, _state(value), scheme)
    return Golden(
        name="int-quantized" if value.symmetric else "int-quantized-asym",
        about={"layout": "int-quantized", "grid": value.grid},
        plain=value.plain() | {"values": values},
        packed=packed,
    )


def _float_quantized(
    shape: tuple[int, int], scope: str, scale_dtype: str, label: str | None = None
) -> Golden:
    from compressed_tensors.compressors import FloatQuantizationCompressor

    generator = torch.Generator().manual_seed(8)
    bits = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    bits[(bits & 0x7F) == 0x7F] = 0x7E  # not a number
    bits[bits == 0x80] = 0  # the peer's rounding keeps a negative zero, but need not
    rows = {"tensor": 1, "channel": shape[0], "block": -(-shape[0] // 128)}[scope]
    columns = -(-shape[1] // 128) if scope == "block" else 1
    scale = torch.rand((rows, columns), generator=generator).mul_(0.01).add_(0.001)
    scale = scale.to(getattr(torch, scale_dtype))
    block = (128, 128) if scope == "block" else shape if scope == "tensor" else (1, shape[1])
    spread = scale.float().repeat_interleave(block[0], 0)[: shape[0]]
    spread = spread.repeat_interleave(block[1], 1)[:, : shape[1]]
    arguments = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": scope}
    if scope == "block":
        arguments["block_structure"] = [128, 128]
    state = {
        "weight": bits.view(torch.float8_e4m3fn).float() * spread,
        "weight_scale": scale[0] if scope == "tensor" else scale,
    }
    inputs = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
    scheme = _scheme(arguments, inputs)
    packed, values = _compress(FloatQuantizationCompressor, state, scheme)
    if not torch.equal(packed["weight"].view(torch.uint8), bits):
        raise SystemExit(f"float-quantized {scope}: the peer rounds to other codes")
    grid = {"family": "float", "scope": scope, "scale_dtype": scale_dtype}
    return Golden(
        name=f"float-quantized-{scope}" + (f"-{label}" if label else ""),
        about={"layout": "float-quantized", "grid": grid},
        plain={"scale": scale, "values": values},
        packed=packed,
    )


# --- bitsandbytes ---------------------------------------------------------------------------------


def bitsandbytes() -> Iterator[Golden]:
    for kind in ("nf4", "fp4"):
        yield _four_bit(kind, (8, 128), 64, torch.float32)
        yield _four_bit(kind, (8, 128), 64, torch.float32, double_quant=True)
    # 260 blocks: the blocks' maxima fill one block of 256 themselves, and begin another
    yield _four_bit("nf4", (130, 64), 32, torch.bfloat16, double_quant=True, label="nested")


def _four_bit(
    kind: str,
    shape: tuple[int, int],
    block_size: int,
    dtype: torch.dtype,
    *,
    double_quant: bool = False,
    label: str | None = None,
) -> Golden:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(shape, generator=generator).mul_(0.05).to(dtype)
    packed, state = quantize_4bit(
        weight, blocksize=block_size, quant_type=kind, compress_statistics=double_quant
    )
    values = dequantize_4bit(packed, state)
    flat = packed.flatten()
    codes = torch.stack([flat >> 4, flat & 15], 1).reshape(shape)
    blocks = (shape[0], shape[1] // block_size)
    plain = {"codes": codes, "absmax": state.absmax.reshape(blocks), "values": values}
    if double_quant:
        plain["nested_absmax"] = state.state2.absmax
        plain["nested_offset"] = state.offset.reshape(1)
    parts = {f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}
    grid = {"family": "codebook", "codebook": kind, "block_size": block_size}
    suffix = "-".join(["double"] * double_quant + ([label] if label else []))
    return Golden(
        name=kind + (f"-{suffix}" if suffix else ""),
        about={
            "layout": "bitsandbytes",
            "grid": grid | {"double_quant": double_quant},
            "dtype": str(dtype).removeprefix("torch."),
        },
        plain=plain,
        packed={"weight": packed, **{name: part.contiguous() for name, part in parts.items()}},
    )


# --- GPTQModel ------------------------------------------------------------------------------------


def gptqmodel() -> Iterator[Golden]:
    for version, many in ((1, (2, 3, 4, 8)), (2, (3, 4))):
        for bits in many:
            yield _gptq(uniform((32, 32), bits=bits, scale_dtype="float16"), version)
            asym = uniform((32, 32), bits=bits, symmetric=False, scale_dtype="float16")
            yield _gptq(asym, version)
    channel = uniform((32, 32), bits=4, group_size="channel", scale_dtype="float16")
    yield _gptq(channel, 1, "channel")
    yield _awq(uniform((32, 32), bits=4, symmetric=False, scale_dtype="float16"))


def _gptq(value: Uniform, version: int, label: str | None = None) -> Golden:
    from gptqmodel import QuantizeConfig
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    if version == 1 and value.zero_point is not None:
        value.zero_point.clamp_(min=1)  # v1 stores zero-points less one: it cannot say 0
    rows, columns = value.codes.shape
    size = value.group_size if isinstance(value.group_size, int) else columns
    module = TorchLinear(
        bits=value.bits, group_size=size, sym=value.symmetric, desc_act=False,
        in_features=columns, out_features=rows, bias=False, pack_dtype=torch.int32,
    )  # fmt: skip
    linear = torch.nn.Linear(columns, rows, bias=False)
    linear.weight = torch.nn.Parameter(value.weight(), requires_grad=False)
    g_idx = torch.arange(columns, dtype=torch.int32) // size
    module.pack_original(linear, value.scale.float(), value.zeros(), g_idx)
    module.post_init()
    values = module.dequantize_weight().T
    if version == 1:
        config = QuantizeConfig(bits=value.bits, group_size=size, sym=value.symmetric)
        convert_gptq_v2_to_v1_format_module(module, config)
    layout = "gptq" if version == 1 else "gptq_v2"
    kind = "" if value.symmetric else "-asym"
    return Golden(
        name=f"{layout}-{value.bits}{kind}" + (f"-{label}" if label else ""),
        about={"layout": layout, "grid": value.grid},
        plain=value.plain() | {"values": values.contiguous()},
        packed={name: getattr(module, name) for name in ("qweight", "qzeros", "scales", "g_idx")},
    )


def _awq(value: Uniform) -> Golden:
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm, pack_awq

    codes = value.unsigned().T.contiguous()  # (in, rows)
    qweight, qzeros = pack_awq(codes, value.zeros().T.contiguous(), value.bits)
    scales = value.scale.T.contiguous()
    values = dequantize_gemm(qweight, qzeros, scales, value.bits, value.group_size)
    return Golden(
        name="awq",
        about={"layout": "awq", "grid": value.grid},
        plain=value.plain() | {"values": values.T.contiguous()},
        packed={"qweight": qweight, "qzeros": qzeros, "scales": scales},
    )


PEERS = {
    "compressed-tensors": compressed_tensors,
    "bitsandbytes": bitsandbytes,
    "gptqmodel": gptqmodel,
}


def write(golden: Golden, peer: str, out: Path) -> None:
    about = {"peer": peer, "version": importlib.metadata.version(peer), **golden.about}
    packed = {f"packed.{name}": tensor for name, tensor in golden.packed.items()}
    tensors = {name: tensor.clone() for name, tensor in (golden.plain | packed).items()}
    save_file(
        tensors,
        out / f"{golden.name}.safetensors",
        metadata={"golden": json.dumps(about, sort_keys=True)},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for golden in PEERS[options.peer]():
        write(golden, options.peer, options.out)


if __name__ == "__main__":
    main()
