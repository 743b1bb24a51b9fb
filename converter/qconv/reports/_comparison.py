"""The page of a comparison: who wrote what, in which engine, in which time and memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from qconv._words import format_seconds
from qconv.engines import engine_label

from ._blocks import document, quiet, status, table
from ._document import json_text
from ._figures import UNMEASURED, figure, size
from ._markup import Child, element
from ._texts import EXPLAINED, Text, side_by_side
from ._write import write_files

if TYPE_CHECKING:
    from qconv.comparison import Answer, ArtifactSpoken, Comparison


def write_comparison(comparison: Comparison, folder: Path | str) -> Path:
    """Write ``comparison.json`` and ``comparison.html``; gives the latter.

    folder: made if it is not there

    Raises:
        UsageError: it cannot be written.
    """
    folder = Path(folder)
    files = {
        "comparison.json": json_text(comparison.to_json()),
        "comparison.html": comparison_page(comparison),
    }
    write_files(folder, files)
    return folder / "comparison.html"


def comparison_page(comparison: Comparison) -> str:
    """The whole comparison as one HTML document."""
    return document(
        "qconv comparison",
        (
            element("p", "qconv comparison", class_="quiet small"),
            element("h1", f"{len(comparison.artifacts)} artifacts side by side"),
            _artifacts(comparison),
            _texts(comparison),
            element("h2", "To repeat it"),
            element("pre", element("code", comparison.command)) if comparison.command else None,
            quiet(f"At most {comparison.tokens} tokens after each prompt."),
        ),
        f"Written by qconv {comparison.qconv_version}. comparison.json beside this page holds "
        "every figure.",
    )


def _artifacts(comparison: Comparison) -> Iterable[Child]:
    yield element("h2", "Artifacts")
    yield table(
        ("artifact", ">size", "engine", ">ready in", ">tokens per second", ">memory", "note"),
        (_row(each) for each in comparison.artifacts),
    )
    yield quiet(
        "Each ran in a process of its own, one after the other. Memory is the most that the "
        "process held, Python and the engine's libraries included; ready in: until the engine had "
        "loaded."
    )


def _row(each: ArtifactSpoken) -> tuple[Child, ...]:
    seconds = sum(answer.seconds for answer in each.answers)
    tokens = sum(answer.tokens for answer in each.answers)
    return (
        each.name,
        size(each.nbytes),
        engine_label(each.engine, each.version, each.device) or UNMEASURED,
        UNMEASURED if each.load_seconds is None else format_seconds(each.load_seconds),
        figure(tokens / seconds if seconds else None),
        size(each.peak_bytes),
        (status("unmeasured"), f" {each.reason}") if each.reason else "",
    )


def _texts(comparison: Comparison) -> Iterable[Child]:
    yield element("h2", "Text")
    yield quiet(EXPLAINED)
    for number, prompt in enumerate(comparison.prompts):
        yield side_by_side(
            prompt,
            (
                _text(each.name, each.answers[number])
                for each in comparison.artifacts
                if each.answers
            ),
        )


def _text(name: str, answer: Answer) -> Text:
    at = answer.parts_at_character
    told = [f"{answer.tokens} tokens in {format_seconds(answer.seconds)}"]
    if answer.parts_at is not None:
        told.append(f"parts at token {answer.parts_at + 1}")
    if not answer.tokenized_alike:
        told.append("its tokenizer reads the prompt otherwise")
    return Text(
        name=name,
        text=answer.text,
        same=len(answer.text) if at is None else at,
        told=", ".join(told),
    )
