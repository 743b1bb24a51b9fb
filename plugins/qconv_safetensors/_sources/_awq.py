"""Reads AWQ checkpoints in the GEMM layout: ``qweight``, ``qzeros``, ``scales``.

``qweight`` (in, out / 8) int32 packs 4-bit codes along the outputs; a word's lowest four bits hold
column 0 of its eight, the next 2, then 4, 6, 1, 3, 5, 7. ``qzeros`` (groups, out / 8) is packed
alike, ``scales`` is (groups, out): ``value = scale * (code - zero_point)``. Source: AutoAWQ's
``WQLinear_GEMM``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qconv.errors import UnreadableInput, Unsupported
from qconv.plugin import EncodedTensor

from ._bits import unpack
from ._families import quantization
from ._section import shown
from ._stored import SCALE_DTYPES, Module, finite, own_parts, packed_modules

if TYPE_CHECKING:
    import torch

    from qconv.plugin import ModelInfo
    from qconv.tensors import QuantTensor

    from ._section import Section

_BITS = 4
_PER_WORD = 32 // _BITS
#: Where a word holds its columns 0 to 7: the inverse of the order they are packed in.
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
_LARGEST_GROUP = 1 << 24


class AwqSource:
    """A checkpoint whose ``quant_method`` is ``awq``."""

    def tensors(
        self,
        model: ModelInfo,
        read: Callable[[str], torch.Tensor],  # noqa: ARG002 -- the protocol's
    ) -> Sequence[EncodedTensor]:
        """See :class:`qconv.plugin.Source`."""
        config = quantization(model)
        _check_config(config)
        size = config.whole("group_size", -1, _LARGEST_GROUP, 128)
        if size == 0:
            config.refuse("group_size", "a positive whole number, or -1 for a whole row")
        left = config.texts("modules_to_not_convert")
        return [_encoded(module, size, left) for module in packed_modules(model, "qweight")]

    def decode(self, tensor: EncodedTensor, parts: Mapping[str, torch.Tensor]) -> QuantTensor:
        """See :class:`qconv.plugin.Source`."""
        from qconv.tensors import QuantTensor

        own = own_parts(tensor.name, parts)
        rows = tensor.shape[0]
        parameters = {
            "scale": finite(tensor.name, own["scales"]).t().contiguous(),
            "zero_point": _unpacked(own["qzeros"], rows),
        }
        codes = _unpacked(own["qweight"], rows)
        return QuantTensor(grid=tensor.grid, codes=codes, parameters=parameters)


def _check_config(config: Section) -> None:
    bits = config.whole("bits", 1, 16, _BITS)
    version = config.text("version", "gemm").lower()
    backend = config.text("backend", "autoawq").lower()
    if bits != _BITS or version != "gemm" or backend == "llm-awq":
        raise Unsupported(
            f"{config.where}: AWQ of {bits} bits, version {shown(version)}, backend "
            f"{shown(backend)} is not decoded, only 4 bits in version gemm of autoawq; "
            "start from the float checkpoint"
        )
    if not config.flag("zero_point", default=True):
        raise Unsupported(
            f"{config.where}: AWQ without zero-points is not decoded, as AutoAWQ packs none; "
            "start from the float checkpoint"
        )


def _encoded(module: Module, size: int, left: tuple[str, ...]) -> EncodedTensor:
    from qconv.grids import UniformGrid

    if module.is_named_by(left):
        raise UnreadableInput(
            f"tensor {module.weight!r}: stored quantized, but config.json's "
            "modules_to_not_convert says it is not; they do not belong together, get all files "
            "anew"
        )
    words = module.need("qweight", ("I32",), 2)
    columns, rows = words.shape[0], words.shape[1] * _PER_WORD
    if size > 0 and columns % size:
        raise Unsupported(
            f"tensor {module.weight!r}: {columns} columns are not a multiple of group size "
            f"{size}; start from the float checkpoint"
        )
    groups = columns // size if size > 0 else 1
    scale_dtype: Any = SCALE_DTYPES[
        module.need_shape("scales", tuple(SCALE_DTYPES), (groups, rows)).dtype
    ]
    module.need_shape("qzeros", ("I32",), (groups, words.shape[1]))
    grid = UniformGrid(
        bits=_BITS,
        symmetric=False,
        group_size=size if size > 0 else "channel",
        scale_dtype=scale_dtype,
    )
    return EncodedTensor(
        name=module.weight,
        shape=(rows, columns),
        parts=tuple(module.full(suffix) for suffix in ("qweight", "qzeros", "scales")),
        grid=grid,
    )


def _unpacked(words: torch.Tensor, rows: int) -> torch.Tensor:
    """The values, transposed into (out, in or groups) uint8. words: (in or groups, out / 8)."""
    packed = unpack(words, _BITS, rows).view(words.shape[0], -1, _PER_WORD)
    return packed[:, :, list(_PLACES)].view(words.shape[0], rows).t().contiguous()
