"""What an artifact rounds the inputs of its weights with, stated beforehand by calibration."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qconv.grids import Parameters
    from qconv.validation._matching import Match
    from qconv.validation._results import TensorResult

#: What codes can reach of an input: beyond, no model's activations are known to be (those of Llama
#: peak near 2**11, https://arxiv.org/abs/2402.17762), and below, all of them would be cut off.
_REACH = (2.0**-20, 2.0**20)


def with_inputs_checked(results: Iterable[TensorResult], match: Match) -> list[TensorResult]:
    """The results of tensors, with what is wrong about the rounding of their inputs."""
    static = match.activation_parameters
    plans = {plan.name: plan for plan in match.plans}
    checked = []
    for result in results:
        grid = match.activation(plans[result.name])
        if grid is None or grid.dynamic:
            checked.append(result)
            continue
        if result.name not in static:
            lost = f"nothing says on which scale its input is rounded, which is {grid.name}"
            told = (lost,) if static else ()  # a reader need not tell of any
            checked.append(replace(result, faults=(*result.faults, *told)))
            continue
        faults, warnings = _checked(static[result.name], grid.highest - grid.lowest)
        checked.append(
            replace(
                result,
                faults=(*result.faults, *faults),
                warnings=(*result.warnings, *warnings),
            )
        )
    return checked


def _checked(static: Parameters, steps: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Faults and warnings. steps: between the lowest code and the highest."""
    scale = float(static["scale"])
    reach = scale * steps
    if not 0 < scale < float("inf"):
        return (f"the scale of its input is {scale:g}, but must be positive and finite",), ()
    if not _REACH[0] <= reach <= _REACH[1]:
        return (), (f"the scale of its input is {scale:g}: codes reach over {reach:.4g} in all",)
    return (), ()
