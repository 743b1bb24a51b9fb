"""The border to sources: what a plugin says of a quantized checkpoint is checked before use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from qconv.errors import BrokenPlugin, QconvError, UnsupportedGrid
from qconv.plugin import EncodedTensor
from qconv.tensors import QuantTensor

if TYPE_CHECKING:
    import torch

    from qconv.plugin import ModelInfo, Source

_Result = TypeVar("_Result")


def encoded_tensors(
    source: Source, family: str, model: ModelInfo, read: Callable[[str], torch.Tensor]
) -> dict[str, EncodedTensor]:
    """The quantized tensors of ``model`` by name, as ``source`` tells them.

    family: what the source is called, for messages
    read: a stored tensor by name

    Raises:
        UnreadableInput, Unsupported: what the source has to say of the checkpoint.
        UnsupportedGrid: a tensor's shape does not suit its grid.
        BrokenPlugin: in words addressed to the plugin's author.
    """
    what = f"source {family!r}"
    offered = _called(f"{what}: tensors()", lambda: tuple(source.tensors(model, read)))
    found: dict[str, EncodedTensor] = {}
    claimed: dict[str, str] = {}
    for tensor in offered:
        _check_tensor(what, tensor, model)
        if tensor.name in found:
            raise BrokenPlugin(f"plugin author: {what} names tensor {tensor.name!r} twice")
        found[tensor.name] = tensor
        _claim(what, tensor, claimed)
    return found


def decode(
    source: Source, family: str, tensor: EncodedTensor, parts: Mapping[str, torch.Tensor]
) -> QuantTensor:
    """The tensor as ``source`` decodes it, checked to be what it announced.

    Raises:
        UnreadableInput: what the source has to say of the values.
        BrokenPlugin: in words addressed to the plugin's author.
    """
    what = f"source {family!r}: decode() of tensor {tensor.name!r}"
    value: object = _called(what, lambda: source.decode(tensor, parts))
    if not isinstance(value, QuantTensor):
        raise BrokenPlugin(f"plugin author: {what} gave a {type(value).__name__}, no QuantTensor")
    if value.grid != tensor.grid or value.shape != tensor.shape:
        raise BrokenPlugin(
            f"plugin author: {what} gave shape {value.shape} on grid {value.grid.name}, but "
            f"tensors() said {tensor.shape} on {tensor.grid.name}"
        )
    return value


def _called(what: str, function: Callable[[], _Result]) -> _Result:
    """Call a plugin; what it fails with, and does not mean for the user, is its fault."""
    try:
        return function()
    except (QconvError, MemoryError):
        raise
    except Exception as error:
        raise BrokenPlugin(
            f"plugin author: {what} failed: {type(error).__name__}: {error}"
        ) from error


def _check_tensor(what: str, tensor: EncodedTensor, model: ModelInfo) -> None:
    if not isinstance(tensor, EncodedTensor):
        raise BrokenPlugin(
            f"plugin author: {what} gave a {type(tensor).__name__}, no EncodedTensor"
        )
    shape = tensor.shape
    if len(shape) != 2 or any(type(size) is not int or size < 1 for size in shape):
        raise BrokenPlugin(
            f"plugin author: {what} tensor {tensor.name!r} has shape {shape}, which must be "
            "(out, in), both positive"
        )
    try:
        tensor.grid.check_shape(shape, tensor.name)
    except UnsupportedGrid as error:
        raise UnsupportedGrid(f"{what}: {error}") from None
    _check_parts(what, tensor.name, tensor.parts, model)


def _check_parts(what: str, name: str, parts: Iterable[str], model: ModelInfo) -> None:
    parts = tuple(parts)
    if not parts:
        raise BrokenPlugin(f"plugin author: {what} tensor {name!r} has no parts to decode it from")
    for part in parts:
        if part not in model.tensors:
            raise BrokenPlugin(
                f"plugin author: {what} tensor {name!r} names part {part!r}, which the checkpoint "
                "does not have"
            )
    if name in model.tensors and name not in parts:
        raise BrokenPlugin(
            f"plugin author: {what} decodes a tensor {name!r}, but the checkpoint stores one of "
            "that name, which is not among its parts"
        )


def _claim(what: str, tensor: EncodedTensor, claimed: dict[str, str]) -> None:
    for part in tensor.parts:
        if part in claimed:
            raise BrokenPlugin(
                f"plugin author: {what} tensors {claimed[part]!r} and {tensor.name!r} both name "
                f"part {part!r}"
            )
        claimed[part] = tensor.name
