"""Which checkpoint tensors fill which parameters of the skeleton: every one is accounted for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qconv.errors import UnreadableInput, Unsupported
from qconv.model._conversions import Arrangement, follow, whole
from qconv.model._pieces import Piece

if TYPE_CHECKING:
    import torch

    from qconv.model._skeleton import Skeleton
    from qconv.plugin import TensorInfo

#: Buffers that old checkpoints carry and that are computed anew; no parameter has these names.
_RECOMPUTED = (r"rotary_emb\.inv_freq$", r"attn\.masked_bias$", r"attn\.bias$")

#: Stored types whose values are weights as they are; block types of GGUF come decoded.
_NOT_FLOAT = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F8_E8M0"})

#: Converts collected names by pattern into arrangements of full parameter names.
Renamer = Callable[[str], tuple[str, Any, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the checkpoint's tensors go.

    pieces: what fills a parameter or persistent buffer, by its name in the model
    unplaced: source tensors that the model does not load
    """

    pieces: Mapping[str, tuple[Piece, ...]]
    unplaced: tuple[str, ...]


def place_tensors(skeleton: Skeleton, tensors: Mapping[str, TensorInfo]) -> Placement:
    """Find the place of every source tensor.

    Raises:
        Unsupported: a block's tensor has no place, or is converted in a way not known here.
        UnreadableInput: a block's parameter is filled by no tensor, or by one of another shape.
    """
    state = skeleton.model.state_dict(keep_vars=True)
    pieces, unplaced = _collect(skeleton.model, state, tensors)
    _share_ties(state, pieces)
    _refuse_homeless(skeleton, unplaced)
    for name in state:
        if _in_block(skeleton.path, name):
            _check_filled(name, state[name], pieces.get(name, ()))
    for name, each in pieces.items():
        _check_shapes(name, state[name], each, tensors)
    return Placement(
        pieces={name: tuple(each) for name, each in pieces.items()}, unplaced=tuple(unplaced)
    )


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts ``experts.2`` before ``experts.10``, as transformers does before it fuses them."""
    parts = name.split(".")
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]


def _collect(
    model: Any, state: Mapping[str, torch.Tensor], tensors: Mapping[str, TensorInfo]
) -> tuple[dict[str, list[Piece]], list[str]]:
    rename = _renamer(model, dict(state))
    pieces: dict[str, list[Piece]] = defaultdict(list)
    unplaced: list[str] = []
    converted: dict[str, tuple[Any, dict[str, list[Arrangement]]]] = {}
    for source in sorted(tensors, key=natural_key):
        target, converter, pattern = rename(source)
        arrangement = whole(source, tensors[source].shape)
        if target not in state:
            unplaced.append(source)
        elif converter is None:
            pieces[target] += _pieces(target, arrangement)
        else:
            _, collected = converted.setdefault(
                target, (converter, {each: [] for each in converter.source_patterns})
            )
            collected[pattern].append(arrangement)
    for target, (converter, collected) in converted.items():
        for name, arrangement in _converted(target, converter, collected).items():
            pieces[name] += _pieces(name, arrangement)
    return pieces, unplaced


def _converted(
    target: str, converter: Any, collected: dict[str, list[Arrangement]]
) -> dict[str, Arrangement]:
    shapes = {each.shape for values in collected.values() for each in values}
    present = {key: values for key, values in collected.items() if values}
    counts = {len(values) for values in present.values()}
    if len(shapes) != 1 or len(counts) != 1:
        sources = [each.parts[0].source for values in present.values() for each in values]
        raise UnreadableInput(
            f"tensors {sources[0]!r} to {sources[-1]!r} are to be joined to {target!r}, but their "
            f"shapes {sorted(shapes)} or numbers {sorted(counts)} differ; get the checkpoint anew"
        )
    made = follow(converter.operations, present, converter.target_patterns)
    first = converter.target_patterns[0]
    return {target.replace(first, key, 1): each for key, each in made.items()}


def _pieces(target: str, arrangement: Arrangement) -> list[Piece]:
    return [
        Piece(
            source=part.source,
            source_box=part.source_box,
            parameter=target,
            box=part.box,
            axes=part.axes,
        )
        for part in arrangement.parts
    ]


def _renamer(model: Any, state: dict[str, Any]) -> Renamer:
    """Names as transformers renames them: since version 5 by tables, always by base prefix."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming
        from transformers.core_model_loading import rename_source_key as rename
    except ImportError:  # transformers 4: modules are named as in the checkpoint
        return lambda source: (_with_prefix(model, _legacy(source), state), None, "")
    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    by_pattern = {p: each for each in converters for p in each.source_patterns}

    def place(source: str) -> tuple[str, Any, str]:
        target, pattern = rename(source, renamings, converters, model.base_model_prefix, state)
        if target not in state:
            plain = _with_prefix(model, source, state)
            if plain in state:
                return plain, None, ""
        return target, by_pattern[pattern] if pattern else None, pattern or ""

    return place


