"""GGUF block bytes from codes and parameters.

Every type is a few fields in a block of fixed size (https://github.com/ggml-org/llama.cpp,
``ggml/src/ggml-common.h``), little endian:

* halves and bytes that are copied;
* *planes*: some bits of every code, ``8 / bits`` codes to a byte. Byte ``l`` of a run holds the
  codes ``l``, ``l + stride``, ``l + 2 * stride``, ... from its low bits up;
* 6-bit sub-scales, folded into 12 bytes in one of two ways.

Planes are computed eight codes at a time, as the bytes of one 64-bit word. The loops are plain
Python that numba compiles at first use; it stays out of this module's import.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qconv.errors import UnsupportedGrid

if TYPE_CHECKING:
    import torch

    from qconv.grids import Parameters

Array = np.ndarray[Any, Any]

# Codes per step, so that the second plane of a type finds them in the second-level cache.
_SLAB = 1 << 18


@dataclass(frozen=True, slots=True)
class _Plane:
    """Bits ``low .. low + bits`` of every code, at byte ``offset`` of the block."""

    offset: int
    low: int
    bits: int
    stride: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """A type's block: how many values, how many bytes, and which field lies where (byte offset).

    subs: how sub-scales lie (``k4`` and ``k3`` in 12 bytes, ``nibbles``, ``bytes``), and where
    """

    values: int
    nbytes: int
    halves: Mapping[str, int]
    planes: tuple[_Plane, ...]
    subs: tuple[str, int] | None = None


@functools.cache
def _types() -> dict[str, _Block]:
    nibbles = (_Plane(2, 0, 4, 16),)
    super_halves = {"super_scale": 0, "super_minimum": 2}
    return {
        "q4_0": _Block(values=32, nbytes=18, halves={"scale": 0}, planes=nibbles),
        "q4_1": _Block(
            values=32, nbytes=20, halves={"scale": 0, "minimum": 2}, planes=(_Plane(4, 0, 4, 16),)
        ),
        "q5_0": _Block(
            values=32,
            nbytes=22,
            halves={"scale": 0},
            planes=(_Plane(6, 0, 4, 16), _Plane(2, 4, 1, 1)),
        ),
        "q5_1": _Block(
            values=32,
            nbytes=24,
            halves={"scale": 0, "minimum": 2},
            planes=(_Plane(8, 0, 4, 16), _Plane(4, 4, 1, 1)),
        ),
        "q8_0": _Block(values=32, nbytes=34, halves={"scale": 0}, planes=(_Plane(2, 0, 8, 32),)),
        "q2_k": _Block(
            values=256,
            nbytes=84,
            halves={"super_scale": 80, "super_minimum": 82},
            planes=(_Plane(16, 0, 2, 32),),
            subs=("nibbles", 0),
        ),
        "q3_k": _Block(
            values=256,
            nbytes=110,
            halves={"super_scale": 108},
            planes=(_Plane(32, 0, 2, 32), _Plane(0, 2, 1, 32)),
            subs=("k3", 96),
        ),
        "q4_k": _Block(
            values=256,
            nbytes=144,
            halves=super_halves,
            planes=(_Plane(16, 0, 4, 32),),
            subs=("k4", 4),
        ),
        "q5_k": _Block(
            values=256,
            nbytes=176,
            halves=super_halves,
            planes=(_Plane(48, 0, 4, 32), _Plane(16, 4, 1, 32)),
            subs=("k4", 4),
        ),
        "q6_k": _Block(
            values=256,
            nbytes=210,
            halves={"super_scale": 208},
            planes=(_Plane(0, 0, 4, 64), _Plane(128, 4, 2, 32)),
            subs=("bytes", 192),
        ),
    }


def pack(storage: str, codes: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    """Block bytes: (rows, bytes per row) uint8 on the CPU.

    storage: ggml type in lower case
    codes: (rows, columns) int8 for ``q8_0``, else uint8; and the grid's parameters, any device
    """
    import torch

    block = _block(storage)
    rows, columns = codes.shape
    n = rows * columns // block.values
    raw = _array(codes).reshape(n, block.values).view(np.uint8)
    fields = {name: _array(values).reshape(n, -1) for name, values in parameters.items()}
    out = np.empty((n, block.nbytes), np.uint8)
    for name, offset in block.halves.items():
        out.view("<u2")[:, offset // 2] = fields[name].view(np.uint16)[:, 0]
    if block.subs:
        _pack_subs(*block.subs, fields, out)
    _pack_planes(raw.view(np.uint64), out, block.planes)
    return torch.from_numpy(out.reshape(rows, columns // block.values * block.nbytes))


def _block(name: str) -> _Block:
    block = _types().get(name)
    if block is None:
        raise UnsupportedGrid(
            f"ggml type {name!r} has no packing; choose one of {', '.join(_types())}"
        )
    return block


def _array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().cpu().contiguous().numpy()
    # Words are read eight bytes at a time, and a slice of a tensor may start anywhere.
    return array if array.ctypes.data % 8 == 0 else array.copy()


@functools.cache
def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    import numba

    compiled: Callable[..., None] = numba.njit(cache=True, nogil=True)(function)
    return compiled


# --- planes ---------------------------------------------------------------------------------------


def _pack_planes(words: Array, out: Array, planes: tuple[_Plane, ...]) -> None:
    """Fill the planes of ``out`` (blocks, bytes) uint8 from codes, (blocks, values / 8) uint64."""
    step = _SLAB // (8 * words.shape[1])
    for start in range(0, len(words), step):
        for plane in planes:
            _packer(plane)(words[start : start + step], out[start : start + step])


@functools.cache
def _packer(plane: _Plane) -> Callable[[Array, Array], None]:
    """The loop for one plane. Its numbers are constants to the compiler: eight times as fast."""
    fields, run, offset = 8 // plane.bits, plane.stride // 8, plane.offset
    low, bits = np.uint64(plane.low), np.uint64(plane.bits)
    mask = np.uint64(((1 << plane.bits) - 1) * 0x0101010101010101)

    def neighbours(words: Array, out: Array) -> None:
        for b in range(words.shape[0]):
            for w in range(words.shape[1]):
                # Eight codes give one byte: bit 8k moves to bit 56 + k.
                spread = ((words[b, w] >> low) & mask) * np.uint64(0x0102040810204080)
                out[b, offset + w] = np.uint8(spread >> np.uint64(56))

    def runs(words: Array, out: Array) -> None:
        for b in range(words.shape[0]):
            at = offset
            for first in range(0, words.shape[1], run * fields):
                for w in range(first, first + run):
                    packed = np.uint64(0)
                    for k in range(fields):
                        field = (words[b, w + k * run] >> low) & mask
                        packed |= field << (bits * np.uint64(k))
                    for k in range(8):
                        out[b, at + k] = np.uint8(packed >> np.uint64(8 * k))
                    at += 8

    return _compiled(neighbours if plane.stride == 1 else runs)


# --- sub-scales -----------------------------------------------------------------------------------


def _pack_subs(how: str, offset: int, fields: Mapping[str, Array], out: Array) -> None:
    scales = fields["sub_scales"].view(np.uint8)
    if how == "bytes":
        out[:, offset : offset + 16] = scales
    elif how == "nibbles":
        out[:, offset : offset + 16] = scales | (fields["sub_minimums"] << 4)
    elif how == "k3":
        _compiled(_fold_k3)(scales, out[:, offset : offset + 12])
    else:
        _compiled(_fold_k4)(scales, fields["sub_minimums"], out[:, offset : offset + 12])


def _fold_k4(scales: Array, minimums: Array, out: Array) -> None:
    """Two rows of eight 6-bit numbers: the upper four lend their top bits to the lower four."""
    for b in range(scales.shape[0]):
        for j in range(4):
            s, upper_s = scales[b, j], scales[b, j + 4]
            m, upper_m = minimums[b, j], minimums[b, j + 4]
            out[b, j] = s | ((upper_s >> 4) << 6)
            out[b, j + 4] = m | ((upper_m >> 4) << 6)
            out[b, j + 8] = (upper_s & 15) | ((upper_m & 15) << 4)


def _fold_k3(scales: Array, out: Array) -> None:
    """Sixteen 6-bit numbers, stored plus 32: nibbles first, then the top bits, four to a byte."""
    for b in range(scales.shape[0]):
        for j in range(4):
            top = 0
            for q in range(4):
                top |= (((scales[b, 4 * q + j] + 32) >> 4) & 3) << (2 * q)
            out[b, j + 8] = top
        for j in range(8):
            out[b, j] = ((scales[b, j] + 32) & 15) | (((scales[b, j + 8] + 32) & 15) << 4)
