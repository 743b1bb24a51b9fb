"""Reads bitsandbytes' 4-bit weights, NF4 and FP4, as transformers saves them.

``X.weight`` holds two codes per byte, the first in the high half, row by row; ``X.weight.absmax``
one scale per block of consecutive values, in float32 or, nested, in codes of ``nested_quant_map``
under ``nested_absmax`` and an offset. ``X.weight.quant_state.bitsandbytes__nf4`` (or ``fp4``) is
JSON: the shape, the block sizes and the offset. Source: ``QuantState`` in bitsandbytes'
``functional.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from typing import TYPE_CHECKING, Any, Literal

from qconv.errors import UnreadableInput, Unsupported
from qconv.plugin import EncodedTensor

from ._section import Section, shown
from ._stored import Module, finite, modules_with, own_parts

if TYPE_CHECKING:
    import torch

    from qconv.grids import CodebookGrid
    from qconv.plugin import ModelInfo
    from qconv.tensors import QuantTensor

_Read = Callable[[str], "torch.Tensor"]

_KINDS: tuple[Literal["nf4", "fp4"], ...] = ("nf4", "fp4")
_STATE = "weight.quant_state.bitsandbytes__"
#: bytes of a value, by what codes may be stored as (``bnb_4bit_quant_storage``)
_STORAGE = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4}
_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_NESTED = 256
#: Far above what the few numbers of a state take.
_MAX_STATE = 4096
_MAX_SIZE = 1 << 31
#: How far the stored table of nested codes may be from bitsandbytes' own: torch's linspace, which
#: makes it, rounds by the machine.
_TABLE_ERROR = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """A weight's state. offset: of nested scales; None when they are not nested."""

    shape: tuple[int, int]
    block_size: int
    offset: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsAndBytesTensor(EncodedTensor):
    """A weight, and the offset of its nested scales."""

    offset: float | None


class BitsAndBytesSource:
    """A checkpoint whose ``quant_method`` is ``bitsandbytes``."""

    def tensors(self, model: ModelInfo, read: _Read) -> Sequence[EncodedTensor]:
        """See :class:`qconv.plugin.Source`."""
        _refuse_8bit(model)
        found = [
            _encoded(module, kind, _state(module, kind, read))
            for kind in _KINDS
            for module in modules_with(model, _STATE + kind)
        ]
        return sorted(found, key=lambda tensor: tensor.name)

    def decode(self, tensor: EncodedTensor, parts: Mapping[str, torch.Tensor]) -> QuantTensor:
        """See :class:`qconv.plugin.Source`."""
        from qconv.tensors import QuantTensor

        own = own_parts(tensor.name, parts)
        grid: Any = tensor.grid
        _check_table(tensor.name, own["weight.quant_map"], grid.table(), 0.0)
        if grid.double_quant:
            _check_table(
                tensor.name, own["weight.nested_quant_map"], grid.nested_table(), _TABLE_ERROR
            )
        return QuantTensor(
            grid=grid,
            codes=_codes(own["weight"], tensor.shape),
            parameters=_parameters(tensor, own),
        )


def _refuse_8bit(model: ModelInfo) -> None:
    names = [name for name in model.tensors if name.endswith(".SCB")]
    if names:
        raise Unsupported(
            f"tensor {min(names)!r}: bitsandbytes' 8-bit weights (LLM.int8) are not decoded, only "
            "NF4 and FP4; start from the float checkpoint"
        )


def _state(module: Module, kind: str, read: _Read) -> _State:
    info = module.need(_STATE + kind, ("U8",), 1)
    if info.nbytes > _MAX_STATE:
        raise UnreadableInput(
            f"tensor {info.name!r}: {info.nbytes} bytes are too many for a quantization state, "
            f"which takes {_MAX_STATE} at most; the checkpoint is damaged or hostile"
        )
    data = bytes(read(info.name).tolist())
    try:
        values = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnreadableInput(
            f"tensor {info.name!r}: {shown(data)} is no JSON ({error}); the checkpoint is "
            "damaged, get it anew from its publisher"
        ) from error
    if not isinstance(values, dict):
        raise UnreadableInput(
            f"tensor {info.name!r}: {shown(values)} must be a JSON object; the checkpoint is "
            "damaged, get it anew from its publisher"
        )
    return _checked_state(Section(where=f"tensor {info.name!r}", values=values), kind)


