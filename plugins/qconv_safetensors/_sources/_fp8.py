"""Reads FP8 checkpoints as DeepSeek, Qwen and transformers publish them.

``weight`` in F8_E4M3 is multiplied by ``weight_scale_inv`` (a multiplier despite its name), one
value per block of ``weight_block_size``, or one for the tensor, then also named ``weight_scale``.
Inputs are quantized as the runtime goes, per token and 128 inputs where weights have blocks (some
publishers round these scales up to a power of two, which the grid does not say), or by a stored
scale, ``input_scale`` or ``activation_scale``. Sources: vLLM's ``fp8.py``, transformers'
``finegrained_fp8.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qconv.errors import UnreadableInput, Unsupported
from qconv.plugin import EncodedTensor

from ._families import quantization
from ._float8 import LARGEST_BLOCK, float8_codes, float8_parameters
from ._integers import static_input
from ._section import shown
from ._stored import SCALE_DTYPES, Module, own_parts

if TYPE_CHECKING:
    import torch

    from qconv.grids import ActivationGrid
    from qconv.plugin import ModelInfo
    from qconv.tensors import QuantTensor

    from ._section import Section

_WEIGHT_SCALES = ("weight_scale_inv", "weight_scale")
_INPUT_SCALES = ("input_scale", "activation_scale")


class Fp8Source:
    """A checkpoint whose ``quant_method`` is ``fp8``."""

    def tensors(
        self,
        model: ModelInfo,
        read: Callable[[str], torch.Tensor],  # noqa: ARG002 -- the protocol's
    ) -> Sequence[EncodedTensor]:
        """See :class:`qconv.plugin.Source`."""
        config = quantization(model)
        _check_config(config)
        block = config.wholes("weight_block_size", 2, LARGEST_BLOCK)
        left = config.texts("modules_to_not_convert")
        return [_encoded(module, config, block, left) for module in _modules(model)]

    def decode(self, tensor: EncodedTensor, parts: Mapping[str, torch.Tensor]) -> QuantTensor:
        """See :class:`qconv.plugin.Source`."""
        from qconv.tensors import QuantTensor

        own = own_parts(tensor.name, parts)
        scale = next(own[name] for name in _WEIGHT_SCALES if name in own)
        found = next((own[name] for name in _INPUT_SCALES if name in own), None)
        return QuantTensor(
            grid=tensor.grid,
            codes=float8_codes(tensor.name, own["weight"]),
            parameters=float8_parameters(tensor, scale),
            activation=tensor.activation,
            activation_parameters=static_input(tensor, found, None),
        )


def _check_config(config: Section) -> None:
    kind = config.text("fmt", "e4m3").lower()
    if kind not in {"e4m3", "float8_e4m3fn"}:
        raise Unsupported(
            f"{config.where}: fmt {shown(kind)} is not decoded, only e4m3; "
            "start from the float checkpoint"
        )


def _modules(model: ModelInfo) -> list[Module]:
    """Modules with FP8 weights, and those that have a scale for one."""
    names = {name for name, info in model.tensors.items() if info.dtype.startswith("F8")}
    names |= {
        name.removesuffix(suffix) + "weight"
        for name in model.tensors
        for suffix in _WEIGHT_SCALES
        if name.endswith(f".{suffix}")
    }
    odd = sorted(name for name in names if not name.endswith(".weight"))
    if odd:
        raise Unsupported(
            f"tensor {odd[0]!r}: FP8 values that are no module's weight (fused experts, for "
            "example) are not decoded; start from the float checkpoint"
        )
    return [
        Module(name=name.removesuffix(".weight"), tensors=model.tensors) for name in sorted(names)
    ]


def _encoded(
    module: Module, config: Section, block: tuple[int, ...] | None, left: tuple[str, ...]
) -> EncodedTensor:
    from qconv.grids import FloatGrid

    if module.is_named_by(left):
        raise UnreadableInput(
            f"tensor {module.weight!r}: stored in FP8, but config.json's modules_to_not_convert "
            "says it is not; they do not belong together, get all files anew"
        )
    weight = module.need("weight", ("F8_E4M3",), 2)
    rows, columns = weight.shape
    suffix = _present(module, _WEIGHT_SCALES)
    if block is None:
        shapes: tuple[tuple[int, ...], ...] = ((), (1,), (1, 1))
    else:
        shapes = ((-(-rows // block[0]), -(-columns // block[1])),)
    scale_dtype: Any = SCALE_DTYPES[module.need_shape(suffix, tuple(SCALE_DTYPES), *shapes).dtype]
    activation, extra = _activation(module, config, block)
    whole: Any = block
    grid = (
        FloatGrid(scope="tensor", scale_dtype=scale_dtype)
        if block is None
        else FloatGrid(scope="block", block=whole, scale_dtype=scale_dtype)
    )
    return EncodedTensor(
        name=module.weight,
        shape=(rows, columns),
        parts=tuple(module.full(part) for part in ("weight", suffix, *extra)),
        grid=grid,
        activation=activation,
    )


def _activation(
    module: Module, config: Section, block: tuple[int, ...] | None
) -> tuple[ActivationGrid, tuple[str, ...]]:
    """How inputs are quantized, and the stored tensors that say so."""
    from qconv.grids import ActivationGrid

    scheme = config.text("activation_scheme", "dynamic")
    if scheme == "static":
        suffix = _present(module, _INPUT_SCALES)
        module.need_shape(suffix, tuple(SCALE_DTYPES), (), (1,), (1, 1))
        return ActivationGrid(kind="float", scope="tensor", dynamic=False), (suffix,)
    if scheme != "dynamic":
        config.refuse("activation_scheme", "'dynamic' or 'static'")
    if block is None:
        return ActivationGrid(kind="float", scope="token"), ()
    return ActivationGrid(kind="float", scope="group", group_size=block[1]), ()


def _present(module: Module, suffixes: tuple[str, ...]) -> str:
    """The one of ``suffixes`` that is stored; the first where none is."""
    return next((each for each in suffixes if module.find(each) is not None), suffixes[0])
