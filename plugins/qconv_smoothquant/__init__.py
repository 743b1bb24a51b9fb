"""SmoothQuant: moves the outliers of activations into the weights, for integer arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qconv.plugin import MethodSpec, OptionSpec, Transform, hookimpl

__all__ = ["qconv_methods"]


@hookimpl
def qconv_methods() -> Iterator[MethodSpec]:
    """Offer ``smoothquant``."""
    yield MethodSpec(
        name="smoothquant",
        summary="move the outliers of activations into the weights",
        kind="transform",
        calibration="needed",
        options=(
            OptionSpec(
                name="alpha",
                summary="how much of the outliers moves, 0 to 1, or 'auto' to search it per fold "
                "(default: auto)",
            ),
            OptionSpec(
                name="folds",
                summary="where to rescale: after norms only, or between linears too (default: all)",
                choices=("all", "norm"),
            ),
        ),
        load=_load,
        api_version=1,
    )


def _load() -> Callable[..., Transform]:
    from ._smoothquant import SmoothQuant

    return SmoothQuant
