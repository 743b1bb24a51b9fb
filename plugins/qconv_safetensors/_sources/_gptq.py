"""Reads GPTQ checkpoints, versions 1 and 2: ``qweight``, ``qzeros``, ``scales``, ``g_idx``.

``qweight`` (int32) packs codes along the inputs: column ``n`` is one stream of bits. ``scales``
(groups, out) turn them into values, ``scale * (code - zero_point)``; ``qzeros`` packs zero-points
along the outputs, less one in version 1. ``g_idx`` gives every input its group: only the groups'
own order is read, which is all that runtimes still load. Where a config does not say which version
it is, symmetric zero-points do by their value; asymmetric ones cannot. Sources: AutoGPTQ's
``qlinear_cuda.py``, GPTQModel's ``convert_gptq_v1_to_v2_format_module``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qconv.errors import UnreadableInput, Unsupported
from qconv.plugin import EncodedTensor

from ._bits import dense_words, signed, unpack
from ._gptq_config import Settings, Version, read_settings
from ._stored import SCALE_DTYPES, Module, finite, own_parts, packed_modules

if TYPE_CHECKING:
    import torch

    from qconv.grids import UniformGrid
    from qconv.plugin import ModelInfo
    from qconv.tensors import QuantTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqTensor(EncodedTensor):
    """A weight, and the version its zero-points are stored in; None when their values say."""

    version: Version | None


class GptqSource:
    """A checkpoint whose ``quant_method`` is ``gptq``."""

    def tensors(
        self, model: ModelInfo, read: Callable[[str], torch.Tensor]
    ) -> Sequence[EncodedTensor]:
        """See :class:`qconv.plugin.Source`."""
        settings = read_settings(model)
        encoded = []
        for module in packed_modules(model, "qweight"):
            own = settings.of(module.name)
            encoded.append(_encoded(module, own))
            if own.act_order and module.find("g_idx") is not None:
                _check_order(encoded[-1], read(module.full("g_idx")))
        return encoded

    def decode(self, tensor: EncodedTensor, parts: Mapping[str, torch.Tensor]) -> QuantTensor:
        """See :class:`qconv.plugin.Source`."""
        from qconv.tensors import QuantTensor

        own = own_parts(tensor.name, parts)
        if "g_idx" in own:
            _check_order(tensor, own["g_idx"])
        grid: Any = tensor.grid
        rows, columns = tensor.shape
        codes = unpack(own["qweight"].t().contiguous(), grid.bits, columns)
        stored = unpack(own["qzeros"], grid.bits, rows)  # (groups, rows)
        scale = finite(tensor.name, own["scales"]).t().contiguous()  # (rows, groups)
        version = tensor.version if isinstance(tensor, GptqTensor) else None
        if grid.symmetric:
            _check_symmetric(tensor.name, stored, grid.bits, version)
            return QuantTensor(
                grid=grid, codes=signed(codes, grid.bits), parameters={"scale": scale}
            )
        zero = _zero_points(tensor.name, stored, grid.bits, version)
        parameters = {"scale": scale, "zero_point": zero.t().contiguous()}
        return QuantTensor(grid=grid, codes=codes, parameters=parameters)


def _encoded(module: Module, settings: Settings) -> GptqTensor:
    bits = settings.bits
    words = module.need("qweight", ("I32",), 2)
    rows, columns = words.shape[1], words.shape[0] * 32 // bits
    if words.shape[0] * 32 % bits:
        raise UnreadableInput(
            f"tensor {words.name!r}: {words.shape[0]} words per column hold no whole number of "
            f"{bits}-bit values; config.json and weights do not belong together, get all anew"
        )
    groups = _groups(module, settings.group_size, columns)
    scales = module.need_shape("scales", tuple(SCALE_DTYPES), (groups, rows))
    module.need_shape("qzeros", ("I32",), (groups, dense_words(rows, bits)))
    suffixes = ["qweight", "qzeros", "scales"]
    if module.find("g_idx") is not None:
        module.need_shape("g_idx", ("I32", "I64"), (columns,))
        suffixes.append("g_idx")
    return GptqTensor(
        name=module.weight,
        shape=(rows, columns),
        parts=tuple(module.full(suffix) for suffix in suffixes),
        grid=_grid(settings, scales.dtype),
        version=settings.version,
    )


def _groups(module: Module, group_size: int, columns: int) -> int:
    if group_size == -1:
        return 1
    if columns % group_size:
        raise Unsupported(
            f"tensor {module.weight!r}: {columns} columns are not a multiple of group size "
            f"{group_size}, and no runtime reads a last group that is smaller; start from the "
            "float checkpoint"
        )
    return columns // group_size


def _grid(settings: Settings, scale_dtype: str) -> UniformGrid:
    from qconv.grids import UniformGrid

    dtype: Any = SCALE_DTYPES[scale_dtype]
    return UniformGrid(
        bits=settings.bits,
        symmetric=settings.symmetric,
        group_size="channel" if settings.group_size == -1 else settings.group_size,
        scale_dtype=dtype,
    )


def _check_order(tensor: EncodedTensor, order: torch.Tensor) -> None:
    """Refuse columns that are not in the order of their groups."""
    import torch

    columns = tensor.shape[1]
    wanted = torch.arange(columns, device=order.device) // tensor.grid.columns(columns)
    if not torch.equal(order.to(torch.int64), wanted):
        name = tensor.name.removesuffix("weight") + "g_idx"
        raise Unsupported(
            f"tensor {name!r}: columns are not in the order of their groups (desc_act), which is "
            "not decoded; quantize the model again without desc_act, or start from the float "
            "checkpoint"
        )


def _check_symmetric(name: str, stored: torch.Tensor, bits: int, version: Version | None) -> None:
    """Zero-points of a symmetric grid are all the middle code, stored as either version does."""
    half = 1 << (bits - 1)
    values = {"v1": half - 1, "v2": half}
    low, high = int(stored.min()), int(stored.max())
    if low == high and low in ([values[version]] if version else values.values()):
        return
    found = str(low) if low == high else f"{low} to {high}"
    expected = values[version] if version else f"{half - 1} (version 1) or {half} (version 2)"
    raise UnreadableInput(
        f"tensor {name!r}: its qzeros hold {found}, but a symmetric tensor of {bits} bits has "
        f"{expected} everywhere; correct sym or checkpoint_format (gptq, gptq_v2) in config.json"
    )


def _zero_points(
    name: str, stored: torch.Tensor, bits: int, version: Version | None
) -> torch.Tensor:
    """Zero-points of an asymmetric grid: uint8 like ``stored``."""
    if version == "v2":
        return stored
    if version is None:
        raise ValueError("plugin author: an asymmetric tensor was planned without its version")
    highest = (1 << bits) - 1
    wrapped = int((stored == highest).sum())
    if wrapped:
        raise Unsupported(
            f"tensor {name!r}: {wrapped} zero-points are stored as {highest} in GPTQ version 1, "
            "which runtimes read differently (0 or a borrow from the next); save the model with "
            "checkpoint_format gptq_v2, or start from the float checkpoint"
        )
    return stored + 1
