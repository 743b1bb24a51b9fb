"""Two artifacts on one grid: whether their formats hold the same values.

What one method made for two formats of the same grid must decode alike. Nothing in an artifact
tells its method, but its values do: another method rounds most tensors otherwise. So two artifacts
of which nearly all tensors are equal must be equal in all of them. Formats that store the scales of
one grid in other dtypes round a few values otherwise, which is told by how far both are from the
source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.validation._comparison import slabs
from qconv.validation._decoded import DecodedArtifact
from qconv.validation._gates import in_block

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qconv._sources import OpenedSource
    from qconv.validation._bytes import Progress
    from qconv.validation._matching import Match

#: Two roundings of a weight are one method's up to this distance, as a share of what the first
#: lost: 0.22 was seen between scales in float16 and bfloat16 (4 bits, groups of 32), 0.9 and more
#: between searches for the scales.
ALIKE = 0.5

#: Share of the tensors that may be otherwise in artifacts that are taken for the same.
_OTHERS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far two artifacts are apart.

    same: nearly all tensors are alike, so that all should be
    equal: nearly all are equal bit for bit
    worst: of a tensor, ``||one - other|| / ||one - source||``
    tensor: which one that is, by its name in the source
    differing: tensors that are not as the others; compared: how many there are
    """

    same: bool
    equal: bool
    worst: float
    tensor: str
    differing: int
    compared: int


def grids_of(match: Match) -> dict[str, str]:
    """By the name of a matrix in the source: how the artifact stores it, and rounds its input."""
    found: dict[str, str] = {}
    there = match.reader.tensors
    for _, plan in match.jobs():
        if plan.name in there and len(plan.shape) > 1:
            grid, inputs = match.grid(plan), match.activation(plan)
            stored = (there[plan.name].dtype if grid is None else grid.name).lower()
            told = stored if inputs is None else f"{stored}, inputs {inputs}"
            found |= dict.fromkeys(plan.sources, told)
    return found


def differing_grid(one: Mapping[str, str], other: Mapping[str, str]) -> str | None:
    """The first matrix that two artifacts store otherwise; None where they share their grids."""
    return next((name for name in {**one, **other} if one.get(name) != other.get(name)), None)


def agreement(
    one: Match, other: Match, source: OpenedSource, *, progress: Progress
) -> Agreement | None:
    """Compare two artifacts, as decoded; None where the weights of their blocks lie otherwise.

    It stops when too many tensors are otherwise for the same method. Peak memory: four decoded
    tensors in float32.

    progress: called with a tensor's name, weights compared and weights to compare
    """
    grids, others = grids_of(one), grids_of(other)
    names = [name for name in grids if grids[name] == others.get(name)]
    inside = {name for name in {**grids, **others} if in_block(name)}
    if not names or not inside <= set(names):
        return None
    pair = DecodedArtifact(one, source), DecodedArtifact(other, source)
    found: dict[str, float] = {}
    infos = source.model.tensors
    done, total = 0, sum(infos[name].numel for name in names)
    for name in names:
        found[name] = _distance(pair, source, name)
        done += infos[name].numel
        progress(name, done, total)
        if sum(each > ALIKE for each in found.values()) > _OTHERS * len(names):
            break
    return _told(found, len(names))


def _told(found: Mapping[str, float], compared: int) -> Agreement:
    allowed = _OTHERS * compared
    equal = sum(each > 0 for each in found.values()) <= allowed
    same = sum(each > ALIKE for each in found.values()) <= allowed
    tensor = max(found, key=lambda name: found[name])
    return Agreement(
        same=same,
        equal=equal,
        worst=found[tensor],
        tensor=tensor,
        differing=sum(each > (0 if equal else ALIKE) for each in found.values()),
        compared=compared,
    )


def _distance(
    pair: tuple[DecodedArtifact, DecodedArtifact], source: OpenedSource, name: str
) -> float:
    """``||one - other|| / ||one - source||`` of a tensor.

    Infinite where only one is exact, or values are not finite: that is never the same.
    """
    info = source.model.tensors[name]
    columns = info.shape[-1]
    apart = lost = 0.0
    for start, stop in slabs(info.numel // columns, columns):
        one, other = (each.read_rows(name, start, stop).double() for each in pair)
        apart += float(((one - other) ** 2).nan_to_num(math.inf).sum())
        lost += float(((one - source.read_rows(name, start, stop).double()) ** 2).sum())
    if not apart:
        return 0.0
    told = lost > 0 and math.isfinite(apart) and math.isfinite(lost)
    return math.sqrt(apart / lost) if told else math.inf
