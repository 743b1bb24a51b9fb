"""Gates: figures beside limits, by the class of grid that most of an artifact's weights lie on.

Beyond a default limit a figure is a warning, far beyond it a failure; limits that were asked for
are strict.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from qconv.errors import UsageError
from qconv.validation._class_limits import CLASSES, LOSSLESS, of_size
from qconv.validation._results import (
    ArtifactResult,
    GateResult,
    LogitsResult,
    Status,
    TensorResult,
)

Relation = Literal["<=", ">="]


#: A class is the coarsest that holds this share of the weights of the blocks.
_SHARE = 0.25

#: Beyond its default limit a figure is a warning, beyond this many times as much it is a failure.
_FAILS_AT = 2.0

#: The class whose mean divergence an engine may add to that of the decoded weights, by whether
#: weights are quantized: engines round inputs to 8 bits where weights are, and small models mind
#: (llama.cpp: 0.04 nats for SmolLM2-135M as Q4_K_M); elsewhere they compute in 16 bits at worst,
#: which with bfloat16 is 8 significant ones.
_ENGINE = {True: "8-bit, inputs too", False: "8-bit"}

#: Bits of a code, in names of grids and types: ``Q4_K``, ``int4_g128``, ``fp8_channel``, ``nf4``.
_CODE_BITS = re.compile(r"(?:iq|q|u?int|fp|nf|mxfp|nvfp)(\d)(?!\d)")
_CLASS_OF_BITS = {
    8: "8-bit",
    7: "8-bit",
    6: "6-bit",
    5: "5-bit",
    4: "4-bit",
    3: "3-bit",
    2: "2-bit",
}

_IN_BLOCK = re.compile(r"\.\d+\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figure:
    """A figure that can be gated."""

    relation: Relation
    of: Callable[[ArtifactResult], float | None]
    what: str


def _worst_ratio(result: ArtifactResult) -> float | None:
    ratios = [
        each.relative_error / each.limit
        for each in result.tensors
        if each.relative_error is not None and each.limit
    ]
    return max(ratios, default=None)


def _worst_error(result: ArtifactResult) -> float | None:
    """Of those that are held to the source: not of norms whose change their weights undo."""
    errors = [
        each.relative_error
        for each in result.tensors
        if each.relative_error is not None and not (each.rescaled and each.limit is None)
    ]
    return max(errors, default=None)


def _predicted(figure: Callable[[LogitsResult], float]) -> Callable[[ArtifactResult], float | None]:
    """A figure of the decoded weights' logits."""
    return lambda result: None if result.logits is None else figure(result.logits)


def _vram(result: ArtifactResult) -> float | None:
    if result.vram is None or result.vram.reason is not None:
        return None
    return float(result.vram.high if result.vram.measured is None else result.vram.measured)


def _engine(result: ArtifactResult) -> float | None:
    """The largest divergence of an engine from the decoded weights."""
    found = [each.against_decoded for each in result.runtimes]
    return max((each.kl.mean for each in found if each is not None), default=None)


#: By the name that ``--gate`` takes.
FIGURES: Mapping[str, _Figure] = {
    "weights": _Figure(
        relation="<=", of=_worst_ratio, what="error of the worst tensor / what its grid allows"
    ),
    "error": _Figure(relation="<=", of=_worst_error, what="relative error of the worst tensor"),
    "block": _Figure(
        relation="<=",
        of=lambda result: result.blocks[-1].relative_error if result.blocks else None,
        what="relative error after the last block",
    ),
    "kl": _Figure(
        relation="<=",
        of=_predicted(lambda logits: logits.kl.mean),
        what="mean KL divergence, nats",
    ),
    "kl_p99": _Figure(
        relation="<=",
        of=_predicted(lambda logits: logits.kl.p99),
        what="KL divergence, 99th percentile",
    ),
    "top1": _Figure(
        relation=">=",
        of=_predicted(lambda logits: logits.same_top1),
        what="share of positions with the same likeliest token",
    ),
    "top5": _Figure(
        relation=">=",
        of=_predicted(lambda logits: logits.top5_overlap),
        what="share of the five likeliest tokens",
    ),
    "ppl": _Figure(
        relation="<=",
        of=_predicted(lambda logits: logits.perplexity_ratio),
        what="perplexity / the source's",
    ),
    "rms": _Figure(
        relation="<=",
        of=_predicted(lambda logits: logits.rms_probability),
        what="RMS change of the true token's probability",
    ),
    "engine": _Figure(
        relation="<=", of=_engine, what="mean KL divergence of the engine from the decoded weights"
    ),
    "vram": _Figure(relation="<=", of=_vram, what="bytes of memory on the device"),
}


#: Gates between artifacts, and what each measures: see ``_relative``.
RELATIVE: Mapping[str, str] = {
    "beats": "KL divergence / the baseline's, upper end of its 95 % interval",
    "agrees": "|difference from another artifact on the grid| / |what rounding lost|, worst tensor",
}


def gate_meaning(name: str) -> str | None:
    """What the gate of this name measures, for people; None where there is no such gate."""
    figure = FIGURES.get(name)
    return RELATIVE.get(name) if figure is None else figure.what


#: Why those are unmeasured that need no model run.
_NO_REASONS = dict.fromkeys(("weights", "error"), "nothing was decoded")

#: Those that model runs give, which have default limits by class.
_PREDICTIONS = ("kl", "kl_p99", "top1", "ppl")


