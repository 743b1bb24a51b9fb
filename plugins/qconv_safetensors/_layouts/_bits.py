"""Dense packing: code ``i`` lies in bits ``bits * i`` and on, lowest first, across words.

So 32 codes fill ``bits`` 32-bit words, as compressed-tensors and GPTQ have it. Codes are handled
eight at a time, as the bytes of one 64-bit integer, in slabs that stay in the cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

    Words = np.ndarray[Any, np.dtype[Any]]

#: Codes per slab: with its few copies it stays in the second-level cache.
_SLAB = 1 << 18


def packed_words(count: int, bits: int) -> int:
    """32-bit words that ``count`` codes fill, the last one perhaps in part."""
    return -(-count * bits // 32)


def pack_rows(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack every row: (rows, columns) uint8 below 2**bits to (rows, packed_words) int32."""
    import numpy as np
    import torch

    rows, columns = codes.shape
    words = packed_words(columns, bits)
    out = np.zeros((rows, 4 * words), np.uint8)
    padded = np.ascontiguousarray(_padded(codes.numpy(), columns, bits))
    step = max(1, _SLAB // padded.shape[1])
    for start in range(0, rows, step):
        packed = _pack_bytes(padded[start : start + step], bits)
        out[start : start + step, : packed.shape[1]] = packed[:, : 4 * words]
    return torch.from_numpy(out.view("<i4"))


def _padded(codes: Words, columns: int, bits: int) -> Words:
    """Codes with zeros up to whole groups: pairs at 4 bits, one byte at 8, else groups of eight."""
    import numpy as np

    missing = -columns % {4: 2, 8: 1}.get(bits, 8)
    return np.pad(codes, ((0, 0), (0, missing))) if missing else codes


def _pack_bytes(codes: Words, bits: int) -> Words:
    """(rows, columns) uint8 to (rows, columns * bits / 8) uint8."""
    if bits == 8:
        return codes
    if bits == 4:
        pairs = codes.view("<u2")
        packed: Words = (pairs | pairs >> 4).astype("u1")
        return packed
    return _pack_eights(codes, bits)


def _pack_eights(codes: Words, bits: int) -> Words:
    """Eight bytes hold eight codes; halve the gaps between them until there are none."""
    import numpy as np

    x = codes.view("<u8")  # (rows, columns / 8)
    for lane, mask in ((8, 0x00FF00FF00FF00FF), (16, 0x0000FFFF0000FFFF), (32, 0xFFFFFFFF)):
        width = np.uint64(bits * lane // 8)  # bits that a lane holds
        low, high = x & np.uint64(mask), (x >> np.uint64(lane)) & np.uint64(mask)
        x = low | high << width
    eights = np.ascontiguousarray(x.astype("<u8")).view("u1").reshape(*x.shape, 8)
    return eights[..., :bits].reshape(len(x), -1)
