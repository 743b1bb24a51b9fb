"""Reads compressed-tensors: packed integers, INT8 and FP8, as llm-compressor writes them.

A module stores ``weight_packed`` (int32 words along the columns) and ``weight_shape``, or
``weight`` in one byte per value; with ``weight_scale``, ``weight_zero_point`` unless symmetric
(packed along the rows, where the weight is packed), and ``input_scale`` where inputs are quantized
statically. Integers are signed, ``value = scale * (code - zero_point)``; packed ones are stored
plus ``2**(bits - 1)``. Source of the facts: compressed-tensors 0.19, ``pack_quantized`` and
``naive_quantized``; before, packing was padded and zero-points were not packed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qconv.errors import UnreadableInput, Unsupported
from qconv.plugin import EncodedTensor

from ._bits import dense_words, padded_words, signed, unpack, unsigned
from ._families import quantization
from ._float8 import float8_codes, float8_parameters
from ._integers import check_range, static_input
from ._schemes import read_schemes
from ._stored import SCALE_DTYPES, Module, finite, modules_with, own_parts, packed_modules

if TYPE_CHECKING:
    import torch

    from qconv.grids import ActivationGrid, FloatGrid, Grid
    from qconv.plugin import ModelInfo
    from qconv.tensors import QuantTensor

    from ._schemes import Scheme

_Read = Callable[[str], "torch.Tensor"]
_SCALES = tuple(SCALE_DTYPES)


class CompressedTensorsSource:
    """A checkpoint whose ``quant_method`` is ``compressed-tensors``."""

    def tensors(self, model: ModelInfo, read: _Read) -> Sequence[EncodedTensor]:
        """See :class:`qconv.plugin.Source`."""
        schemes = read_schemes(quantization(model))
        packed = [
            _packed(module, schemes.of(module.name), read)
            for module in packed_modules(model, "weight_packed")
        ]
        plain = [
            _plain(module, schemes.of(module.name))
            for module in modules_with(model, "weight_scale")
            if module.find("weight_packed") is None
        ]
        return sorted([*packed, *plain], key=lambda tensor: tensor.name)

    def decode(self, tensor: EncodedTensor, parts: Mapping[str, torch.Tensor]) -> QuantTensor:
        """See :class:`qconv.plugin.Source`."""
        from qconv.tensors import QuantTensor

        own = own_parts(tensor.name, parts)
        if tensor.grid.spec()["family"] == "float":
            codes = float8_codes(tensor.name, own["weight"])
            parameters = float8_parameters(tensor, own["weight_scale"])
        else:
            codes, parameters = _integers(tensor, own)
        return QuantTensor(
            grid=tensor.grid,
            codes=codes,
            parameters=parameters,
            activation=tensor.activation,
            activation_parameters=static_input(
                tensor, own.get("input_scale"), own.get("input_zero_point")
            ),
        )


# --- what is stored -------------------------------------------------------------------------------


def _packed(module: Module, scheme: Scheme, read: _Read) -> EncodedTensor:
    if scheme.stored != "packed":
        raise _contradiction(module, "weight_packed", "its format stores one byte per value")
    words = module.need("weight_packed", ("I32",), 2)
    module.need_shape("weight_shape", ("I64", "I32"), (2,))
    rows, columns = (int(size) for size in read(module.full("weight_shape")))
    widths = {dense_words(columns, scheme.bits), padded_words(columns, scheme.bits)}
    if rows != words.shape[0] or columns < 1 or words.shape[1] not in widths:
        raise UnreadableInput(
            f"tensor {module.full('weight_shape')!r}: ({rows}, {columns}), but weight_packed is "
            f"{words.shape} words of {scheme.bits}-bit values; they do not belong together, get "
            "all files anew"
        )
    shape = (rows, columns)
    suffixes = ["weight_packed", "weight_shape", *_order(module, columns, read)]
    return _encoded(module, scheme, shape, suffixes)


def _plain(module: Module, scheme: Scheme) -> EncodedTensor:
    if scheme.stored != "plain":
        raise _contradiction(module, "weight", "its format packs values into words")
    dtype = "F8_E4M3" if scheme.kind == "float" else "I8"
    weight = module.need("weight", (dtype,), 2)
    return _encoded(module, scheme, (weight.shape[0], weight.shape[1]), ["weight"])


def _encoded(
    module: Module, scheme: Scheme, shape: tuple[int, int], suffixes: list[str]
) -> EncodedTensor:
    scales = _parameter_shapes(module, scheme, shape)
    scale = module.need_shape("weight_scale", _SCALES, *scales)
    grid = _grid(scheme, SCALE_DTYPES[scale.dtype])
    grid.check_shape(shape, module.weight)
    suffixes = [*suffixes, "weight_scale"]
    if scheme.kind == "int" and (
        not scheme.symmetric or module.find("weight_zero_point") is not None
    ):
        _check_zero_points(module, scheme, shape, scales)
        suffixes.append("weight_zero_point")
    suffixes += _static_parts(module, scheme.activation)
    return EncodedTensor(
        name=module.weight,
        shape=shape,
        parts=tuple(module.full(suffix) for suffix in suffixes),
        grid=grid,
        activation=scheme.activation,
    )


def _parameter_shapes(
    module: Module, scheme: Scheme, shape: tuple[int, int]
) -> tuple[tuple[int, ...], ...]:
    """The shapes a scale may have."""
    rows, columns = shape
    if scheme.strategy == "tensor":
        return (1,), (), (1, 1)
    if scheme.strategy == "channel":
        return (rows, 1), (rows,)
    if scheme.strategy == "group":
        size = scheme.group_size or columns
        if columns % size:
            raise Unsupported(
                f"tensor {module.weight!r}: {columns} columns are not a multiple of group size "
                f"{size}, which no grid holds; start from the float checkpoint"
            )
        return ((rows, columns // size),)
    if scheme.kind == "int" or scheme.block is None:
        raise Unsupported(
            f"tensor {module.weight!r}: integers with a scale per block are not decoded, only "
            "FP8; start from the float checkpoint"
        )
    high, wide = scheme.block
    return ((-(-rows // high), -(-columns // wide)),)


def _grid(scheme: Scheme, scale_dtype: Any) -> Grid:  # noqa: ANN401 -- a Literal
    if scheme.kind == "float":
        return _float_grid(scheme, scale_dtype)
    from qconv.grids import UniformGrid

    size: Any = scheme.group_size if scheme.strategy == "group" else scheme.strategy
    return UniformGrid(
        bits=scheme.bits, symmetric=scheme.symmetric, group_size=size, scale_dtype=scale_dtype
    )


def _float_grid(scheme: Scheme, scale_dtype: Any) -> FloatGrid:  # noqa: ANN401 -- a Literal
    from qconv.grids import FloatGrid

    if scheme.strategy == "group":
        raise Unsupported(
            "config.json: FP8 weights with a scale per group are not decoded, only per tensor, "
            "channel or block; start from the float checkpoint"
        )
    scope: Any = scheme.strategy
    block: Any = scheme.block if scope == "block" else None
    return FloatGrid(scope=scope, block=block, scale_dtype=scale_dtype)


def _check_zero_points(
    module: Module,
    scheme: Scheme,
    shape: tuple[int, int],
    scales: tuple[tuple[int, ...], ...],
) -> None:
    """Packed along the rows, or one byte each."""
    info = module.find("weight_zero_point")
    if info is None or info.dtype != "I32" or scheme.stored != "packed":
        module.need_shape("weight_zero_point", ("I8",), *scales)
        return
    rows, groups = shape[0], scales[0][-1] if scheme.strategy != "tensor" else 1
    words = {dense_words(rows, scheme.bits), padded_words(rows, scheme.bits)}
    module.need_shape("weight_zero_point", ("I32",), *((count, groups) for count in sorted(words)))


def _static_parts(module: Module, activation: ActivationGrid | None) -> list[str]:
    if activation is None or activation.dynamic:
        return []
    module.need_shape("input_scale", _SCALES, (1,), (), (1, 1))
    if activation.kind == "float" or (
        activation.symmetric and module.find("input_zero_point") is None
    ):
        return ["input_scale"]
    module.need_shape("input_zero_point", ("I8",), (1,), (), (1, 1))
    return ["input_scale", "input_zero_point"]


def _order(module: Module, columns: int, read: _Read) -> list[str]:
    """The stored order of columns, which must be none: -1 all over, or group after group."""
    if module.find("weight_g_idx") is None:
        return []
    info = module.need_shape("weight_g_idx", ("I32", "I64"), (columns,))
    order = read(info.name)
    if bool((order == -1).all()) or bool((order[1:] >= order[:-1]).all()):
        return ["weight_g_idx"]
    raise Unsupported(
        f"tensor {info.name!r}: columns are not in the order of their groups (actorder 'group'), "
        "which runtimes no longer load; start from the float checkpoint"
    )


def _contradiction(module: Module, suffix: str, why: str) -> UnreadableInput:
    return UnreadableInput(
        f"tensor {module.full(suffix)!r}: stored, but config.json says {why}; config.json and "
        "weights do not belong together, get all files anew"
    )


# --- what it says ---------------------------------------------------------------------------------


def _integers(
    tensor: EncodedTensor, own: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Codes and parameters on a uniform grid."""
    grid: Any = tensor.grid
    layout = grid.layout(tensor.shape)
    bits, packed = grid.bits, own.get("weight_packed")
    if packed is not None:
        stored = unpack(packed, bits, tensor.shape[1])
        codes = signed(stored, bits) if grid.symmetric else stored
    else:
        check_range(tensor.name, own["weight"], bits)
        codes = own["weight"] if grid.symmetric else unsigned(own["weight"], bits)
    scale = finite(tensor.name, own["weight_scale"]).reshape(layout["scale"][0])
    zero = own.get("weight_zero_point")
    if zero is not None:
        zero = _zero_point(tensor, grid, zero, layout["scale"][0])
    if grid.symmetric:
        _check_symmetric(tensor, zero, 1 << (bits - 1))
        return codes, {"scale": scale}
    if zero is None:
        raise ValueError("plugin author: an asymmetric tensor was planned without zero-points")
    return codes, {"scale": scale, "zero_point": zero}


def _zero_point(
    tensor: EncodedTensor,
    grid: Grid,
    stored: torch.Tensor,
    shape: tuple[int, ...],
) -> torch.Tensor:
    """Zero-points as of unsigned codes: uint8 of the scales' shape."""
    import torch

    bits: int = grid.spec()["bits"]
    if stored.dtype == torch.int32:
        return unpack(stored.t().contiguous(), bits, shape[0]).t().contiguous()  # (rows, groups)
    check_range(tensor.name, stored, bits)
    return unsigned(stored, bits).reshape(shape)


def _check_symmetric(tensor: EncodedTensor, zero: torch.Tensor | None, half: int) -> None:
    if zero is not None and bool((zero != half).any()):
        raise UnreadableInput(
            f"tensor {tensor.name!r}: zero-points other than 0 are stored, but config.json says "
            "symmetric; config.json and weights do not belong together, get all files anew"
        )