def _legacy(source: str) -> str:
    """TensorFlow's names of LayerNorm parameters, which old BERT checkpoints carry."""
    return re.sub(r"\bgamma$", "weight", re.sub(r"\bbeta$", "bias", source))


def _with_prefix(model: Any, source: str, state: Mapping[str, Any]) -> str:
    prefix = f"{model.base_model_prefix}."
    for name in (source, prefix + source, source.removeprefix(prefix)):
        if name in state:
            return name
    return source


def _share_ties(state: Mapping[str, torch.Tensor], pieces: dict[str, list[Piece]]) -> None:
    """A parameter that is another one too (a tied head) is filled by the other's tensor."""
    filled = {id(state[name]): name for name in pieces if name in state}
    for name, parameter in state.items():
        if name not in pieces and id(parameter) in filled:
            pieces[name] = pieces[filled[id(parameter)]]


def _in_block(path: str, name: str) -> bool:
    return name.startswith(path + ".")


def _refuse_homeless(skeleton: Skeleton, unplaced: Iterable[str]) -> None:
    """A tensor named like a block's own must have a place in it."""
    model = skeleton.model
    known = list(_RECOMPUTED) + list(model._keys_to_ignore_on_load_unexpected or ())
    prefixes = (skeleton.path, skeleton.path.removeprefix(f"{model.base_model_prefix}."))
    names = tuple(f"{prefix}.{n}." for prefix in prefixes for n in range(len(skeleton.blocks)))
    for source in unplaced:
        if source.startswith(names) and not any(re.search(each, source) for each in known):
            block = skeleton.blocks[0]
            raise Unsupported(
                f"tensor {source!r} has no place in the {type(block).__name__} that transformers "
                "builds from config.json; the checkpoint and its config must belong together "
                "(an adapter or an already quantized checkpoint is not a float model)"
            )


def _check_filled(name: str, parameter: torch.Tensor, pieces: Iterable[Piece]) -> None:
    import torch

    filled = sum(piece.numel for piece in pieces)
    if filled == parameter.numel() or not isinstance(parameter, torch.nn.Parameter):
        return  # a persistent buffer that no tensor fills keeps its computed values
    raise UnreadableInput(
        f"parameter {name!r} of shape {tuple(parameter.shape)} is filled by no tensor of the "
        f"checkpoint ({filled} of {parameter.numel()} values); the checkpoint is incomplete or "
        "config.json is another model's"
    )


def _check_shapes(
    name: str,
    parameter: torch.Tensor,
    pieces: Iterable[Piece],
    tensors: Mapping[str, TensorInfo],
) -> None:
    for piece in pieces:
        info = tensors[piece.source]
        if info.dtype in _NOT_FLOAT:
            raise Unsupported(
                f"tensor {piece.source!r} is stored as {info.dtype}, but {name!r} needs float "
                "values; calibrate the float model, not a quantized one"
            )
        extent = tuple(stop for _, stop in piece.box)
        if len(extent) != parameter.dim() or any(
            stop > size for stop, size in zip(extent, parameter.shape, strict=True)
        ):
            raise _misfit(piece.source, info.shape, name, parameter)
    if sum(piece.numel for piece in pieces) != parameter.numel():
        raise _misfit(
            next(iter(pieces)).source, tensors[next(iter(pieces)).source].shape, name, parameter
        )


def _misfit(
    source: str, shape: tuple[int, ...], name: str, parameter: torch.Tensor
) -> UnreadableInput:
    return UnreadableInput(
        f"tensor {source!r} of shape {shape} does not fill parameter {name!r} of shape "
        f"{tuple(parameter.shape)}; config.json is another model's, or the tensor is damaged"
    )
