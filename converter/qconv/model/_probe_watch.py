"""Stands between a block and torch: keeps float64, and notes what linear weights are given.

Torch's functions are intercepted, not modules, so it makes no difference whether a linear is an
``nn.Linear``, a product with a weight stored ``(in, out)``, or one with a slice for one expert.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from qconv.model._probe_weights import ParameterFinder
    from qconv.model._topology import LinearPart

#: Products that one factor of may be a weight.
_PRODUCTS = {"addmm", "bmm", "linear", "matmul", "__matmul__", "mm"}
#: Functions that want all floats in one dtype: float32 parameters meet float64 activations there.
_ONE_DTYPE = _PRODUCTS | {
    "baddbmm",
    "conv1d",
    "einsum",
    "layer_norm",
    "rms_norm",
    "scaled_dot_product_attention",
}
#: Functions that make floats of the default dtype when none is given.
_FACTORIES = {"empty", "ones", "zeros"}
_CASTS = {"float", "half", "bfloat16", "double", "to", "type", "type_as"}
_ADDITIONS = {"add", "__add__", "__radd__", "add_", "__iadd__"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One use of a linear weight; ``number``: how often the same part was used before."""

    part: LinearPart
    number: int


@dataclass(slots=True, kw_only=True, eq=False)
class Seen:
    """What a use was given.

    given: (tokens, in) float64, a copy
    identity: equal for uses that were given the very same tensor
    bias: path of the bias added to the product
    row_sets: the block took its output apart: the rows of each piece
    """

    given: torch.Tensor
    identity: tuple[int, ...]
    bias: str | None
    row_sets: set[tuple[int, ...]] = field(default_factory=set)


