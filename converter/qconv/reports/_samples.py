"""Puts what artifacts wrote into their validation, so that the report shows it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ._texts import SOURCE

if TYPE_CHECKING:
    from qconv.comparison import ArtifactSpoken, Comparison
    from qconv.validation import TextSample, Validation


def with_texts(validation: Validation, comparison: Comparison) -> Validation:
    """The validation with a sample for each prompt and artifact.

    comparison: of the source, and then of the artifacts in the validation's order; those that did
        not speak have no sample

    Raises:
        ValueError: it is of another number of artifacts.
    """
    source, *others = comparison.artifacts
    artifacts = tuple(
        replace(artifact, samples=_samples(comparison, source, spoken, artifact.target))
        for artifact, spoken in zip(validation.artifacts, others, strict=True)
    )
    return replace(validation, artifacts=artifacts)


def _samples(
    comparison: Comparison, source: ArtifactSpoken, artifact: ArtifactSpoken, label: str
) -> tuple[TextSample, ...]:
    from qconv.validation import TextSample

    speaking = {SOURCE: source, label: artifact}
    return tuple(
        TextSample(
            prompt=prompt,
            texts={name: each.answers[at].text for name, each in speaking.items() if each.answers},
            seconds={
                name: each.answers[at].seconds for name, each in speaking.items() if each.answers
            },
        )
        for at, prompt in enumerate(comparison.prompts)
        if artifact.answers
    )
