"""Gates: classes by grid, limits by class, and what a verdict is made of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qconv.errors import UsageError
from qconv.memory import VramResult
from qconv.validation import (
    ArtifactResult,
    BlockResult,
    LogitsResult,
    RuntimeResult,
    Spread,
    TensorResult,
    to_json,
    worst,
)
from qconv.validation._class_limits import CLASSES
from qconv.validation._gates import check_names, grid_class, judge

LARGE, SMALL, TINY = 7_000_000_000, 500_000_000, 100_000_000


def tensor(grid: str, bits: float, name: str = "model.layers.0.up.weight", rows: int = 64):
    return TensorResult(
        name=name, shape=(rows, 64), grid=grid, bits_per_weight=bits, relative_error=0.1, limit=0.2
    )


def logits(kl: float, *, p99: float = 0.0, top1: float = 1.0, ratio: float = 1.0) -> LogitsResult:
    return LogitsResult(
        scored="decoded weights",
        windows=2,
        tokens=100,
        kl=Spread(mean=kl, median=kl, p90=kl, p99=p99, p999=p99, max=p99),
        same_top1=top1,
        top5_overlap=1.0,
        perplexity=10 * ratio,
        reference_perplexity=10.0,
        perplexity_ratio=ratio,
        ratio_interval=(ratio, ratio),
        rms_probability=0.0,
    )


def artifact(found: LogitsResult | None, *tensors: TensorResult) -> ArtifactResult:
    return ArtifactResult(
        target="toy:int4",
        path="toy",
        grid_class="4-bit",
        bytes=1,
        bits_per_weight=4.5,
        tensors=tensors or (tensor("q4_0", 4.5),),
        logits=found,
        status="unmeasured",
    )


def test_a_norm_whose_change_its_weights_undo_counts_in_no_gate():
    norm = replace(
        tensor("F32", 32), name="norm", shape=(64,), relative_error=0.7, limit=None, rescaled=True
    )
    gates = judge(
        artifact(None, tensor("q4_0", 4.5), norm),
        {"error": 0.15},
        weights=LARGE,
        reason="nobody ran it",
    )
    found = {each.name: (each.value, each.status) for each in gates}
    assert found["weights"] == (0.5, "pass")
    assert found["error"] == (0.1, "pass")


def statuses(found: LogitsResult | None, weights: int = LARGE, **gates: float) -> dict[str, str]:
    return {
        each.name: each.status
        for each in judge(artifact(found), gates, weights=weights, reason="nobody ran it")
    }


@pytest.mark.parametrize(
    ("grid", "bits", "expected"),
    [
        ("Q8_0", 8.5, "8-bit"),
        ("q6_k", 6.56, "6-bit"),
        ("Q5_0", 5.5, "5-bit"),
        ("uint4_g32", 5.125, "4-bit"),
        ("nf4_b64", 4.5, "4-bit"),
        ("fp8_channel", 8.0, "8-bit"),
        ("q3_k", 3.44, "3-bit"),
        ("int2_g64", 2.25, "2-bit"),
        ("BF16", 16.0, "float"),
        ("something", 4.25, "4-bit"),
    ],
)
def test_a_class_is_known_by_the_bits_of_a_code(grid, bits, expected):
    assert grid_class([tensor(grid, bits)], inputs=False) == expected


def test_the_coarsest_type_of_a_quarter_of_the_weights_gives_the_class():
    few, many = tensor("q2_k", 2.6, rows=16), tensor("q4_k", 4.5, rows=64)
    assert grid_class([few, many], inputs=False) == "4-bit"
    assert grid_class([replace(few, shape=(32, 64)), many], inputs=False) == "2-bit"


def test_what_is_outside_the_blocks_gives_no_class():
    head = tensor("q2_k", 2.6, name="lm_head.weight", rows=6400)
    assert grid_class([head, tensor("q8_0", 8.5)], inputs=False) == "8-bit"


def test_rounded_inputs_are_a_class_of_their_own():
    assert grid_class([tensor("int8_channel", 8.0)], inputs=True) == "8-bit, inputs too"


def test_within_the_limit_passes_beyond_it_warns_and_twice_beyond_it_fails():
    assert statuses(logits(0.06))["kl"] == "pass"
    assert statuses(logits(0.061))["kl"] == "warn"
    assert statuses(logits(0.121))["kl"] == "fail"
    assert statuses(logits(0.0, top1=0.90))["top1"] == "pass"
    assert statuses(logits(0.0, top1=0.85))["top1"] == "warn"
    assert statuses(logits(0.0, top1=0.79))["top1"] == "fail"
    assert statuses(logits(0.0, ratio=1.05))["ppl"] == "warn"
    assert statuses(logits(0.0, ratio=1.09))["ppl"] == "fail"


def test_small_models_may_lose_more():
    assert statuses(logits(0.12), weights=SMALL)["kl"] == "pass"
    assert statuses(logits(0.13), weights=SMALL)["kl"] == "warn"
    assert statuses(logits(0.48, top1=0.56, ratio=1.47), weights=TINY) == {
        "weights": "pass",
        "kl": "pass",
        "kl_p99": "pass",
        "top1": "pass",
        "ppl": "pass",
    }
    assert statuses(logits(0.97), weights=TINY)["kl"] == "fail"


@pytest.mark.parametrize(
    ("grid", "limit"),
    [("8-bit", 0.01), ("8-bit, inputs too", 0.16), ("6-bit", 0.048), ("2-bit", 3.6)],
)
def test_how_much_more_a_small_model_may_lose_is_a_matter_of_its_class(grid, limit):
    for kl, expected in ((0.99 * limit, "pass"), (1.1 * limit, "warn"), (2.1 * limit, "fail")):
        made = replace(artifact(logits(kl)), grid_class=grid)
        gates = judge(made, {}, weights=TINY, reason="nobody ran it")
        assert {each.name: each.status for each in gates}["kl"] == expected


@pytest.mark.parametrize("weights", [LARGE, SMALL, TINY])
@pytest.mark.parametrize("grid", CLASSES)
def test_a_file_that_agrees_with_nothing_passes_in_no_class(grid, weights):
    made = replace(artifact(logits(9.0, top1=0.0, ratio=1e4)), grid_class=grid)
    found = judge(made, {}, weights=weights, reason="nobody ran it")
    worse = {each.name: each.status for each in found if each.name in {"kl", "top1", "ppl"}}
    assert set(worse.values()) <= {"warn", "fail"}
    assert worse["kl"] == worse["ppl"] == "fail"


def test_a_gate_asked_for_is_strict():
    assert statuses(logits(0.051), kl=0.05)["kl"] == "fail"
    assert statuses(logits(0.05), kl=0.05)["kl"] == "pass"
    assert statuses(logits(0.0, top1=0.97), top1=0.98)["top1"] == "fail"


def test_what_was_not_measured_is_unmeasured_with_its_reason():
    gates = judge(artifact(None), {"vram": 8.0}, weights=LARGE, reason="nobody ran it")
    found = {each.name: (each.status, each.value, each.why) for each in gates}
    assert found["kl"] == ("unmeasured", None, "nobody ran it")
    assert found["vram"] == ("unmeasured", None, "nobody ran it")
    assert found["weights"][0] == "pass"


def test_vram_is_what_was_measured_or_else_the_upper_end():
    predicted = VramResult(
        low=5, high=9, context=1, batch=1, cache_type="f16", runtime="llama.cpp", parts={}
    )
    made = replace(artifact(None), vram=predicted)
    (*_, gate) = judge(made, {"vram": 8.0}, weights=LARGE, reason="")
    assert (gate.value, gate.status) == (9, "fail")
    made = replace(artifact(None), vram=replace(predicted, measured=7))
    (*_, gate) = judge(made, {"vram": 8.0}, weights=LARGE, reason="")
    assert (gate.value, gate.status) == (7, "pass")


def test_an_unknown_gate_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match=r"no gate 'klm'; choose from agrees, beats, block"):
        check_names({"klm": 1.0})


def test_a_limit_that_is_no_number_is_refused():
    with pytest.raises(UsageError, match=r"gate 'kl': its limit nan must be a number from 0 up"):
        check_names({"kl": float("nan")})


def test_the_worst_status_wins_and_nothing_is_unmeasured():
    assert worst(["pass", "warn"]) == "warn"
    assert worst(["pass", "unmeasured", "warn"]) == "unmeasured"
    assert worst(["unmeasured", "fail"]) == "fail"
    assert worst([]) == "unmeasured"


def test_results_are_strict_json():
    made = to_json(replace(artifact(logits(float("nan"))), digests={"a": "b"}))
    assert made["logits"]["kl"]["mean"] == "NaN"
    assert made["tensors"][0]["shape"] == [64, 64]
    assert made["vram"] is None
    assert made["digests"] == {"a": "b"}


@pytest.mark.parametrize(
    ("grid", "weights", "limit"),
    [
        ("float", LARGE, 0.005),
        ("4-bit", LARGE, 0.02),
        ("4-bit", SMALL, 0.04),
        ("float", TINY, 0.01),
    ],
)
def test_an_engine_may_add_what_rounded_inputs_do_to_a_model_of_this_size(grid, weights, limit):
    ran = RuntimeResult(engine="toy", version=None, against_decoded=logits(1.5 * limit))
    result = replace(artifact(None), grid_class=grid, runtimes=(ran,))
    (gate,) = (
        each
        for each in judge(result, {}, weights=weights, reason="nobody ran it")
        if each.name == "engine"
    )
    assert (gate.limit, gate.status) == (pytest.approx(limit), "warn")


def test_every_gate_says_why_it_is_unmeasured():
    made = replace(artifact(None), tensors=())
    asked = {"error": 0.1, "vram": 8.0, "engine": 0.1, "block": 0.1}
    given = {"vram": "nobody knows this architecture", "engine": "no engine was run"}
    gates = judge(made, asked, weights=LARGE, reason="nobody ran it", reasons=given)
    assert {each.name: each.why for each in gates if each.name in asked} == {
        "error": "nothing was decoded",
        "vram": "nobody knows this architecture",
        "engine": "no engine was run",
        "block": "nobody ran it",
    }


@pytest.mark.parametrize(("share", "status"), [(0.9, "pass"), (1.5, "warn"), (2.5, "fail")])
def test_a_model_without_a_head_is_held_to_its_last_block(share, status):
    limit = CLASSES["4-bit"][1].block
    states = (
        BlockResult(name="encoder.layer.0", relative_error=9.0),
        BlockResult(name="encoder.layer.1", relative_error=share * limit),
    )
    made = replace(artifact(None), blocks=states)
    gates = judge(made, {}, weights=LARGE, reason="no head", predicts=False)
    assert [(each.name, each.status) for each in gates] == [("weights", "pass"), ("block", status)]
