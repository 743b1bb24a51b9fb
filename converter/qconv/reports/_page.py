"""The page: verdict, artifacts beside one another, each of them, text, and how to repeat it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ._artifact import artifact_section
from ._blocks import captioned, code, document, pairs, quiet, status, table
from ._charts import error_by_block, memory, size_against_divergence
from ._figures import STATUS_WORDS, figure, gate_words, labels, share, size
from ._frame import legend, series
from ._markup import Child, Markup, element
from ._texts import texts_section

if TYPE_CHECKING:
    from qconv.validation import ArtifactResult, Validation

#: In the verdict: artifacts whose reasons are told, and reasons of each; their own parts have all.
_REASONS, _TOLD = 12, 6


def page(validation: Validation) -> str:
    """The whole report as one HTML document without scripts and outside resources."""
    names = labels(validation)
    return document(
        f"{validation.source}: validation",
        (
            element("p", "qconv validation", class_="quiet small"),
            element("h1", validation.source),
            _verdict(validation, names),
            _overview(validation, names),
            _pictures(validation, names),
            texts_section(validation.artifacts, names),
            (
                artifact_section(artifact, name, _anchor(place))
                for place, (artifact, name) in enumerate(
                    zip(validation.artifacts, names, strict=True)
                )
            ),
            _repeat(validation),
        ),
        f"Written by qconv {validation.qconv_version}. report.json beside this page holds every "
        "figure.",
    )


def _anchor(place: int) -> str:
    return f"artifact-{place + 1}"


def _verdict(validation: Validation, names: Sequence[str]) -> Markup:
    reasons = list(_reasons(validation, names))
    rest = len(reasons) - _REASONS
    return element(
        "div",
        element("strong", status(validation.status)),
        element("p", _sentence(validation, names)),
        element("ul", reasons[:_REASONS]) if reasons else None,
        quiet(f"and {rest} more, told below") if rest > 0 else None,
        class_=f"verdict {validation.status}",
    )


def _sentence(validation: Validation, names: Sequence[str]) -> str:
    count = len(validation.artifacts)
    if count == 0:
        return "There is no artifact to judge."
    if count == 1:
        return f"{names[0]} {STATUS_WORDS[validation.status]}."
    passing = sum(artifact.status in {"pass", "warn"} for artifact in validation.artifacts)
    return f"{passing} of {count} artifacts pass."


def _reasons(validation: Validation, names: Sequence[str]) -> Iterable[Markup]:
    """Of each artifact, why it is no plain pass; those that fail first."""
    for wanted in ("fail", "unmeasured", "warn"):
        for artifact, name in zip(validation.artifacts, names, strict=True):
            told = "; ".join(_told(artifact))
            if artifact.status == wanted and told:
                yield element("li", f"{name} {STATUS_WORDS[wanted]}: {told}")


def _told(artifact: ArtifactResult) -> Iterable[str]:
    """Faults, gates that do not hold, and warnings, as many as fit a sentence."""
    told = [
        *artifact.faults,
        *(f"{tensor.name}: {fault}" for tensor in artifact.tensors for fault in tensor.faults),
        *(
            gate_words(gate)
            for wanted in ("fail", "unmeasured", "warn")
            for gate in artifact.gates
            if gate.status == wanted
        ),
        *(f"{each.engine}: {each.reason}" for each in artifact.runtimes if each.reason),
        *artifact.warnings,
        *(f"{each.name}: {warning}" for each in artifact.tensors for warning in each.warnings),
    ]
    yield from told[:_TOLD]
    if len(told) > _TOLD:
        yield f"and {len(told) - _TOLD} more"


def _overview(validation: Validation, names: Sequence[str]) -> Iterable[Child]:
    yield element("h2", "Artifacts")
    yield table(
        (
            "artifact",
            "status",
            ">size",
            ">bits per weight",
            ">mean KL",
            ">same top-1",
            ">perplexity",
            ">VRAM predicted",
            ">VRAM measured",
        ),
        (
            _artifact_row(artifact, name, place)
            for place, (artifact, name) in enumerate(zip(validation.artifacts, names, strict=True))
        ),
    )
    yield from _source_words(validation.artifacts)
    for each in validation.baselines:
        yield quiet(_baseline_words(each))


def _artifact_row(artifact: ArtifactResult, name: str, place: int) -> tuple[Child, ...]:
    logits, vram = artifact.logits, artifact.vram
    return (
        element(
            "span",
            element("i", class_=f"chip {series(place)}"),
            element("a", name, href=f"#{_anchor(place)}"),
            class_="named",
        ),
        status(artifact.status),
        size(artifact.bytes),
        figure(artifact.bits_per_weight),
        figure(None if logits is None else logits.kl.mean),
        share(None if logits is None else logits.same_top1),
        figure(None if logits is None else logits.perplexity),
        "not predicted" if vram is None else f"{size(vram.low)} to {size(vram.high)}",
        size(None if vram is None else vram.measured),
    )


def _source_words(artifacts: Iterable[ArtifactResult]) -> Iterable[Markup]:
    references = sorted({each.logits.reference_perplexity for each in artifacts if each.logits})
    if references:
        told = " and ".join(figure(value) for value in references)
        yield quiet(
            f"The source's own perplexity on the same text is {told}. KL divergence in nats, mean "
            "over tokens; 0 is the source itself."
        )


def _baseline_words(baseline: ArtifactResult) -> str:
    """What the artifacts were to beat."""
    kl = None if baseline.logits is None else baseline.logits.kl.mean
    return (
        f"Baseline, measured and not judged: {baseline.path} ({baseline.target}, "
        f"{size(baseline.bytes)}), mean KL {figure(kl)}."
    )


def _pictures(validation: Validation, names: Sequence[str]) -> Iterable[Child]:
    artifacts = validation.artifacts
    divergence = size_against_divergence(artifacts, names)
    blocks = error_by_block(artifacts)
    needs = memory(artifacts, names)
    if divergence or blocks:
        yield element("h2", "Size and loss")
        yield legend(names)
        yield element(
            "div",
            captioned(
                divergence,
                "Lower and further left is better. The dashed line joins the artifacts that lose "
                "less than every smaller one.",
            )
            if divergence
            else None,
            captioned(
                blocks,
                "|artifact - source| / |source| of each block's output; each model follows its "
                "own states, so errors of earlier blocks are in it.",
            )
            if blocks
            else None,
            class_="pair",
        )
    if needs:
        yield element("h2", "Memory on the device")
        yield captioned(needs, _memory_words(artifacts))


def _memory_words(artifacts: Iterable[ArtifactResult]) -> Iterable[Child]:
    """The legend of the bars, and what the prediction supposes."""
    known = [artifact.vram for artifact in artifacts if artifact.vram is not None]
    yield legend([part.replace("_", " ") for part in known[0].parts])
    supposed = {
        f"context {vram.context}, batch {vram.batch}, {vram.cache_type} cache, {vram.runtime}"
        for vram in known
    }
    yield f"Predicted for {'; '.join(sorted(supposed))}. The line shows the range."
    measured = sorted({vram.device or "a device" for vram in known if vram.measured is not None})
    if measured:
        yield f" The diamond was measured on {', '.join(measured)}."
    else:
        yield " Nothing was measured."
    assumed = sorted({each for vram in known for each in vram.assumptions})
    yield element("ul", (element("li", each) for each in assumed)) if assumed else None


def _repeat(validation: Validation) -> Iterable[Child]:
    yield element("h2", "To repeat it")
    yield element("pre", element("code", validation.command))
    yield pairs(
        [
            ("source", validation.source),
            ("its digest", code(validation.source_digest)),
            ("qconv", validation.qconv_version),
        ]
    )
    if validation.settings:
        yield element("h3", "Settings")
        yield pairs((key, _setting(value)) for key, value in sorted(validation.settings.items()))
    if validation.environment:
        yield element("h3", "Environment")
        yield pairs(sorted(validation.environment.items()))


def _setting(value: Any) -> str:  # noqa: ANN401 - whatever was set
    if isinstance(value, dict):
        return ", ".join(f"{key} {_setting(each)}" for key, each in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_setting, value)) or "none"
    return "none" if value is None else str(value)
