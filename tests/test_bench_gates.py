"""The benchmark of the default limits tells a sound artifact over a limit, and a limit too wide."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))

import gates

LARGE = 7_000_000_000


def measured(kl: float = 0.03, **figures: float) -> gates.Measured:
    found = {"kl": kl, "kl_p99": 0.35, "top1": 0.95, "ppl": 1.02, **figures}
    return gates.Measured(
        target="gguf:q4_k_m", method="rtn", grid_class="4-bit", weights=LARGE, figures=found
    )


def test_figures_at_half_of_their_limits_are_well():
    assert measured().shares() == pytest.approx(dict.fromkeys(gates.FIGURES, 0.5))
    assert list(gates.judged([measured()])) == []


def test_a_sound_artifact_over_a_limit_is_told():
    (told,) = gates.judged([measured(), measured(0.072)])
    assert told == "gguf:q4_k_m by rtn: kl is 1.20 of its limit"


def test_a_limit_that_no_sound_artifact_comes_near_is_told():
    (told,) = gates.judged([measured(0.006), measured(0.003)])
    assert told == "class 4-bit: sound files take 0.10 of kl at most"


def test_a_row_says_what_share_of_its_limit_a_figure_takes():
    assert gates.row(measured()).split() == [
        *("gguf:q4_k_m", "rtn", "4-bit"),
        *("0.03", "(50%)", "0.35", "(50%)", "0.95", "(50%)", "1.02", "(50%)"),
    ]
