"""Round to nearest: every weight goes to the nearest grid value. Needs no forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qconv.plugin import MethodSpec, Rounder, hookimpl

__all__ = ["qconv_methods"]


@hookimpl
def qconv_methods() -> Iterator[MethodSpec]:
    """Offer ``rtn``."""
    yield MethodSpec(
        name="rtn",
        summary="round to nearest, with scales searched for least weighted error",
        streams=True,
        calibration="optional",
        gram=False,
        load=_load,
        api_version=1,
    )


def _load() -> Callable[[], Rounder]:
    from ._rtn import Rtn

    return Rtn