class Watch:
    """Handles every torch function that one run of a block calls.

    weights: None: the run is real, and nothing is noted
    factors: what the random outputs of a linear are multiplied by
    deal: the expert to begin with when tokens are dealt to experts; None: the router chooses
    """

    def __init__(
        self,
        *,
        weights: ParameterFinder | None,
        factors: Callable[[LinearPart], torch.Tensor | None] | None,
        deal: int | None,
    ) -> None:
        self.uses: dict[Use, Seen] = {}
        self.routed = False
        self._weights, self._factors, self._deal = weights, factors, deal
        self._kept: list[torch.Tensor] = []  # no storage may be used again while its address counts
        self._outputs: dict[int, tuple[torch.Tensor, list[Seen]]] = {}

    def mode(self) -> Any:
        """The mode that sends torch's functions here."""
        from torch.overrides import TorchFunctionMode

        handle = self._handle

        class Watching(TorchFunctionMode):
            def __torch_function__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                return handle(func, args, kwargs or {})

        return Watching()

    def _handle(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        import torch

        name = getattr(func, "__name__", "")
        if name in _CASTS and self._is_weight(args[0]):
            return args[0]  # products cast it, and find it by its storage
        if name in {"float", "half", "bfloat16"}:
            return args[0].double()
        args, kwargs = _widened(args), _widened(kwargs)
        if name in _FACTORIES or (name in {"full", "tensor"} and isinstance(args[-1], float)):
            kwargs = {"dtype": torch.float64, **kwargs}
        replaced = self._replaced(name, args, kwargs)
        if replaced is not None:
            return replaced
        if name in _ONE_DTYPE:
            args, kwargs = in_float64(args), in_float64(kwargs)
        result = func(*args, **kwargs)
        self._look_for_pieces(result)
        return result

    def _replaced(self, name: str, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """What stands for the function's result; None to call it."""
        if name == "topk":
            self.routed = True
            return None if self._deal is None else _dealt(self._deal, *args, **kwargs)
        if self._weights is None:
            return None
        if name in _PRODUCTS:
            return self._product(*_factors_of(name, args, kwargs))
        if name in _ADDITIONS:
            one, other = args[:2]
            biased = self._with_bias(one, other)
            return self._with_bias(other, one) if biased is None else biased
        return None

    def _is_weight(self, tensor: torch.Tensor) -> bool:
        if self._weights is None or tensor.dim() < 2:
            return False
        return self._weights.owner(tensor) is not None

    def _product(
        self, given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Random numbers for a product with a weight, or with a stack of experts' weights.

        weight: (out, in), or (experts, out, in) for given (experts, tokens, in)
        """
        import torch

        if self._weights is None or weight.dim() > given.dim():
            return None
        stacked = weight.dim() == 3
        if stacked and (given.dim() != 3 or len(given) != len(weight)):
            return None
        pairs = list(zip(given, weight, strict=True)) if stacked else [(given, weight)]
        parts = [self._weights.linear(each) for _, each in pairs]
        known = [part for part in parts if part is not None]
        if not known or len(known) < len(parts):
            return None
        path = self._weights.vector(bias)
        made = [self._use(part, x, path) for part, (x, _) in zip(known, pairs, strict=True)]
        output = torch.stack([each for each, _ in made]) if stacked else made[0][0]
        self._kept += [given, output]
        seen = [each for _, each in made]
        self._outputs[output.untyped_storage().data_ptr()] = (output, seen)
        return output

    def _use(
        self, part: LinearPart, given: torch.Tensor, bias: str | None
    ) -> tuple[torch.Tensor, Seen]:
        """Note one use. Returns its output, and what was noted."""
        use = Use(part=part, number=sum(other.part == part for other in self.uses))
        name = f"{part.parameter} {part.expert} {part.rows} {use.number}"
        height = part.rows[1] - part.rows[0]
        output = random_normal(name, (*given.shape[:-1], height), given.device)
        factors = self._factors(part) if self._factors else None
        storage = given.untyped_storage().data_ptr()
        self.uses[use] = Seen(
            given=given.reshape(-1, given.shape[-1]).to(output, copy=True),
            identity=(storage, int(given.storage_offset()), given.numel()),
            bias=bias,
        )
        return output if factors is None else output * factors, self.uses[use]

    def _with_bias(self, output: Any, bias: Any) -> torch.Tensor | None:
        """The output of a linear for the sum of it and a parameter, which is noted as its bias."""
        import torch

        if not isinstance(output, torch.Tensor) or not isinstance(bias, torch.Tensor):
            return None
        found = self._outputs.get(output.untyped_storage().data_ptr())
        path = self._weights.vector(bias) if found and self._weights else None
        if found is None or path is None or found[0].shape[-1] != bias.shape[0]:
            return None
        if output.numel() != found[0].numel() or found[1][0].bias not in {None, path}:
            return None
        for seen in found[1]:
            seen.bias = path
        return output

    def _look_for_pieces(self, result: Any) -> None:
        """Note which rows of a linear's output a piece of it holds."""
        import torch

        if isinstance(result, (tuple, list)):
            for each in result:
                self._look_for_pieces(each)
        if not isinstance(result, torch.Tensor) or not self._outputs:
            return
        found = self._outputs.get(result.untyped_storage().data_ptr())
        if found is None or result.numel() >= found[0].numel():
            return
        output, seen = found
        rows = torch.arange(output.numel(), device=output.device) % output.shape[-1]
        piece = rows.as_strided(result.shape, result.stride(), result.storage_offset())
        held = set(piece.flatten().tolist())
        if 0 < len(held) < output.shape[-1]:
            for each in seen:
                each.row_sets.add(tuple(sorted(held)))


def _factors_of(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Input, weight as (out, in), bias."""
    if name == "linear":
        named = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs)
        return named["input"], named["weight"], named.get("bias")
    if name == "addmm":
        bias, given, weight = args[:3]
        return given, weight.mT, bias
    given, weight = args[:2]
    return given, weight.mT if weight.dim() > 1 else weight, None


def _dealt(
    first: int, scores: torch.Tensor, k: int, dim: int = -1, **_order: Any
) -> torch.return_types.topk | None:
    """Choices dealt to the tokens in turn, with their true scores, in place of the best."""
    import torch

    if dim not in {-1, scores.dim() - 1} or scores.dim() < 2:
        return None
    count = scores.numel() // scores.shape[-1] * k
    chosen = (torch.arange(count, device=scores.device) + first) % scores.shape[-1]
    chosen = chosen.reshape(*scores.shape[:-1], k)
    return torch.return_types.topk((scores.gather(-1, chosen), chosen))


def _widened(value: Any) -> Any:
    """Dtypes among a function's arguments, no narrower than float64."""
    import torch

    if isinstance(value, torch.dtype) and value.is_floating_point:
        return torch.float64
    if isinstance(value, dict):
        return {key: _widened(each) for key, each in value.items()}
    if type(value) is tuple:
        return tuple(_widened(each) for each in value)
    return value


def in_float64(value: Any) -> Any:
    """The same with all floating tensors in float64; containers are new, so a run may fill them."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: in_float64(each) for key, each in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(in_float64(each) for each in value)
    return value


def random_normal(name: str, shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Standard normal float64 numbers that depend on the name only, on every device."""
    import torch

    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)
