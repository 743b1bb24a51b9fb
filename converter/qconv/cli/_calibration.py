"""Puts the options of calibration together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qconv.calibration import Calibration

    from ._options import Sampling

WINDOWS, WINDOW_LENGTH = 64, 512


def chosen_calibration(
    sources: list[str] | None,
    *,
    windows: int,
    window_length: int,
    sampling: Sampling,
    no_packing: bool,
    seed: int,
    min_tokens_per_expert: int | None,
) -> Calibration | None:
    """What to calibrate on; None when no option says anything of it."""
    settings = (windows, window_length, sampling.value, no_packing, seed, min_tokens_per_expert)
    if not sources and settings == (WINDOWS, WINDOW_LENGTH, "random", False, 0, None):
        return None
    from qconv.calibration import BUILTIN, Calibration

    return Calibration(
        source=sources or BUILTIN,
        windows=windows,
        window_length=window_length,
        sampling=sampling.value,
        packing=not no_packing,
        seed=seed,
        min_tokens_per_expert=min_tokens_per_expert,
    )