def check_names(gates: Mapping[str, float]) -> None:
    """Refuse gates that there are none of, and limits that are no numbers above zero.

    Raises:
        UsageError: names the gates there are.
    """
    known = sorted({*FIGURES, *RELATIVE})
    for name, limit in gates.items():
        if name not in known:
            raise UsageError(f"there is no gate {name!r}; choose from {', '.join(known)}")
        if not limit >= 0:
            raise UsageError(f"gate {name!r}: its limit {limit!r} must be a number from 0 up")


def grid_class(tensors: Sequence[TensorResult], *, inputs: bool) -> str:
    """The class of an artifact. inputs: the runtime quantizes inputs of linears, too."""
    weights: dict[str, int] = {}
    for each in _linears(tensors):
        name = _class_of(each)
        if name == "8-bit" and inputs:
            name = "8-bit, inputs too"
        weights[name] = weights.get(name, 0) + _numel(each.shape)
    total = sum(weights.values())
    held = 0
    for name in reversed(list(CLASSES)):
        held += weights.get(name, 0)
        if held and held >= _SHARE * total:
            return name
    return "float"


def _class_of(tensor: TensorResult) -> str:
    """By the bits of a code, where the grid's name tells them, or by those stored."""
    named = _CODE_BITS.match(tensor.grid.lower())
    if named and int(named[1]) in _CLASS_OF_BITS:
        return _CLASS_OF_BITS[int(named[1])]
    return next(key for key, (bits, _) in CLASSES.items() if tensor.bits_per_weight >= bits)


def _linears(tensors: Sequence[TensorResult]) -> list[TensorResult]:
    """Matrices inside blocks; all matrices where no name has a number."""
    matrices = [each for each in tensors if len(each.shape) > 1]
    return [each for each in matrices if in_block(each.name)] or matrices


def in_block(name: str) -> bool:
    """Whether a tensor of this name is one of a block."""
    return _IN_BLOCK.search(name) is not None


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def judge(
    result: ArtifactResult,
    gates: Mapping[str, float],
    *,
    weights: int,
    reason: str,
    reasons: Mapping[str, str] | None = None,
    predicts: bool = True,
) -> tuple[GateResult, ...]:
    """Every gate: those asked for, and the defaults that they do not replace.

    gates: limits by name
    weights: of the model
    reason: why predictions are unmeasured, where they are
    reasons: why figures of other gates are, by gate
    predicts: the model has a head; without one its last block is gated by default instead
    """
    found = [_default(result, "weights", 1.0, "what rounding on the grid loses, 5 times over")]
    for name in _PREDICTIONS if predicts else ():
        limit, more = of_size(result.grid_class, name, weights)
        if limit is not None:
            why = f"default for {result.grid_class}{more}"
            found.append(_default(result, name, limit, why, reason))
    if not predicts:
        why = f"default for {result.grid_class}, of a model without a head"
        limit = CLASSES[result.grid_class][1].block
        found.append(_default(result, "block", limit, why, reason))
    for runtime in result.runtimes:
        quantized = result.grid_class != "float"
        limit, more = of_size(_ENGINE[quantized], "kl", weights)
        if limit is not None:
            why = f"engines may round inputs{' to 8 bits' if quantized else ''}, no more{more}"
            found.append(_default(result, "engine", limit, why, runtime.reason or reason))
    named = {each.name: each for each in found}
    for name, limit in gates.items():
        if name in RELATIVE:  # takes other artifacts, too
            continue
        named[name] = _asked(
            result, name, limit, {**_NO_REASONS, **(reasons or {})}.get(name, reason)
        )
    return tuple(named.values())


def _asked(result: ArtifactResult, name: str, limit: float, reason: str) -> GateResult:
    figure = FIGURES[name]
    value = figure.of(result)
    status: Status = "unmeasured" if value is None else "fail"
    if value is not None and _holds(value, limit, figure.relation):
        status = "pass"
    return GateResult(
        name=name,
        value=value,
        limit=limit,
        relation=figure.relation,
        status=status,
        why=reason if value is None else _as_asked(result, name),
    )


def _as_asked(result: ArtifactResult, name: str) -> str:
    """Of memory also whether it was measured, which makes a difference."""
    if name != "vram" or result.vram is None:
        return "as asked for"
    if result.vram.measured is None:
        return "as asked for; predicted, the upper end"
    return f"as asked for; measured on {result.vram.device} by {result.vram.by}"


def _default(
    result: ArtifactResult, name: str, limit: float, why: str, reason: str = "nothing was decoded"
) -> GateResult:
    figure = FIGURES[name]
    value = figure.of(result)
    status: Status = "unmeasured"
    if value is not None:
        status = _status(name, value, limit)
    return GateResult(
        name=name,
        value=value,
        limit=limit,
        relation=figure.relation,
        status=status,
        why=reason if value is None else why,
    )


def _status(name: str, value: float, limit: float) -> Status:
    relation = FIGURES[name].relation
    if _holds(value, limit, relation):
        return "pass"
    near = name != "weights" and _holds(value, _beyond(name, limit), relation)
    return "warn" if near else "fail"


def _beyond(name: str, limit: float) -> float:
    """Where a warning becomes a failure: twice as far from nothing lost."""
    lossless = LOSSLESS.get(name, 0.0)
    return max(0.0, lossless + _FAILS_AT * (limit - lossless))


def _holds(value: float, limit: float, relation: Relation) -> bool:
    return value <= limit if relation == "<=" else value >= limit
