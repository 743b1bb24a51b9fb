"""The pictures across artifacts: size against divergence, error by block, memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._axis import Axis, linear_axis, log_axis
from ._figures import figure, size, tick_size
from ._frame import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    clipped,
    drawing,
    frame,
    line,
    polyline,
    series,
    text,
)
from ._markup import Markup, element

if TYPE_CHECKING:
    from qconv.validation import ArtifactResult, VramResult

#: Width of a letter and height of a line of a label, in pixels of the drawing; a bit generous.
_LETTER, _LINE = 6.0, 12.0
_RADIUS = 4.5
_BAR, _GAP = 14, 38


def size_against_divergence(
    artifacts: Sequence[ArtifactResult], names: Sequence[str]
) -> Markup | None:
    """Each artifact as a point; a line joins those that no smaller one beats.

    Artifacts whose divergence is unmeasured or not finite are no points. None: there are no two
    to be compared.
    """
    known = [
        (place, artifact.bytes, artifact.logits.kl.mean)
        for place, artifact in enumerate(artifacts)
        if artifact.logits is not None and math.isfinite(artifact.logits.kl.mean)
    ]
    if len(known) < 2:
        return None
    across = linear_axis((nbytes for _, nbytes, _ in known), LEFT, RIGHT)
    up = log_axis((kl for _, _, kl in known), BOTTOM, TOP)
    points = [
        _Point(x=across.at(nbytes), y=up.at(kl), name=clipped(names[place]), kind=series(place))
        for place, nbytes, kl in known
    ]
    best = [(across.at(nbytes), up.at(kl)) for nbytes, kl in _unbeaten(known)]
    return drawing(
        frame(
            across,
            up,
            across_says=tick_size,
            up_says=_plain,
            across_title="size of the artifact",
            up_title="mean KL divergence, nats",
        ),
        polyline(best, "front") if len(best) > 1 else None,
        (_dot(point, size(known[at][1]), figure(known[at][2])) for at, point in enumerate(points)),
        _named(points),
        title="Mean KL divergence from the source against the size of the artifact",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    """A point in pixels, its name, and the class of its colour."""

    x: float
    y: float
    name: str
    kind: str


def _unbeaten(known: Iterable[tuple[int, int, float]]) -> list[tuple[int, float]]:
    """Size and divergence of those that diverge less than everything smaller."""
    best: list[tuple[int, float]] = []
    for nbytes, kl in sorted((nbytes, kl) for _, nbytes, kl in known):
        if not best or kl < best[-1][1]:
            best.append((nbytes, kl))
    return best


def _dot(point: _Point, *said: str) -> Markup:
    return element(
        "circle",
        element("title", f"{point.name}: {', '.join(said)}"),
        cx=point.x,
        cy=point.y,
        r=_RADIUS,
        class_=f"dot {point.kind}",
    )


def _named(points: Sequence[_Point]) -> Iterable[Markup]:
    """Names beside the points, where they cover neither points nor one another if that can be."""
    taken = [_Box.around(point) for point in points]
    for point in points:
        room = [box for box in _beside(point) if box.is_inside()]
        chosen = min(room or [next(iter(_beside(point)))], key=lambda box: box.overlap(taken))
        taken.append(chosen)
        yield text(chosen.left, chosen.top + 9, point.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def around(cls, point: _Point) -> _Box:
        x, y, r = point.x, point.y, _RADIUS + 1
        return cls(left=x - r, top=y - r, right=x + r, bottom=y + r)

    def is_inside(self) -> bool:
        return self.left >= LEFT and self.right <= WIDTH and self.top >= 0 and self.bottom <= BOTTOM

    def overlap(self, others: Iterable[_Box]) -> float:
        """Area in common with others."""
        return sum(
            max(0.0, min(self.right, other.right) - max(self.left, other.left))
            * max(0.0, min(self.bottom, other.bottom) - max(self.top, other.top))
            for other in others
        )


def _beside(point: _Point) -> Iterable[_Box]:
    """Right, left, above and below, the best first."""
    width = _LETTER * len(point.name)
    off = _RADIUS + 3
    for left, top in (
        (point.x + off, point.y - _LINE / 2),
        (point.x - off - width, point.y - _LINE / 2),
        (point.x - width / 2, point.y - off - _LINE),
        (point.x - width / 2, point.y + off),
    ):
        yield _Box(left=left, top=top, right=left + width, bottom=top + _LINE)


def error_by_block(artifacts: Sequence[ArtifactResult]) -> Markup | None:
    """A line for each artifact; None where none was run block by block."""
    finite = [
        [
            (number, block.relative_error)
            for number, block in enumerate(artifact.blocks)
            if math.isfinite(block.relative_error)
        ]
        for artifact in artifacts
    ]
    values = [error for each in finite for _, error in each]
    if not values:
        return None
    last = max(number for each in finite for number, _ in each)
    across = _count_axis(last)
    up = log_axis(values, BOTTOM, TOP)
    return drawing(
        frame(
            across,
            up,
            across_says=lambda tick: f"{tick:.0f}",
            up_says=_plain,
            across_title="block",
            up_title="relative error of its output",
        ),
        (
            polyline(
                [(across.at(at), up.at(error)) for at, error in each], f"curve {series(place)}"
            )
            for place, each in enumerate(finite)
            if each
        ),
        title="Relative error of each block's output, one line per artifact",
    )


def _count_axis(last: int) -> Axis:
    """From 0 to ``last`` without room beyond it."""
    last = max(last, 1)
    step = max(1, math.ceil(last / 6))
    return Axis(
        low=0,
        high=last,
        start=LEFT,
        end=RIGHT,
        logarithmic=False,
        ticks=tuple(float(tick) for tick in range(0, last + 1, step)),
    )


def memory(artifacts: Sequence[ArtifactResult], names: Sequence[str]) -> Markup | None:
    """A bar for each artifact: what needs memory, the range, and what was measured."""
    known = [
        (name, artifact.vram)
        for name, artifact in zip(names, artifacts, strict=True)
        if artifact.vram is not None
    ]
    if not known:
        return None
    largest = (max(vram.high, sum(vram.parts.values()), vram.measured or 0) for _, vram in known)
    across = linear_axis(largest, 6, RIGHT)
    bottom = TOP + _GAP * len(known) + 4
    return drawing(
        (
            (
                line(across.at(tick), TOP, across.at(tick), bottom, "grid"),
                _under(across, tick, bottom),
            )
            for tick in across.ticks
        ),
        (_bar(at, name, vram, across) for at, (name, vram) in enumerate(known)),
        title="Memory on the device, predicted by part and measured",
        height=bottom + 20,
    )


def _under(axis: Axis, tick: float, bottom: float) -> Markup:
    """The figure of a tick, inside the picture at its right end, too."""
    ends = {0: "start", len(axis.ticks) - 1: "end"}
    anchor = ends.get(axis.ticks.index(tick), "middle")
    return text(axis.at(tick), bottom + 14, tick_size(tick), anchor=anchor)


def _bar(at: int, name: str, vram: VramResult, axis: Axis) -> Iterable[Markup]:
    top = TOP + _GAP * at + 12
    yield text(6, top - 3, clipped(name, 60))
    start = 0
    for number, (part, nbytes) in enumerate(vram.parts.items()):
        left, right = axis.at(start), axis.at(start + nbytes)
        start += nbytes
        yield element(
            "rect",
            element("title", f"{name}: {part.replace('_', ' ')} {size(nbytes)}"),
            x=left,
            y=top,
            width=right - left,
            height=_BAR,
            class_=f"part {series(number)}",
        )
    below = top + _BAR + 4  # beside the bar, whose colours it need not stand out from
    yield line(axis.at(vram.low), below, axis.at(vram.high), below, "range")
    for end in (vram.low, vram.high):
        yield line(axis.at(end), below - 3, axis.at(end), below + 3, "range")
    if vram.measured is not None:
        x = axis.at(vram.measured)
        yield element(
            "path",
            element("title", f"{name}: measured {size(vram.measured)}"),
            d=f"M{x:.1f} {top - 3}l4 {_BAR / 2 + 3}l-4 {_BAR / 2 + 3}l-4 -{_BAR / 2 + 3}z",
            class_="measured",
        )


def _plain(value: float) -> str:
    """A tick: as short as it can be said."""
    return f"{value:g}"