def _checked_state(section: Section, kind: str) -> _State:
    if section.text("quant_type", kind) != kind:
        section.refuse("quant_type", repr(kind))
    size = section.whole("blocksize", 1, _MAX_SIZE)
    shape = section.values.get("shape")
    rank = len(shape) if isinstance(shape, list) else 2
    sizes = section.wholes("shape", rank, _MAX_SIZE - 1)
    if sizes is None or prod(sizes) > _MAX_SIZE * 64:
        section.refuse("shape", "rows and columns")
    if len(sizes) != 2 or size not in _BLOCK_SIZES or sizes[1] % size:
        raise Unsupported(
            f"{section.where}: shape {shown(list(sizes))} in blocks of {size} is not decoded, only "
            "matrices whose rows are whole blocks of 32 to 4096; start from the float checkpoint"
        )
    offset = section.values.get("nested_offset")
    if offset is not None and not _is_number(offset):
        section.refuse("nested_offset", "a finite number")
    if section.whole("nested_blocksize", 1, _MAX_SIZE, _NESTED) != _NESTED:
        section.refuse("nested_blocksize", str(_NESTED))
    return _State(
        shape=(sizes[0], sizes[1]),
        block_size=size,
        offset=None if offset is None else float(offset),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _encoded(module: Module, kind: Literal["nf4", "fp4"], state: _State) -> EncodedTensor:
    if all(module.find(_STATE + each) is not None for each in _KINDS):
        raise UnreadableInput(
            f"tensor {module.weight!r}: has states of both {' and '.join(_KINDS)}; nothing says "
            "which of them counts, get the checkpoint anew from its publisher"
        )
    rows, columns = state.shape
    blocks = rows * columns // state.block_size
    weight = module.need("weight", tuple(_STORAGE), 2)
    if weight.nbytes * 2 != rows * columns:
        raise UnreadableInput(
            f"tensor {weight.name!r}: {weight.nbytes} bytes, but {rows} x {columns} codes of 4 "
            "bits fill others; weight and quantization state do not belong together, get all anew"
        )
    suffixes = ["weight", "weight.absmax", "weight.quant_map", _STATE + kind]
    nested = state.offset is not None
    module.need_shape("weight.absmax", ("U8",) if nested else ("F32",), (blocks,))
    module.need_shape("weight.quant_map", ("F32",), (16,))
    if nested:
        module.need_shape("weight.nested_absmax", ("F32",), (-(-blocks // _NESTED),))
        module.need_shape("weight.nested_quant_map", ("F32",), (256,))
        suffixes += ["weight.nested_absmax", "weight.nested_quant_map"]
    return BitsAndBytesTensor(
        name=module.weight,
        shape=state.shape,
        parts=tuple(module.full(suffix) for suffix in suffixes),
        grid=_grid(kind, state),
        offset=state.offset,
    )


def _grid(kind: Literal["nf4", "fp4"], state: _State) -> CodebookGrid:
    from qconv.grids import CodebookGrid

    return CodebookGrid(
        codebook=kind, block_size=state.block_size, double_quant=state.offset is not None
    )


def _codes(packed: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The codes: (rows, columns) uint8. packed: two per byte, of any dtype."""
    import torch

    data = packed.contiguous().view(-1).view(torch.uint8)
    return torch.stack((data >> 4, data & 15), dim=1).view(shape)


def _parameters(tensor: EncodedTensor, own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    import torch

    absmax = own["weight.absmax"].reshape(tensor.grid.layout(tensor.shape)["absmax"][0])
    if "weight.nested_absmax" not in own:
        return {"absmax": finite(tensor.name, absmax)}
    offset = tensor.offset if isinstance(tensor, BitsAndBytesTensor) else None
    if offset is None:
        raise ValueError("plugin author: nested scales were planned without their offset")
    return {
        "absmax": absmax,
        "nested_absmax": finite(tensor.name, own["weight.nested_absmax"]),
        "nested_offset": torch.tensor([offset], dtype=torch.float32, device=absmax.device),
    }


def _check_table(name: str, stored: torch.Tensor, table: torch.Tensor, error: float) -> None:
    table = table.to(stored.device)
    if not bool(((stored - table).abs() <= error * table.abs()).all()):
        raise Unsupported(
            f"tensor {name!r}: its codes stand for other values than bitsandbytes' own, which is "
            "not decoded; start from the float checkpoint"
        )
