"""What transformers 5 does to checkpoint tensors on loading, followed without their values.

It fuses experts (``experts.N.w1.weight`` -> ``experts.gate_up_proj``) and splits or joins
projections. Each operation only rearranges boxes, so where every source lands can be computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qconv.errors import Unsupported

Box = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A box of a source inside an arrangement; ``axes`` as in :class:`qconv.model.Piece`."""

    source: str
    source_box: Box
    box: Box
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """A tensor made of sources."""

    shape: tuple[int, ...]
    parts: tuple[Part, ...]


def whole(source: str, shape: tuple[int, ...]) -> Arrangement:
    """A source as it is."""
    box = tuple((0, size) for size in shape)
    part = Part(source=source, source_box=box, box=box, axes=tuple(range(len(shape))))
    return Arrangement(shape=shape, parts=(part,))


def follow(
    operations: Sequence[Any],
    collected: Mapping[str, Sequence[Arrangement]],
    targets: Sequence[str],
) -> dict[str, Arrangement]:
    """The targets that ``operations`` make of the sources collected by pattern.

    Raises:
        Unsupported: an operation that is not a rearrangement of boxes known here.
    """
    state: dict[str, list[Arrangement]] = {key: list(each) for key, each in collected.items()}
    for operation in operations:
        state = _apply(operation, state, targets)
    return {key: each[0] for key, each in state.items()}


def _apply(
    operation: Any, state: dict[str, list[Arrangement]], targets: Sequence[str]
) -> dict[str, list[Arrangement]]:
    kind = type(operation).__name__
    every = [each for values in state.values() for each in values]
    only = targets[0]
    if kind == "MergeModulelist":
        alone = len(state) == 1
        return {
            (only if alone else key): [_stack(each, operation.dim)] for key, each in state.items()
        }
    if kind == "Concatenate" and len(targets) == 1:
        return {only: [_concatenate(every, operation.dim)]}
    if kind == "Chunk" and len(every) == 1 and operation.num_shards_attribute is None:
        pieces = _chunk(every[0], len(targets), operation.dim)
        return {key: [each] for key, each in zip(targets, pieces, strict=True)}
    if kind == "Transpose" and len(every) == 1 and not getattr(operation, "check_dims", False):
        return {only: [_transpose(every[0], operation.dim0, operation.dim1)]}
    raise Unsupported(
        f"tensor {every[0].parts[0].source!r}: transformers converts it by {operation!r}, which "
        "is not followed here; use --method rtn, which runs no model"
    )


def _stack(each: Sequence[Arrangement], dim: int) -> Arrangement:
    parts = tuple(
        replace(
            part,
            box=(*part.box[:dim], (number, number + 1), *part.box[dim:]),
            axes=tuple(axis + (axis >= dim) for axis in part.axes),
        )
        for number, arrangement in enumerate(each)
        for part in arrangement.parts
    )
    shape = each[0].shape
    return Arrangement(shape=(*shape[:dim], len(each), *shape[dim:]), parts=parts)


def _concatenate(each: Sequence[Arrangement], dim: int) -> Arrangement:
    parts: list[Part] = []
    start = 0
    for arrangement in each:
        parts += [_moved(part, dim, start) for part in arrangement.parts]
        start += arrangement.shape[dim]
    shape = each[0].shape
    return Arrangement(shape=(*shape[:dim], start, *shape[dim + 1 :]), parts=tuple(parts))


def _chunk(arrangement: Arrangement, count: int, dim: int) -> list[Arrangement]:
    size = -(-arrangement.shape[dim] // count)
    return [_narrow(arrangement, dim, n * size, (n + 1) * size) for n in range(count)]


def _narrow(arrangement: Arrangement, dim: int, start: int, stop: int) -> Arrangement:
    stop = min(stop, arrangement.shape[dim])
    parts = []
    for part in arrangement.parts:
        low, high = part.box[dim]
        first, last = max(low, start), min(high, stop)
        if first >= last:
            continue
        box = (*part.box[:dim], (first - start, last - start), *part.box[dim + 1 :])
        source_box = list(part.source_box)
        if dim in part.axes:
            along = part.axes.index(dim)
            begin = source_box[along][0] + first - low
            source_box[along] = (begin, begin + last - first)
        parts.append(replace(part, box=box, source_box=tuple(source_box)))
    shape = arrangement.shape
    return Arrangement(shape=(*shape[:dim], stop - start, *shape[dim + 1 :]), parts=tuple(parts))


def _transpose(arrangement: Arrangement, one: int, other: int) -> Arrangement:
    order = list(range(len(arrangement.shape)))
    order[one], order[other] = order[other], order[one]
    parts = tuple(
        replace(
            part,
            box=tuple(part.box[axis] for axis in order),
            axes=tuple(order[axis] for axis in part.axes),
        )
        for part in arrangement.parts
    )
    return Arrangement(shape=tuple(arrangement.shape[axis] for axis in order), parts=parts)


def _moved(part: Part, dim: int, by: int) -> Part:
    start, stop = part.box[dim]
    return replace(part, box=(*part.box[:dim], (start + by, stop + by), *part.box[dim + 1 :]))
