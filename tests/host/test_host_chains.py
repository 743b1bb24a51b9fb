"""Facts about method chains as people write them."""

from __future__ import annotations

import pytest

from qconv._host._chains import Chain, make_chain
from qconv.errors import UsageError
from qconv.plugin import MethodSpec, OptionSpec


def spec(name: str, kind: str = "rounder", calibration: str = "needed") -> MethodSpec:
    return MethodSpec(
        name=name,
        summary="",
        kind=kind,
        calibration=calibration,
        options=(
            OptionSpec(name="damp", summary=""),
            OptionSpec(name="order", summary="", choices=("activation", "none")),
        ),
        load=lambda: object,
        api_version=1,
    )


METHODS = {
    "rtn": spec("rtn", calibration="optional"),
    "gptq": spec("gptq"),
    "learned": spec("learned", kind="block_rounder"),
    "awq": spec("awq", kind="transform"),
    "smooth": spec("smooth", kind="transform"),
    "plain": spec("plain", calibration="unused"),
}


def chain(text: str) -> Chain:
    def find(name: str) -> MethodSpec:
        if name not in METHODS:
            raise UsageError(f"unknown method '{name}'")
        return METHODS[name]

    return make_chain(text, find)


def test_a_rounder_alone_is_a_chain():
    assert chain("gptq").label == "gptq"
    assert chain("gptq").transforms == ()


def test_transforms_without_a_rounder_end_in_round_to_nearest():
    assert chain("awq").label == "awq,rtn"
    assert chain("smooth, awq").label == "smooth,awq,rtn"


def test_transforms_come_before_the_rounder():
    assert [step.spec.name for step in chain("awq,gptq").steps] == ["awq", "gptq"]


def test_options_belong_to_the_step_before_them():
    made = chain("awq,damp=1,gptq,Damp=0.05,order=NONE")
    assert made.transforms[0].options == {"damp": "1"}
    assert made.rounder.options == {"damp": "0.05", "order": "none"}
    assert made.label == "awq,damp=1,gptq,damp=0.05,order=none"


@pytest.mark.parametrize(
    ("text", "wants"),
    [("awq", "needed"), ("rtn", "optional"), ("plain", "unused"), ("awq,plain", "needed")],
)
def test_a_chain_wants_what_its_neediest_step_wants(text: str, wants: str):
    assert chain(text).calibration == wants


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gptq,rtn", "'gptq,rtn' has 2 rounders, 'gptq' and 'rtn': a weight is rounded once"),
        ("learned,gptq", "2 rounders, 'learned' and 'gptq'"),
        ("gptq,awq", "'awq' rescales weights and must come before the rounder 'gptq'"),
        ("awq,awq", "has 'awq' twice"),
        ("damp=1,gptq", "option 'damp=1' stands before any method"),
        ("gptq,damp=", "'damp=' is not an option; write name=value"),
        ("gptq,dump=1", r"gptq has no option 'dump'.*did you mean damp.*options: damp, order"),
        ("gptq,damp=1,damp=2", "option 'damp' is given twice"),
        ("gptq,order=up", r"option 'order' cannot be 'up' \(choices: activation, none\)"),
        ("gptq,,awq", "has an empty step"),
        ("", "has an empty step"),
        ("gtpq", "unknown method 'gtpq'"),
    ],
)
def test_what_does_not_go_together_is_refused(text: str, message: str):
    with pytest.raises(UsageError, match=message):
        chain(text)
