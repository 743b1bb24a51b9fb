"""The part of the page about one artifact: gates, divergence, tensors, engines, files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from qconv._words import format_seconds
from qconv.engines import engine_label
from qconv.validation import gate_meaning

from ._blocks import captioned, code, pairs, quiet, status, table
from ._figures import (
    UNMEASURED,
    figure,
    gate_figure,
    share,
    size,
    worst_tensors,
)
from ._heatmap import SHADES, heatmap
from ._markup import Child, Markup, element

if TYPE_CHECKING:
    from qconv.validation import (
        ArtifactResult,
        LogitsResult,
        RuntimeResult,
        TensorResult,
        VramResult,
    )

#: Tensors listed by name; report.json has all of them.
_WORST = 10
_WORST_HEADINGS = (
    "tensor",
    "shape",
    "stored as",
    ">bits",
    ">relative error",
    ">limit",
    ">cosine",
    "faults and warnings",
)
_HEATMAP = (
    "Relative error |decoded - source| / |source| by block; experts of a block share a cell, which "
    "shows the worst."
)


def artifact_section(artifact: ArtifactResult, name: str, anchor: str) -> Markup:
    """Everything about one artifact. name: what the report calls it."""
    return element(
        "section",
        element("h2", name, " ", status(artifact.status)),
        quiet(_introduction(artifact)),
        _sentences("Faults", artifact.faults),
        _sentences("Warnings", artifact.warnings),
        _gates(artifact),
        _divergence(artifact),
        _tensors(artifact, name),
        _engines(artifact),
        _memory(artifact.vram),
        _files(artifact),
        id=anchor,
    )


def _introduction(artifact: ArtifactResult) -> str:
    method = f", made by {artifact.method}" if artifact.method else ""
    return (
        f"{artifact.path}: {size(artifact.bytes)}, {figure(artifact.bits_per_weight)} bits per "
        f"weight{method}; judged as {artifact.grid_class}"
    )


def _sentences(heading: str, told: Sequence[str]) -> Child:
    if not told:
        return None
    return element(
        "div",
        element("h3", heading),
        element("ul", (element("li", each) for each in told)),
    )


def _gates(artifact: ArtifactResult) -> Iterable[Child]:
    if not artifact.gates:
        return
    yield element("h3", "Gates")
    yield table(
        ("gate", ">value", ">limit", "status", "why"),
        (
            (
                _gate_name(gate.name),
                gate_figure(gate.name, gate.value),
                f"{_RELATIONS[gate.relation]} {gate_figure(gate.name, gate.limit)}",
                status(gate.status),
                gate.why,
            )
            for gate in artifact.gates
        ),
    )


def _gate_name(name: str) -> Child:
    """A gate as it is asked for, and what it measures."""
    known = gate_meaning(name)
    meaning = element("span", known, class_="quiet meaning") if known else None
    return element("span", name, meaning)


_RELATIONS = {"<=": "≤", ">=": "≥"}


def _divergence(artifact: ArtifactResult) -> Iterable[Child]:
    found = [artifact.logits, *(each.logits for each in artifact.runtimes)]
    scored = [logits for logits in found if logits is not None]
    if not scored:
        return
    yield element("h3", "Predictions against the source")
    yield table(
        (
            "scored by",
            ">mean KL",
            ">median",
            ">90%",
            ">99%",
            ">99.9%",
            ">largest",
            ">same top-1",
            ">top-5 overlap",
            ">perplexity ratio",
            ">RMS Δp",
        ),
        (_scores(logits) for logits in scored),
    )
    windows = {(logits.windows, logits.tokens) for logits in scored}
    told = " and ".join(f"{tokens} tokens in {count} windows" for count, tokens in sorted(windows))
    yield quiet(
        f"KL divergence in nats over {told} of held-out text; the perplexity ratio with its 95% "
        "interval over windows; RMS Δp is the change of the true token's probability."
    )


def _scores(logits: LogitsResult) -> tuple[Child, ...]:
    kl, (low, high) = logits.kl, logits.ratio_interval
    spread = (kl.mean, kl.median, kl.p90, kl.p99, kl.p999, kl.max)
    return (
        logits.scored,
        *(figure(value) for value in spread),
        share(logits.same_top1),
        share(logits.top5_overlap),
        f"{logits.perplexity_ratio:.4f} ({low:.4f} to {high:.4f})",
        share(logits.rms_probability),
    )


def _tensors(artifact: ArtifactResult, name: str) -> Iterable[Child]:
    compared = sum(tensor.relative_error is not None for tensor in artifact.tensors)
    if not artifact.tensors:
        return
    yield element("h3", "Tensors")
    exact = sum(tensor.relative_error == 0 for tensor in artifact.tensors)
    yield quiet(
        f"{len(artifact.tensors)} tensors, {compared} of them decoded and compared with the "
        f"source's; {exact} equal it."
    )
    drawn = heatmap(artifact.tensors, name)
    if drawn is not None:
        more = f" {drawn.left_out} kinds with smaller errors are left out." * bool(drawn.left_out)
        yield captioned(
            drawn.picture,
            (
                _shades(drawn.limits),
                _HEATMAP,
                more,
            ),
        )
    worst = [artifact.tensors[place] for place in worst_tensors(artifact, _WORST)]
    if worst:
        yield element("h4", "The worst tensors")
        yield quiet(
            "Faulty ones first, then odd ones, then those nearest to what their grids allow."
        )
        yield table(
            _WORST_HEADINGS,
            (_tensor(tensor) for tensor in worst),
        )


def _shades(limits: tuple[float, ...]) -> Markup:
    """The legend of a heat map."""
    words = [
        f"up to {figure(limits[0])}",
        *(f"to {figure(limit)}" for limit in limits[1:]),
        "more",
    ]
    return element(
        "ul",
        (
            element("li", element("i", class_=f"chip h{shade}"), words[shade])
            for shade in range(SHADES)
        ),
        class_="legend",
    )


def _tensor(tensor: TensorResult) -> tuple[Child, ...]:
    rescaled = " rescaled" if tensor.rescaled else ""
    return (
        code(tensor.name),
        "x".join(map(str, tensor.shape)) or "scalar",
        f"{tensor.grid}{rescaled}",
        figure(tensor.bits_per_weight),
        figure(tensor.relative_error),
        "none" if tensor.limit is None else figure(tensor.limit),
        UNMEASURED if tensor.cosine is None else f"{tensor.cosine:.6f}",
        "; ".join((*tensor.faults, *tensor.warnings)),
    )


def _engines(artifact: ArtifactResult) -> Iterable[Child]:
    if not artifact.runtimes:
        return
    yield element("h3", "In the real engine")
    yield table(
        ("engine", ">KL to the source", ">KL to the decoded weights", ">time", ">memory", "note"),
        (_engine(runtime) for runtime in artifact.runtimes),
    )


def _engine(runtime: RuntimeResult) -> tuple[Child, ...]:
    def kl(logits: LogitsResult | None) -> str:
        return UNMEASURED if logits is None else figure(logits.kl.mean)

    return (
        engine_label(runtime.engine, runtime.version, runtime.device),
        kl(runtime.logits),
        kl(runtime.against_decoded),
        UNMEASURED if runtime.seconds is None else format_seconds(runtime.seconds),
        size(runtime.peak_bytes),
        runtime.reason or "",
    )


def _memory(vram: VramResult | None) -> Iterable[Child]:
    """What was measured of memory; of what was predicted, there is a chart of all artifacts."""
    if vram is None or (vram.measured is None and vram.reason is None):
        return
    yield element("h3", "Memory, measured")
    if vram.measured is None:
        yield quiet(f"{UNMEASURED}: {vram.reason}")
        return
    yield pairs(
        [
            (f"on {vram.device}, by {vram.by}", size(vram.measured)),
            (
                f"predicted for this run, in {vram.runtime}",
                f"{size(vram.low)} to {size(vram.high)}",
            ),
            ("it lies", vram.place(size)),
            *((name.replace("_", " "), size(nbytes)) for name, nbytes in vram.figures.items()),
        ]
    )


def _files(artifact: ArtifactResult) -> Iterable[Child]:
    if not artifact.digests:
        return
    yield element("h3", "Files")
    yield pairs((file, code(f"SHA-256 {digest}")) for file, digest in artifact.digests.items())
