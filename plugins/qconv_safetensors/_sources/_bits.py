"""Unpacks codes of 2 to 8 bits from 32-bit words.

Dense packing is one little-endian stream of bits: value ``i`` of a row starts at bit ``i * bits``,
and may straddle two words. The older padded packing starts ``32 // bits`` values in every word and
leaves its highest bits empty; for 2, 4 and 8 bits the two are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def dense_words(count: int, bits: int) -> int:
    """Words of ``count`` densely packed values."""
    return -(-count * bits // 32)


def padded_words(count: int, bits: int) -> int:
    """Words of ``count`` values in the padded packing."""
    return -(-count // (32 // bits))


def unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first ``count`` values of every row: (rows, count) uint8.

    The number of words tells the packing; where both need as many, it is the dense one.

    words: (rows, words) int32
    """
    if words.shape[1] == dense_words(count, bits):
        return _unpack_dense(words, bits, count)
    return _unpack_padded(words, bits, count)


def signed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes less ``2**(bits - 1)``: int8 of the same shape. codes: uint8."""
    import torch

    # uint8 wraps around, and its bits are those of the signed number
    return (codes - (1 << (bits - 1))).view(torch.int8)


def unsigned(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes and ``2**(bits - 1)``: uint8 of the same shape. codes: int8."""
    import torch

    return codes.contiguous().view(torch.uint8) + (1 << (bits - 1))


def _unpack_dense(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Eight values lie in ``bits`` bytes, so that eight steps over all bytes unpack everything."""
    import torch

    rows = words.shape[0]
    octets = -(-count // 8)
    stream = torch.zeros((rows, octets * bits + 1), dtype=torch.uint8, device=words.device)
    # flat first: a single column may keep a stride that view refuses; little-endian machines only
    data = words.contiguous().view(-1).view(torch.uint8).view(rows, -1)[:, : octets * bits]
    stream[:, : data.shape[1]] = data
    values = torch.empty((rows, octets, 8), dtype=torch.uint8, device=words.device)
    mask = (1 << bits) - 1
    for place in range(8):
        byte, shift = divmod(place * bits, 8)
        low = stream[:, byte : byte + octets * bits : bits] >> shift
        if shift + bits > 8:
            # what the shift pushes beyond eight bits belongs to the next value
            low = low | (stream[:, byte + 1 : byte + 1 + octets * bits : bits] << (8 - shift))
        values[:, :, place] = low & mask
    return values.view(rows, octets * 8)[:, :count].contiguous()


def _unpack_padded(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    import torch

    per_word = 32 // bits
    mask = (1 << bits) - 1
    values = torch.empty((*words.shape, per_word), dtype=torch.uint8, device=words.device)
    for place in range(per_word):
        values[:, :, place] = ((words >> (place * bits)) & mask).to(torch.uint8)
    return values.view(words.shape[0], -1)[:, :count].contiguous()
