"""One decoded tensor beside the values it was made from: how far off, and where it is wrong.

A tensor with one wrong scale among a million is as good as ever on the whole, so errors are kept
block by block: as many columns of a row as share one fit on the grid. A block has a wrong scale
when it is the source's times a factor that is far from one; a wrong zero-point when all its errors
point one way. Its error alone tells less: GPTQ leaves blocks that hold little further from the
source than zeros would be, and rightly so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Rows = Callable[[int, int], torch.Tensor]

#: Values compared at a time: a few such slabs stay in a core's cache.
_SLAB = 1 << 18

#: A block that lies along the source (cosine; 2 bits leave 0.9) has the factor of its scale. GPTQ
#: was seen to halve one, with three bits and little text; turning its sign is nobody's choice.
_ALONG, _FACTORS = 0.8, (0.25, 3.0)

#: Blocks whose error is less than this share of an average block's size are left alone: methods may
#: give up blocks that hold little.
_MATTERS = 0.25

#: A block this many times further off than zeros would be holds something else.
_ELSE = 4.0

#: A type that loses as much as this of a tensor holds nothing of it.
_HOLDS = 0.99

#: Of a block that holds next to nothing beside others, no error is told; of one that holds little,
#: zeros are no fault: whoever minds the inputs may give it up.
_TINY, _LITTLE = 1e-3, 0.1

#: A block whose values differ by less than this share of its error says nothing of zero-points.
_FLAT = 0.3

#: A tensor this far off, relative to its size, is no better than zeros would be.
USELESS = 0.99

#: Errors that all have the same sign make this share of their root mean square; so far beyond what
#: chance does in blocks of 16 and more. An error of a whole step is 3.5 times that of rounding to
#: the nearest, whose root mean square is 1/sqrt(12) of a step.
_ONE_WAY, _SHIFT, _SHIFT_COLUMNS = 0.92, 2.5, 16

#: The same over a whole tensor, of this many values and more, where chance does nothing.
_ALL_ONE_WAY, _MANY = 0.5, 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What comparing a tensor gave.

    relative_error, cosine: as in :class:`qconv.validation.TensorResult`; NaN where not finite
    faults: in words, without the tensor's name
    warnings: what is odd, but may be a method's choice
    """

    relative_error: float
    cosine: float
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Sums over blocks, each (rows, blocks of a row) float32."""

    error: torch.Tensor
    source: torch.Tensor
    found: torch.Tensor
    bias: torch.Tensor
    total: torch.Tensor
    columns: int

    @property
    def spread(self) -> torch.Tensor:
        """How much the source's values differ within a block: sum of squares about their mean."""
        return (self.source - self.total.square() / self.columns).clamp_min(0)


def compare(
    found: torch.Tensor,
    expected: Rows,
    columns: int,
    *,
    rounding: float | None = None,
) -> Comparison:
    """Compare a decoded tensor with its source, in slabs of rows.

    Peak memory beside ``found``: five sums per block, and some slabs.

    found: (rows, columns of the tensor) float32
    expected: rows ``start:stop`` of the source
    columns: of a row that share one fit
    rounding: relative error of rounding to nearest; None: values are stored as floats
    """
    import torch

    if not found.numel():
        return Comparison(relative_error=0.0, cosine=1.0)
    parts, dot = [], 0.0
    for start, stop in slabs(found.shape[0], found.shape[1]):
        mine, theirs = found[start:stop], expected(start, stop).to(torch.float32)
        parts.append(_summed(mine, theirs, columns))
        dot += float((mine * theirs).sum(dtype=torch.float64))
    blocks = _joined(parts)
    error, source, size = (
        float(each.sum(dtype=torch.float64)) for each in (blocks.error, blocks.source, blocks.found)
    )
    if not math.isfinite(error):
        return Comparison(relative_error=math.nan, cosine=math.nan, faults=(_not_finite(found),))
    relative = _ratio(error, source)
    cosine = dot / math.sqrt(source * size) if source and size else float(source == size)
    return Comparison(
        relative_error=relative,
        cosine=cosine,
        faults=tuple(_judged(blocks, rounding, found.numel())),
        warnings=tuple(_odd(blocks, rounding, relative)),
    )


