"""HTML, SVG and XML in which every text is escaped, because there is no other way to put it in."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Union

from qconv._words import printable

#: What may stand in an element. None and empty text leave no trace.
Child = Union["Markup", str, int, None, Iterable["Child"]]

#: HTML elements without an end tag (https://html.spec.whatwg.org/#void-elements).
_VOID = frozenset({"br", "hr", "img", "link", "meta", "wbr"})


class Markup(str):
    """Text that is markup already. Only :func:`element` and constants of this package make it."""

    __slots__ = ()


def element(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """An element.

    children: text is escaped, its control characters made visible; markup stays as it is
    attributes: ``class_`` and ``for_`` lose their last underscore, others become hyphens; None and
        False leave an attribute out, True gives it no value
    """
    opened = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{opened}>")
    return Markup(f"<{name}{opened}>{''.join(_inner(children))}</{name}>")


def _attribute(key: str, value: str | float | bool | None) -> str:  # noqa: FBT001 - True stands for itself
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{escaped(_number(value))}"'


def _number(value: str | float) -> str:
    """Coordinates with a tenth of a pixel: finer is not seen, and only makes the page larger."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def _inner(children: Child) -> Iterable[str]:
    if children is None:
        return
    if isinstance(children, Markup):
        yield children
    elif isinstance(children, (str, int)):
        yield escaped(str(children))
    else:
        for child in children:
            yield from _inner(child)


def escaped(text: str) -> str:
    """``text`` as markup that shows it, in elements and in quoted attributes, of HTML and XML.

    What XML cannot hold even escaped, and what turns the order of letters around, becomes visible.
    """
    return html.escape(printable(text), quote=True)
