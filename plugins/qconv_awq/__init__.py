"""AWQ: rescales input channels so that the weights that matter are rounded less."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qconv.plugin import MethodSpec, OptionSpec, Transform, hookimpl

__all__ = ["qconv_methods"]


@hookimpl
def qconv_methods() -> Iterator[MethodSpec]:
    """Offer ``awq``."""
    yield MethodSpec(
        name="awq",
        summary="rescale input channels so that the weights that matter are rounded less",
        kind="transform",
        calibration="needed",
        options=(
            OptionSpec(name="steps", summary="exponents tried per fold, 1 to 100 (default: 4)"),
            OptionSpec(
                name="rows",
                summary="rows per weight that candidates are scored on, a number or 'all' "
                "(default: 512)",
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
    from ._awq import Awq

    return Awq