def slabs(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Row ranges of about as many values as are compared at a time."""
    step = max(1, _SLAB // max(1, columns))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def _ratio(error: float, source: float) -> float:
    """Of norms, from their squares; infinite where there should be nothing, and is something."""
    if source:
        return math.sqrt(error / source)
    return math.inf if error else 0.0


def _summed(found: torch.Tensor, expected: torch.Tensor, columns: int) -> _Blocks:
    """The sums of a slab; columns that fill no whole block make one more."""
    import torch

    error = found - expected
    whole = found.shape[1] // columns * columns
    ones = torch.ones(columns)  # a product is twice as fast as a sum over a short dimension
    sums = []
    for value in (error * error, expected * expected, found * found, error, expected):
        by_block = (value[:, :whole].reshape(-1, columns) @ ones).view(len(value), -1)
        if whole < value.shape[1]:
            by_block = torch.cat([by_block, value[:, whole:].sum(-1, keepdim=True)], dim=1)
        sums.append(by_block)
    return _blocks(sums, columns)


def _joined(parts: list[_Blocks]) -> _Blocks:
    import torch

    every = [(part.error, part.source, part.found, part.bias, part.total) for part in parts]
    return _blocks([torch.cat(each) for each in zip(*every, strict=True)], parts[0].columns)


def _blocks(sums: list[torch.Tensor], columns: int) -> _Blocks:
    error, source, found, bias, total = sums
    return _Blocks(error, source, found, bias, total, columns)


def _not_finite(found: torch.Tensor) -> str:
    import torch

    bad = torch.nonzero(~torch.isfinite(found))
    if not len(bad):
        return "the values are so large that their squares overflow"
    row, column = (int(at) for at in bad[0])
    more = f", and {len(bad) - 1} more values are" if len(bad) > 1 else ""
    return f"row {row}, column {column} is {float(found[row, column])}{more} not finite"


def _judged(blocks: _Blocks, rounding: float | None, numel: int) -> Iterator[str]:
    """What is wrong with single blocks, worst kinds first."""
    import torch

    mean = blocks.source.mean(dtype=torch.float64)
    counts = blocks.source > _TINY * mean
    error = torch.sqrt(blocks.error / blocks.source.clamp_min(1e-30))
    empty = blocks.found == 0
    matters = blocks.error > _MATTERS * mean
    scaled = matters & ~empty & _scaled(blocks)
    other = matters & (error > _ELSE)
    if rounding is None or rounding < _HOLDS:  # beyond, the type has no value but zero for it
        given_up = empty & (blocks.source > _LITTLE * mean)
        yield from _told(blocks, given_up, "decode to zeros only (a scale of zero?)")
    yield from _told(blocks, scaled, "are the source's times a factor (a wrong scale?)")
    yield from _told(blocks, other & ~scaled, "hold something else than the source")
    if rounding is None:
        return
    rms = math.sqrt(float(blocks.error.sum(dtype=torch.float64)) / numel)
    size = math.sqrt(float(mean) / blocks.columns)
    far = rms > _SHIFT * rounding * size  # as far as rounding goes, a constant goes one way, too
    bias = abs(float(blocks.bias.sum(dtype=torch.float64))) / numel
    if numel >= _MANY and far and bias > _ALL_ONE_WAY * rms:
        yield "all its errors point one way (all zero-points off?)"
    elif blocks.columns >= _SHIFT_COLUMNS:
        one_way = blocks.bias.abs() > _ONE_WAY * torch.sqrt(blocks.columns * blocks.error)
        shifted = counts & one_way & (error > _SHIFT * rounding) & ~scaled & ~empty & ~_flat(blocks)
        yield from _told(blocks, shifted, "are shifted as a whole (a zero-point off?)")


def _odd(blocks: _Blocks, rounding: float | None, relative: float) -> Iterator[str]:
    """What a method may rightly do, and should be looked at."""
    if rounding is None:
        return
    if relative > USELESS:
        yield no_better_than_zeros(relative)
        return
    mean = blocks.source.mean(dtype=blocks.source.dtype)
    little = (blocks.source > _TINY * mean) & (blocks.source <= _LITTLE * mean)
    yield from _told(blocks, little & (blocks.found == 0), "hold little, and decode to zeros only")


def no_better_than_zeros(relative_error: float) -> str:
    """Of a tensor that is lost, whether a conversion or a validation finds it."""
    return f"what rounding left of it is no better than zeros (relative error {relative_error:.3g})"


def _flat(blocks: _Blocks) -> torch.Tensor:
    """Blocks of nearly equal values: their errors point one way, whatever the zero-point."""
    return blocks.spread < _FLAT**2 * blocks.error


def _scaled(blocks: _Blocks) -> torch.Tensor:
    """Blocks that lie along the source's, or against it, but with another length."""
    import torch

    dot = (blocks.found + blocks.source - blocks.error) / 2
    along = dot.abs() > _ALONG * torch.sqrt(blocks.found * blocks.source)
    factor = dot / blocks.source.clamp_min(1e-30)
    return along & ((factor < _FACTORS[0]) | (factor > _FACTORS[1]))


def _told(blocks: _Blocks, wrong: torch.Tensor, what: str) -> Iterator[str]:
    import torch

    found = torch.nonzero(wrong)
    if not len(found):
        return
    row, block = (int(at) for at in found[0])
    first = block * blocks.columns
    where = f"row {row}, columns {first} to {first + blocks.columns - 1}"
    yield f"{len(found)} of {wrong.numel()} blocks {what}: first {where}"
