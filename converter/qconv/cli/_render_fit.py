"""Prints for people what fits a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._output import write_line
from ._render import _add_row, _print, _table

if TYPE_CHECKING:
    from qconv.memory import Fit, Measurement, Option, Verdict, VramResult

_MIB, _GIB = 1 << 20, 1 << 30


def render_fit(found: Fit) -> None:
    """Print what fits: one format in full, several as a table."""
    sequences = "" if found.batch == 1 else f", {found.batch} sequences"
    write_line(
        f"{found.model}: {_size(found.vram)} of memory on the device, {found.context} tokens"
        f"{sequences}"
    )
    if len(found.options) == 1:
        _render_one(found.options[0], found.context)
        if found.measurement is not None:
            _render_measurement(found.measurement)
        return
    table = _table(
        "target", "runtime", ">size", ">bits/weight", "expected", ">memory", ">context", "verdict"
    )
    for option in found.options:
        if option.verdict is not None and option.predicted is not None:
            _add_row(table, *_cells(option, option.predicted, option.verdict))
    _print(table)
    for reason, targets in _impossible(found).items():
        write_line(f"not possible: {', '.join(targets)}: {reason}")
    _render_recommendation(found)


def _cells(option: Option, predicted: VramResult, verdict: Verdict) -> tuple[str, ...]:
    return (
        option.target,
        option.runtime,
        _size(option.nbytes or 0),
        "" if option.bits_per_weight is None else f"{option.bits_per_weight:.2f}",
        option.quality.name if option.quality else "",
        f"{_size(predicted.low)} to {_size(predicted.high)}",
        str(verdict.max_context or "-"),
        _short(verdict),
    )


def _short(verdict: Verdict) -> str:
    return {
        "fits": "fits",
        "smaller_cache": f"fits with a cache in {verdict.cache_type}",
        "shorter_context": f"fits with up to {verdict.max_context} tokens",
        "offload": f"{verdict.gpu_layers} of {verdict.layers} layers fit",
        "no": "does not fit",
    }[verdict.answer]


def _impossible(found: Fit) -> dict[str, list[str]]:
    """Formats that cannot be made, by why; the reason often begins with the format's name."""
    reasons: dict[str, list[str]] = {}
    for option in found.options:
        if option.reason is not None:
            reason = option.reason.removeprefix(f"{option.target}: ")
            reasons.setdefault(reason, []).append(option.target)
    return reasons


def _render_recommendation(found: Fit) -> None:
    advice = found.recommendation
    if advice is None:
        if not found.chosen:
            write_line("\nno format fits, not even in part")
        return
    write_line(f"\ntake {advice.target}: {advice.reason}")
    if advice.smaller:
        write_line(f"or {advice.smaller}: near lossless, and smaller")


def _render_one(option: Option, context: int) -> None:
    predicted, verdict = option.predicted, option.verdict
    if predicted is None or verdict is None:
        write_line(f"{option.target}: {option.reason}")
        return
    quality = f", {option.quality.name}" if option.quality else ""
    write_line(f"{option.target} in {option.runtime}: {_size(option.nbytes or 0)}{quality}")
    table = _table("memory", ">at most")
    for name, nbytes in predicted.parts.items():
        _add_row(table, name.replace("_", " "), _size(nbytes))
    _add_row(table, "in all", f"{_size(predicted.low)} to {_size(predicted.high)}")
    _print(table)
    write_line(f"{_size(verdict.budget)} may be used, the rest is headroom")
    for line in predicted.assumptions:
        write_line(f"assumed: {line}")
    for line in _ways(verdict, context):
        write_line(line)


def _render_measurement(made: Measurement) -> None:
    result = made.result
    write_line(
        f"\nmeasured on {result.device} in {result.runtime} ({result.by}): "
        f"{_size(result.measured or 0)}"
    )
    for name, nbytes in result.figures.items():
        write_line(f"  {name.replace('_', ' ')}: {_size(nbytes)}")
    write_line(f"predicted for this run: {_size(result.low)} to {_size(result.high)}")
    for line in result.assumptions:
        write_line(f"assumed: {line}")
    write_line(f"that is {result.place(_size)}")


def _ways(verdict: Verdict, context: int) -> list[str]:
    """The verdict, and what else would do."""
    longest = verdict.max_context
    if verdict.answer == "fits":
        return [f"fits; the longest context that does is {longest} tokens"]
    ways = []
    if verdict.cache_type:
        ways.append(f"needs an 8-bit cache: --cache {verdict.cache_type}")
    if longest:
        ways.append(f"fits with context at most {longest}")
    if verdict.gpu_layers:
        others = verdict.layers - verdict.gpu_layers
        ways.append(f"offload {others} layers: {verdict.gpu_layers} of {verdict.layers} fit (-ngl)")
    head = f"does not fit with {context} tokens as asked"
    return [head, *(f"  {way}" for way in ways)] if ways else [head]


def _size(nbytes: float) -> str:
    """As graphics cards are sold: in units of 1024."""
    if nbytes < _GIB:
        return f"{nbytes / _MIB:.0f} MiB"
    return f"{nbytes / _GIB:.2f} GiB"
