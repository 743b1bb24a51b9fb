"""A CUDA device that is none: values lie in the CPU's memory, but behave as if they did not.

A tensor on it says it is on ``cuda:0``, has no numpy view, which is what compiled loops take, and
does not mix with tensors on the CPU. So a test without a GPU finds what was left on the wrong side.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

CUDA = torch.device("cuda", 0)

#: These take tensors of two devices.
_MIXING = {torch.Tensor.copy_, torch.Tensor.__deepcopy__, torch.Tensor.__repr__}
#: Conversions that name a device.
_MOVING = {torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu, torch.Tensor.type_as}
_INDEXING = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}
_VIEWS = {torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.data_ptr}


class Pretended(torch.Tensor):
    """A tensor on the device that is none."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _called(func, args, kwargs or {})

    def __deepcopy__(self, memo: Any) -> Any:
        return memo.setdefault(id(self), _there(_here(self).clone()))


class _Mode(TorchFunctionMode):
    """Also sees functions that take no tensor: those that make one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _called(func, args, kwargs or {})


def _called(func: Any, args: Any, kwargs: Any) -> Any:
    if func == torch.Tensor.device.__get__:
        return CUDA if isinstance(args[0], Pretended) else _run(func, args, kwargs)
    if func == torch.Tensor.is_cuda.__get__:
        return isinstance(args[0], Pretended)
    if func == torch.Tensor.is_cpu.__get__ and isinstance(args[0], Pretended):
        return False
    if func in _VIEWS and isinstance(args[0], Pretended):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    if func in _MOVING:
        return _moved(func, args, kwargs)
    asked = [each for each in _flat((args, kwargs)) if _is_device(each)]
    tensors = [each for each in _flat((args, kwargs)) if isinstance(each, torch.Tensor)]
    there = any(isinstance(each, Pretended) for each in tensors)
    if there and func not in _MIXING:
        _refuse_mixed(func, args, tensors)
    if asked:
        there = torch.device(asked[-1]).type == "cuda"
    made = _run(func, _local(args), _local(kwargs))
    return _mapped(made, _there) if there else made


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


def _refuse_mixed(func: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    with torch._C.DisableTorchFunctionSubclass():
        strange = [
            each
            for each in tensors
            if not isinstance(each, Pretended) and each.dim() and each.device.type == "cpu"
        ]
    if func in _INDEXING and isinstance(args[0], Pretended):
        strange = [each for each in strange if not _is_index(each, args[1])]
    if strange:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 "
            f"and cpu, in {getattr(func, '__name__', func)}"
        )


def _is_index(tensor: torch.Tensor, index: Any) -> bool:
    """Indices may be on the CPU."""
    return any(each is tensor for each in _flat(index))


def _moved(func: Any, args: Any, kwargs: Any) -> Any:
    """``to`` and its like, whose result is where it was asked to be."""
    tensor = args[0]
    there = isinstance(tensor, Pretended)
    if func is torch.Tensor.cpu:
        there = False
    elif func is torch.Tensor.cuda:
        return _there(tensor)
    other = [each for each in _flat((args[1:], kwargs)) if isinstance(each, torch.Tensor)]
    devices = [each for each in _flat((args[1:], kwargs)) if _is_device(each)]
    if other:
        there = isinstance(other[0], Pretended)
    if devices:
        there = torch.device(devices[0]).type == "cuda"
    made = _run(func, (tensor, *_local(args[1:])), _local(kwargs))
    if there == isinstance(made, Pretended) and made is tensor:
        return made
    if there != isinstance(tensor, Pretended) and _shares(made, tensor):
        with torch._C.DisableTorchFunctionSubclass():
            made = made.clone()  # another device has memory of its own
    return _there(made) if there else _here(made)


def _shares(one: torch.Tensor, other: torch.Tensor) -> bool:
    with torch._C.DisableTorchFunctionSubclass():
        if one.device.type != "cpu":
            return False
        return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _there(value: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        if type(value) is torch.Tensor and value.device.type == "cpu":
            return value.as_subclass(Pretended)
        if type(value) is torch.nn.Parameter and value.device.type == "cpu":
            made = value.detach().as_subclass(Pretended)
            return torch.nn.Parameter(made, requires_grad=value.requires_grad)
        return value


def _here(value: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(torch.Tensor) if isinstance(value, Pretended) else value


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (
        isinstance(value, str) and value.partition(":")[0] in ("cuda", "cpu", "meta")
    )


def _local(value: Any) -> Any:
    """With the CPU in the place of the device that is none."""
    if _is_device(value):
        return torch.device("cpu") if torch.device(value).type == "cuda" else value
    return _mapped(value, _local) if isinstance(value, (tuple, list, dict)) else value


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, torch.Size) or hasattr(value, "untyped"):
        return value
    if isinstance(value, tuple):
        items = [change(each) for each in value]
        return type(value)(items) if hasattr(value, "n_fields") else _tuple_like(value, items)
    if isinstance(value, list):
        return [change(each) for each in value]
    if isinstance(value, dict):
        return {key: change(each) for key, each in value.items()}
    return change(value)


def _tuple_like(value: Any, items: list[Any]) -> Any:
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from _flat(each)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))
    else:
        yield value


@contextmanager
def pretended_cuda() -> Iterator[None]:
    """Within, models that are asked to run on ``cuda`` run on the device that is none."""
    from qconv.conversion import _ahead
    from qconv.model import _block_model

    def resolved(device: str) -> torch.device:
        return CUDA if device.startswith("cuda") else torch.device("cpu")

    pool = partial(ThreadPoolExecutor, initializer=lambda: _Mode().__enter__())
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(_block_model, "resolve_device", resolved))
        stack.enter_context(mock.patch.object(_ahead, "ThreadPoolExecutor", pool))
        stack.enter_context(_Mode())
        yield
