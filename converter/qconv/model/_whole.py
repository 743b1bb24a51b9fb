"""The whole model at once, for those who must run it freely: sampling, reference logits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconv.errors import NotEnoughResources

if TYPE_CHECKING:
    import torch
    from torch import nn

    from qconv.model._weights import Weights


#: Gives the module that stands in for a linear whose weight is this source tensor, whole; its bias
#: is the second argument. None leaves the linear as it is.
Substitute = Callable[[str, "torch.Tensor | None"], "nn.Module | None"]


def materialise_whole(
    skeleton: Any,
    weights: Weights,
    device: torch.device,
    max_ram: int | None,
    substitute: Substitute | None = None,
) -> Any:
    """A copy of the skeleton with all its parameters, tied ones once.

    Raises:
        NotEnoughResources: it does not fit into ``max_ram`` or the memory that is free.
    """
    model = copy.deepcopy(skeleton)
    if substitute is not None:
        _substitute_linears(model, weights, substitute)
    nbytes = sum(p.numel() * p.dtype.itemsize for p in model.parameters() if p.is_meta)
    _refuse_if_too_large(nbytes, device, max_ram)
    filled: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        _fill(module, prefix, weights, filled)
    for config in (model.config, model.config.get_text_config()):
        config.use_cache = True
    return model


def _substitute_linears(model: Any, weights: Weights, substitute: Substitute) -> None:
    from torch import nn

    linears = [(path, m) for path, m in model.named_modules() if type(m) is nn.Linear]
    for path, linear in linears:
        pieces = weights.pieces.get(f"{path}.weight", ())
        if len(pieces) != 1 or not pieces[0].is_whole(
            linear.weight, weights.shape(pieces[0].source)
        ):
            continue
        bias = None if linear.bias is None else weights.parameter(f"{path}.bias", linear.bias)
        instead = substitute(pieces[0].source, bias)
        if instead is not None:
            model.set_submodule(path, instead)


def _fill(
    module: nn.Module, prefix: str, weights: Weights, filled: dict[int, nn.Parameter]
) -> None:
    from torch import nn

    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        if id(parameter) not in filled:
            value = weights.parameter(prefix + name, parameter)
            filled[id(parameter)] = nn.Parameter(value, requires_grad=False)
        module._parameters[name] = filled[id(parameter)]
    for name, buffer in module._buffers.items():
        if buffer is not None and prefix + name in weights.pieces:
            module._buffers[name] = weights.parameter(prefix + name, buffer)


def _refuse_if_too_large(nbytes: int, device: torch.device, max_ram: int | None) -> None:
    free = _free(device)
    if max_ram is not None and device.type == "cpu" and nbytes > max_ram:
        raise NotEnoughResources(
            f"the whole model takes {nbytes} bytes, but --max-ram is {max_ram}; raise it, use "
            "--dtype bfloat16, or calibrate on a text instead of the model's own"
        )
    if free is not None and nbytes > free:
        raise NotEnoughResources(
            f"the whole model takes {nbytes} bytes, but {free} are free on {device}; use "
            "--dtype bfloat16, or calibrate on a text instead of the model's own"
        )


def _free(device: torch.device) -> int | None:
    """Bytes of memory that can be had; None where the system does not say."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None
