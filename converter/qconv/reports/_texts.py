"""What models wrote after the same prompts, side by side, with the place where they part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv._words import format_seconds

from ._blocks import quiet
from ._markup import Child, Markup, element

if TYPE_CHECKING:
    from qconv.validation import ArtifactResult

#: What the source is called among the models of a sample.
SOURCE = "source"
EXPLAINED = "Greedy: the likeliest token each time. Marked is what differs from the first text."


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """What one model wrote after a prompt.

    same: how many of its characters are those of the text that it is held to
    told: what else there is to say of it
    """

    name: str
    text: str
    same: int
    told: str = ""


def texts_section(artifacts: Sequence[ArtifactResult], names: Sequence[str]) -> Iterable[Child]:
    """All prompts; nothing where nobody wrote."""
    prompts = _by_prompt(artifacts, names)
    if not prompts:
        return
    yield element("h2", "Text")
    yield quiet(EXPLAINED)
    for prompt, written in prompts.items():
        reference = next(iter(written.values()))[0]
        yield side_by_side(
            prompt,
            [
                Text(
                    name=name,
                    text=text,
                    same=shared(text, reference),
                    told="" if seconds is None else format_seconds(seconds),
                )
                for name, (text, seconds) in written.items()
            ],
        )


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


def side_by_side(prompt: str, texts: Iterable[Text]) -> Markup:
    """A prompt and what each model made of it."""
    return element(
        "div",
        element("h3", "\N{LEFT DOUBLE QUOTATION MARK}", prompt, "\N{RIGHT DOUBLE QUOTATION MARK}"),
        element(
            "div",
            (
                element(
                    "div",
                    element("strong", each.name),
                    quiet(each.told) if each.told else None,
                    element("p", marked(each.text, each.same)),
                )
                for each in texts
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
