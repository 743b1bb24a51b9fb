"""GPTQ: columns are rounded one after another, each making good what those before it lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qconv.plugin import MethodSpec, OptionSpec, Rounder, hookimpl

__all__ = ["qconv_methods"]

_OPTIONS = (
    OptionSpec(
        name="damp",
        summary="added to the diagonal of the Gram matrix, as a part of it, 0 to 100; default 1",
    ),
    OptionSpec(
        name="order",
        summary="round the inputs with most energy first, or as they come; default activation",
        choices=("activation", "none"),
    ),
    OptionSpec(
        name="refits",
        summary="how often a group's scales are refitted to its codes, and it is rounded again; "
        "default 0",
    ),
)


@hookimpl
def qconv_methods() -> Iterator[MethodSpec]:
    """Offer ``gptq``."""
    yield MethodSpec(
        name="gptq",
        summary="second-order rounding with error feedback, scales fitted as it goes",
        calibration="needed",
        options=_OPTIONS,
        load=_load,
        api_version=1,
    )


def _load() -> Callable[..., Rounder]:
    from ._gptq import Gptq

    return Gptq
