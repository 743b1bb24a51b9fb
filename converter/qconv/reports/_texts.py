"""What models wrote after the same prompts, side by side, with the place where they part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from qconv._words import format_seconds

from ._blocks import quiet
from ._markup import Child, Markup, element

if TYPE_CHECKING:
    from qconv.validation import ArtifactResult

#: What the source is called among the models of a sample.
SOURCE = "source"


def texts_section(artifacts: Sequence[ArtifactResult], names: Sequence[str]) -> Iterable[Child]:
    """All prompts; nothing where nobody wrote."""
    prompts = _by_prompt(artifacts, names)
    if not prompts:
        return
    yield element("h2", "Text")
    yield quiet(
        "Greedy: the likeliest token each time. Marked is what differs from the first text."
    )
    for prompt, written in prompts.items():
        yield side_by_side(prompt, written)


def _by_prompt(
    artifacts: Sequence[ArtifactResult], names: Sequence[str]
) -> Mapping[str, dict[str, tuple[str, float | None]]]:
    """Texts and seconds of all models by prompt, the source's first."""
    prompts: dict[str, dict[str, tuple[str, float | None]]] = {}
    for artifact, name in zip(artifacts, names, strict=True):
        for sample in artifact.samples:
            written = prompts.setdefault(sample.prompt, {})
            for label in sorted(sample.texts, key=lambda label: label != SOURCE):
                called = name if label == artifact.target else label
                written.setdefault(called, (sample.texts[label], sample.seconds.get(label)))
    return prompts


def side_by_side(prompt: str, written: Mapping[str, tuple[str, float | None]]) -> Markup:
    """A prompt and what each model made of it; the first one is what others are compared with."""
    reference = next(iter(written.values()))[0]
    return element(
        "div",
        element("h3", "“", prompt, "”"),
        element(
            "div",
            (
                element(
                    "div",
                    element("strong", name),
                    None if seconds is None else quiet(format_seconds(seconds)),
                    element("p", marked(text, shared(text, reference))),
                )
                for name, (text, seconds) in written.items()
            ),
            class_="texts",
        ),
    )


def shared(text: str, reference: str) -> int:
    """How many characters both begin with, up to the last whole word."""
    if text == reference:
        return len(text)
    same = 0
    while same < min(len(text), len(reference)) and text[same] == reference[same]:
        same += 1
    while same and not text[same - 1 : same].isspace() and text[same : same + 1].strip():
        same -= 1
    return same


def marked(text: str, same: int) -> tuple[Child, ...]:
    """A text whose rest after the first ``same`` characters is marked."""
    return text[:same], element("mark", text[same:]) if text[same:] else None
