"""The building blocks of the pages: the document, tables, statuses, figures with captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ._markup import Child, Markup, element
from ._style import STYLE

if TYPE_CHECKING:
    from qconv.validation import Status

#: Nothing is loaded from anywhere and nothing runs, whatever a model's names may try.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
#: Columns that fit a window of half a screen.
_MANY = 6
#: A status is told by its sign and word; colour only helps.
_SIGNS: dict[Status, str] = {"pass": "✓", "warn": "!", "fail": "✗", "unmeasured": "?"}


def document(title: str, body: Child, footer: str) -> str:
    """A page in the style of all reports."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", STYLE),
    )
    page = element(
        "html", head, element("body", element("main", body), element("footer", footer)), lang="en"
    )
    return f"<!DOCTYPE html>\n{page}\n"


def status(value: Status) -> Markup:
    """A status as a word with its sign."""
    return element("span", f"{_SIGNS[value]} {value}", class_=f"status {value}")


def table(headings: Sequence[str], rows: Iterable[Sequence[Child]]) -> Markup:
    """A table whose rows become cards on a narrow screen.

    headings: one that begins with ``>`` stands over numbers
    rows: the first cell names the row; a column in which nobody has anything is left out
    """
    rows = [tuple(row) for row in rows]
    kept = [at for at in range(len(headings)) if at == 0 or any(row[at] for row in rows)]
    headings = [headings[at] for at in kept]
    rows = [tuple(row[at] for at in kept) for row in rows]
    names = [heading.removeprefix(">") for heading in headings]
    kinds = ["n" if heading.startswith(">") else None for heading in headings]
    head = (
        element("th", name, scope="col", class_=kind)
        for name, kind in zip(names, kinds, strict=True)
    )
    return element(
        "table",
        element("thead", element("tr", head)),
        element("tbody", (_row(row, names, kinds) for row in rows)),
        class_="wide" if len(names) > _MANY else "cards",
    )


def _row(cells: Sequence[Child], names: Sequence[str], kinds: Sequence[str | None]) -> Markup:
    first, *others = cells
    return element(
        "tr",
        element("th", first, scope="row"),
        (
            element("td", element("span", cell), data_label=name, class_=kind)
            for cell, name, kind in zip(others, names[1:], kinds[1:], strict=True)
        ),
    )


def pairs(entries: Iterable[tuple[str, Child]]) -> Markup:
    """Terms and what they are."""
    return element("dl", ((element("dt", term), element("dd", value)) for term, value in entries))


def captioned(picture: Child, caption: Child) -> Markup:
    """A picture with words below."""
    return element("figure", picture, element("figcaption", caption))


def code(words: str) -> Markup:
    """A name or digest as it is typed."""
    return element("span", words, class_="code")


def quiet(words: Child) -> Markup:
    """Words of lesser weight."""
    return element("p", words, class_="quiet small")
