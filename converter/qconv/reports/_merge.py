"""Joins validations of one source that were made in separate runs, so that one page shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qconv.errors import UsageError

if TYPE_CHECKING:
    from qconv.validation import ArtifactResult, Validation


def merge(validations: Sequence[Validation]) -> Validation:
    """One validation of all artifacts, in the order given.

    An artifact that is there twice counts once, as it was found last. Settings and versions that
    differ are kept side by side.

    Raises:
        UsageError: there is none; they are of different sources, or were scored on different text.
    """
    from qconv.validation import Validation, worst

    if not validations:
        raise UsageError("no report to merge; name two report.json or more")
    _check(validations)
    artifacts = _distinct_artifacts([each for one in validations for each in one.artifacts])
    return Validation(
        qconv_version=", ".join(_distinct([each.qconv_version for each in validations])),
        source=validations[0].source,
        source_digest=validations[0].source_digest,
        settings=_side_by_side([dict(each.settings) for each in validations]),
        environment=_environment([dict(each.environment) for each in validations]),
        artifacts=artifacts,
        status=worst(each.status for each in artifacts),
        command="\n".join(_distinct([each.command for each in validations])),
        baselines=_distinct_artifacts([each for one in validations for each in one.baselines]),
    )


def _check(validations: Sequence[Validation]) -> None:
    first = validations[0]
    for other in validations[1:]:
        if other.source_digest != first.source_digest:
            raise UsageError(
                f"reports are of different sources: {first.source} ({first.source_digest[:12]}) "
                f"and {other.source} ({other.source_digest[:12]}); merge those of one source"
            )
    texts = _distinct([each.settings.get("windows_digest") for each in validations])
    scored = [text for text in texts if text is not None]
    if len(scored) > 1:
        raise UsageError(
            f"reports were scored on different text (windows {scored[0][:12]} and "
            f"{scored[1][:12]}), so their figures cannot be compared; validate again with the same "
            "--text, --windows and --window-length"
        )


def _distinct_artifacts(results: Sequence[ArtifactResult]) -> tuple[ArtifactResult, ...]:
    found: dict[tuple[Any, ...], ArtifactResult] = {}
    for artifact in results:
        files = tuple(sorted(artifact.digests.items()))
        key = (artifact.target, artifact.path, files)
        found.pop(key, None)
        found[key] = artifact
    return tuple(found.values())


def _environment(environments: Sequence[dict[str, str]]) -> dict[str, str]:
    """Versions by name, several of one name after one another."""
    names = sorted({name for each in environments for name in each})
    return {
        name: ", ".join(_distinct([each[name] for each in environments if name in each]))
        for name in names
    }


def _side_by_side(mappings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all agree on as it is, what differs as a list."""
    made: dict[str, Any] = {}
    for key in sorted({key for each in mappings for key in each}):
        values = _distinct([each.get(key) for each in mappings])
        made[key] = values[0] if len(values) == 1 else values
    return made


def _distinct(values: Sequence[Any]) -> list[Any]:
    """Without repetitions, in order; values need not be hashable."""
    return [value for at, value in enumerate(values) if value not in values[:at]]
