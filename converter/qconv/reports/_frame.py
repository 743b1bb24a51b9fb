"""What every plot has: the drawing area, its grid lines, and figures beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ._markup import Child, Markup, element

if TYPE_CHECKING:
    from ._axis import Axis

#: Drawn this wide, and shown from the width of a phone to half of a screen: text stays readable.
WIDTH = 400
HEIGHT = 250
#: Where the plot itself lies.
LEFT, RIGHT, TOP, BOTTOM = 52, WIDTH - 12, 10, HEIGHT - 36
#: How many colours of series there are; after that they start over.
COLOURS = 8


def drawing(*children: Child, title: str, height: float = HEIGHT) -> Markup:
    """A picture that scales with the page. title: what it shows, for those who cannot see it."""
    return element(
        "svg",
        element("title", title),
        children,
        viewBox=f"0 0 {WIDTH} {height:.0f}",
        role="img",
        xmlns="http://www.w3.org/2000/svg",
    )


def frame(
    across: Axis,
    up: Axis,
    *,
    across_says: Callable[[float], str],
    up_says: Callable[[float], str],
    across_title: str,
    up_title: str,
) -> tuple[Markup, ...]:
    """Grid lines and figures of a plot with two axes."""
    drawn: list[Markup] = []
    for tick in up.ticks:
        y = up.at(tick)
        drawn.append(line(LEFT, y, RIGHT, y, "grid"))
        drawn.append(text(LEFT - 5, y + 3.5, up_says(tick), anchor="end"))
    for tick in across.ticks:
        x = across.at(tick)
        drawn.append(line(x, TOP, x, BOTTOM, "grid"))
        at_end = tick == across.ticks[-1] and x > RIGHT - 20
        drawn.append(text(x, BOTTOM + 14, across_says(tick), anchor="end" if at_end else "middle"))
    drawn.append(text((LEFT + RIGHT) / 2, HEIGHT - 5, across_title, anchor="middle", role="axis"))
    middle = (TOP + BOTTOM) / 2
    turned = f"rotate(-90 10 {middle:.0f})"
    drawn.append(text(10, middle, up_title, anchor="middle", role="axis", transform=turned))
    return tuple(drawn)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """A straight line. kind: its class in the style sheet."""
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=kind)


def text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    role: str | None = None,
    transform: str | None = None,
) -> Markup:
    """Words in a picture; x is their start, middle or end, as ``anchor`` says."""
    return element(
        "text",
        words,
        x=float(x),
        y=float(y),
        text_anchor=None if anchor == "start" else anchor,
        class_=role,
        transform=transform,
    )


def clipped(words: str, letters: int = 28) -> str:
    """``words`` without their middle where they are longer than a picture has room for."""
    if len(words) <= letters:
        return words
    return f"{words[: letters // 2]}…{words[-(letters // 2) + 1 :]}"


def polyline(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    """A line through ``points``."""
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return element("polyline", points=places, class_=kind)


def series(place: int) -> str:
    """The class that colours the artifact at ``place``, the same in every picture."""
    return f"s{place % COLOURS}"


def legend(names: Sequence[str]) -> Markup:
    """Which colour is which artifact."""
    return element(
        "ul",
        (
            element("li", element("i", class_=f"chip {series(place)}"), name)
            for place, name in enumerate(names)
        ),
        class_="legend",
    )
