"""Learned rounding: a block's codes are trained so that the block does what the float block did."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qconv.plugin import BlockRounder, MethodSpec, OptionSpec, hookimpl

__all__ = ["qconv_methods"]

_OPTIONS = (
    OptionSpec(name="iterations", summary="steps of descent per block; default 200"),
    OptionSpec(name="batch", summary="calibration windows per step; default 1"),
    OptionSpec(
        name="learning_rate",
        summary="first step of the rounding offsets, in codes; default 1/iterations",
    ),
    OptionSpec(
        name="scale_learning_rate",
        summary="first step of the scale factors; 0 keeps the scales; default 0.05/iterations",
    ),
    OptionSpec(
        name="precision",
        summary="of the training runs: float32, or bfloat16 on CUDA; default float32",
        choices=("float32", "bfloat16"),
    ),
)


@hookimpl
def qconv_methods() -> Iterator[MethodSpec]:
    """Offer ``signround``."""
    yield MethodSpec(
        name="signround",
        summary="learned rounding and clipping: signed gradient descent on each block's output",
        kind="block_rounder",
        calibration="needed",
        gram=False,
        sequential=True,
        options=_OPTIONS,
        load=_load,
        api_version=1,
    )


def _load() -> Callable[..., BlockRounder]:
    from ._signround import SignRound

    return SignRound
