"""Artifacts beside one another: what a method gains on plain rounding, and formats that agree."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import jsonschema
import numpy as np
import pytest

import qconv
from qconv.cli._run import run
from qconv.errors import Unsupported, UsageError
from qconv.validation import ArtifactResult, LogitsResult, Spread, _relative, _validate
from qconv.validation._agreement import Agreement
from qconv.validation._bootstrap import kl_ratio
from qconv.validation._relative import Validated, with_relative_gates
from validation.damage import converted, edit_gguf, edit_safetensors, model_at

if TYPE_CHECKING:
    import torch

FEW = {"windows": 16, "window_length": 32, "device": "cpu"}
TARGET = "safetensors:int4,group_size=64"
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return model_at(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    """Artifacts by target and what they are calibrated on, each in a folder of its own."""
    out, known = tmp_path_factory.mktemp("made"), {}

    def by(target: str, calibration: qconv.Calibration | None = None) -> Path:
        key = (target, repr(calibration))
        if key not in known:
            method = "rtn" if calibration is None else "gptq"
            known[key] = converted(
                source, target, out / str(len(known)), method=method, calibration=calibration
            )
        return known[key]

    return by


@pytest.fixture(scope="module")
def baseline(made) -> Path:
    return made(TARGET)


def unseen(*_: object) -> None:
    pass


def gate(result, name: str):
    return next((each for each in result.gates if each.name == name), None)


# --- beats ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def better(source, made, baseline):
    """A validation of GPTQ on enough text beside plain rounding."""
    gptq = made(TARGET, qconv.Calibration(windows=16, window_length=128))
    return qconv.validate(gptq, source, baseline=baseline, **FEW)


def test_a_method_that_loses_clearly_less_than_plain_rounding_passes(better):
    (result,), (baseline,) = better.artifacts, better.baselines
    found = gate(result, "beats")
    ratio = sum(result.logits.window_kl) / sum(baseline.logits.window_kl)
    assert result.baseline.kl_ratio == pytest.approx(ratio)
    assert result.baseline.interval[0] < ratio < result.baseline.interval[1] == found.value < 1
    assert (found.status, found.limit, found.relation) == ("pass", 1.0, "<=")
    assert "times the KL divergence of tiny-INT4 (95 %: " in found.why


def test_a_baseline_is_measured_and_not_judged(better):
    (baseline,) = better.baselines
    assert baseline.logits.windows == 16
    assert gate(baseline, "beats") is None
    assert better.settings["baselines"] == ["tiny-INT4"]
    schema = Path(__file__).parents[2] / "schemas" / "validation.schema.json"
    jsonschema.validate(better.to_json(), json.loads(schema.read_text(encoding="utf-8")))


def test_a_method_that_loses_clearly_more_than_plain_rounding_fails(
    source, made, baseline, tmp_path
):
    """GPTQ on a single sentence does."""
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 400, encoding="utf-8")
    gptq = made(TARGET, qconv.Calibration(source=text, windows=4, window_length=64))
    (result,) = qconv.validate(gptq, source, baseline=baseline, **FEW).artifacts
    assert result.baseline.interval[0] > 1
    assert gate(result, "beats").status == "fail"
    assert result.status == "fail"


def test_what_is_no_better_than_the_baseline_is_a_warning(source, baseline, tmp_path):
    same = Path(shutil.copytree(baseline, tmp_path / "same"))
    options = {**FEW, "windows": 2}
    (result,) = qconv.validate(same, source, baseline=baseline, **options).artifacts
    assert (result.baseline.kl_ratio, result.baseline.interval) == (1, (1, 1))
    assert gate(result, "beats").status == "warn"
    (asked,) = qconv.validate(
        same, source, baseline=baseline, gates={"beats": 0.9}, **options
    ).artifacts
    assert gate(asked, "beats").status == "fail"


def test_a_baseline_of_another_grid_measures_nothing(source, made, baseline, capsys):
    other = made("safetensors:int4,group_size=32")
    words = ["validate", str(other), "--baseline", str(baseline), "--against", str(source)]
    assert run([*words, "--depth", "bytes"]) == 6
    printed = " ".join(capsys.readouterr().out.split())
    assert "is of another grid: 'model.layers.0" in printed
    assert "is uint4_g32 here, and uint4_g64 there; make it for the same target" in printed


def test_a_baseline_takes_a_depth_that_runs_models(source, made, baseline):
    options = {"baseline": baseline, "depth": "bytes"}
    (result,) = qconv.validate(made(TARGET + ",symmetric=false"), source, **options).artifacts
    found = gate(result, "beats")
    assert (found.status, found.why) == ("unmeasured", "depth bytes runs no model")


def test_a_baseline_runs_in_no_engine_and_its_memory_is_not_measured(
    source, made, baseline, monkeypatch
):
    """Predictions of its decoded weights are all that artifacts are held to."""
    run_in, measured = [], {}

    def engine(host, path, *_):
        run_in.append(path)
        raise Unsupported("there is no engine here")

    def memory(path, **options):
        measured[path] = options["measured"]
        return None, "nobody measured it"

    monkeypatch.setattr(_validate, "Engine", engine)
    monkeypatch.setattr(_validate, "device_memory", memory)
    other = made("safetensors:int4,group_size=32")
    options = {**FEW, "windows": 2, "depth": "runtime", "measure": True}
    found = qconv.validate(other, source, baseline=baseline, gates={"engine": 1}, **options)
    assert run_in == [other]
    assert measured == {other: True, baseline: False}
    assert found.baselines[0].logits is not None
    assert gate(found.baselines[0], "engine") is None
    assert gate(found.artifacts[0], "engine").status == "unmeasured"


def test_a_damaged_baseline_measures_nothing(source, made, baseline, tmp_path):
    damaged = Path(shutil.copytree(baseline, tmp_path / "damaged"))
    edit_safetensors(damaged, lambda tensors: tensors.pop("model.norm.weight"))
    (result,) = qconv.validate(baseline, source, baseline=damaged, depth="bytes").artifacts
    assert gate(result, "beats").why == "the baseline damaged is damaged"


def test_a_baseline_is_something_to_beat(source, baseline):
    with pytest.raises(UsageError, match="gate 'beats' needs something to beat; name it with --b"):
        qconv.validate(baseline, source, gates={"beats": 1.0})
    with pytest.raises(UsageError, match="every artifact is a baseline; name one that must beat"):
        qconv.validate(baseline, source, baseline=baseline)


def test_a_ratio_is_of_the_means_and_its_interval_of_windows_drawn_in_pairs():
    hard = [0.1, 1.0, 0.2, 3.0, 0.4, 2.0, 0.3, 0.5]
    ratio, (low, high) = kl_ratio([0.5 * each for each in hard], hard)
    assert ratio == pytest.approx(0.5)
    assert (low, high) == pytest.approx((0.5, 0.5))  # in pairs: one is half of the other everywhere
    mixed = [0.09, 1.1, 0.15, 2.0, 0.5, 1.5, 0.25, 0.6]
    ratio, (low, high) = kl_ratio(mixed, hard)
    assert ratio == pytest.approx(sum(mixed) / sum(hard))
    assert 0.5 < low < ratio < high < 1.2
    assert kl_ratio(mixed, hard) == (ratio, (low, high))


def test_one_window_says_nothing_and_nothing_lost_is_no_gain():
    assert kl_ratio([0.1], [0.2]) == (0.5, (0.0, math.inf))
    assert kl_ratio([0.0, 0.0], [0.0, 0.0]) == (1.0, (1.0, 1.0))
    assert kl_ratio([0.1, 0.1], [0.0, 0.0]) == (math.inf, (math.inf, math.inf))


@pytest.mark.parametrize("windows", [2, 3, 4, 7, 8])
def test_equal_methods_are_told_apart_no_more_often_than_chance_allows(windows):
    """Text is hard or easy for both alike; what each method loses of a window differs by chance."""
    trials, told = 300, 0
    drawn = np.random.default_rng(windows)
    for _ in range(trials):
        hard = np.exp(drawn.normal(0, 0.5, windows))
        mine, theirs = (hard * np.exp(drawn.normal(0, 0.2, windows)) for _ in range(2))
        _, (low, high) = kl_ratio(mine.tolist(), theirs.tolist())
        told += high < 1 or low > 1
    assert told <= 0.08 * trials  # 5 %, and twice and a half what 300 trials may be off


def test_few_windows_that_all_say_the_same_tell_methods_apart():
    hard = [0.1, 0.3, 0.2, 0.15]
    _, (low, high) = kl_ratio([0.5, 0.16, 0.1, 0.08], hard)
    assert low < 1 < high  # one of them says otherwise
    _, (low, high) = kl_ratio([0.05, 0.16, 0.1, 0.08], hard)
    assert 0.4 < low < high < 0.7
    assert kl_ratio([0.0, 0.1], [0.1, 0.1])[1] == (0.0, math.inf)


def with_windows(path: str, *window_kl: float) -> Validated:
    """An artifact on no grid, of which only its divergences are known."""
    spread = Spread(mean=0.1, median=0.1, p90=0.1, p99=0.1, p999=0.1, max=0.1)
    scored = LogitsResult(
        scored="decoded weights",
        windows=len(window_kl),
        tokens=9,
        kl=spread,
        same_top1=1.0,
        top5_overlap=1.0,
        perplexity=1.0,
        reference_perplexity=1.0,
        perplexity_ratio=1.0,
        ratio_interval=(1.0, 1.0),
        rms_probability=0.0,
        window_kl=window_kl,
    )
    result = ArtifactResult(
        target="toy:int4",
        path=path,
        grid_class="4-bit",
        bytes=1,
        bits_per_weight=4.5,
        logits=scored,
        status="pass",
    )
    empty = SimpleNamespace(reader=SimpleNamespace(tensors={}), jobs=list)
    return Validated(result=result, match=empty)


def beaten(mine: Validated, theirs: Validated):
    (result,) = with_relative_gates([mine], [theirs], None, {}, progress=unseen)
    return gate(result, "beats")


def test_too_few_windows_to_tell_ask_for_more():
    found = beaten(with_windows("mine", 0.1, 0.3), with_windows("rtn", 0.2, 0.2))
    assert found.status == "warn"
    assert found.why.endswith("; that is of 2 windows, give 8 or more to tell (--windows)")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergences_that_are_no_numbers_measure_nothing(value):
    sound, broken = with_windows("sound", 0.1, 0.3), with_windows("broken", 0.2, value)
    for pair in ((sound, broken), (broken, sound)):
        found = beaten(*pair)
        assert (found.status, found.value) == ("unmeasured", None)
        assert found.why == "the KL divergence of broken is no finite number in some windows"


# --- agrees ---------------------------------------------------------------------------------------

GPTQ, GPTQ_V2 = (f"safetensors:{name},group_size=64" for name in ("gptq", "gptq_v2"))


def beside(one: Path, other: Path, source: Path, **gates: float):
    """The second artifact's gate."""
    found = qconv.validate([one, other], source, depth="bytes", gates=gates)
    assert gate(found.artifacts[0], "agrees") is None
    return gate(found.artifacts[1], "agrees")


def test_two_formats_of_one_grid_that_hold_the_same_values_agree(source, made):
    found = beside(made(GPTQ), made(GPTQ_V2), source)
    assert (found.value, found.limit, found.status) == (0, 0, "pass")
    assert found.why == "all 16 tensors equal those of tiny-GPTQ"


def test_two_formats_that_differ_in_one_value_do_not_agree(source, made, tmp_path):
    other = Path(shutil.copytree(made(GPTQ_V2), tmp_path / "other"))

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{UP}.qweight"][3, 5] ^= 1  # the lowest bit of a code

    edit_safetensors(other, change)
    found = beside(made(GPTQ), other, source)
    assert 0 < found.value < 0.1
    assert found.status == "fail"
    assert found.why == f"15 of 16 tensors equal those of tiny-GPTQ, but not '{UP}.weight'"


def test_scales_of_another_dtype_round_a_few_values_otherwise(source, made):
    found = beside(made(GPTQ), made("safetensors:int4,group_size=64,symmetric=true"), source)
    assert 0 < found.value < found.limit == 0.5
    assert found.why == "all 16 tensors are rounded as those of tiny-GPTQ"


def test_what_is_no_number_on_one_side_agrees_with_nothing(source, made, tmp_path):
    other = Path(shutil.copytree(made(GPTQ_V2), tmp_path / "other"))

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"][3, 5] = math.nan

    edit_safetensors(other, change)
    for one, two in ((made(GPTQ), other), (other, made(GPTQ))):
        found = beside(one, two, source)
        assert (found.value, found.status) == (math.inf, "fail")
        assert found.why.endswith("but not 'model.embed_tokens.weight'")


def test_two_methods_on_one_grid_need_not_agree_unless_asked_to(source, made, tmp_path):
    text = qconv.Calibration(windows=16, window_length=128)
    assert beside(made(TARGET), made(TARGET, text), source) is None
    found = beside(made(TARGET), made(TARGET, text), source, agrees=0.5)
    assert found.status == "fail"
    assert found.why.startswith("tiny-INT4 is of another method, or one of them is wrong: first ")


def test_artifacts_of_two_grids_cannot_agree(source, made):
    assert beside(made(GPTQ), made(TARGET), source) is None
    found = beside(made(GPTQ), made(TARGET), source, agrees=0)
    assert (found.status, found.why) == ("unmeasured", "no artifact before it lies on its grids")


def test_formats_of_two_backends_are_compared_by_the_names_of_the_source(source, made, tmp_path):
    """A GGUF has its rows in another order; a copy of it agrees, a damaged one does not."""
    gguf = made("gguf:q4_0")
    other = Path(shutil.copy(gguf, tmp_path / "other.gguf"))
    assert beside(gguf, other, source).status == "pass"

    def change(rows) -> None:
        rows[2, 20] ^= 1

    edit_gguf(other, "blk.1.attn_q.weight", change)
    found = beside(gguf, other, source)
    assert found.status == "fail"
    assert "but not 'model.layers.1.self_attn.q_proj.weight'" in found.why


def test_each_artifact_is_compared_with_one_of_each_method_before_it(monkeypatch):
    compared = []

    def told(one, other, source, *, progress):
        compared.append((one, other))
        same = one[0] == other[0]
        return Agreement(
            same=same, equal=same, worst=0.0 if same else 0.9, tensor="up", differing=0, compared=1
        )

    monkeypatch.setattr(_relative, "agreement", told)
    made = [replace(with_windows(path, 0.1), match=path) for path in ("a1", "a2", "b1", "b2", "a3")]
    results = with_relative_gates(made, [], None, {}, progress=unseen)
    words = [getattr(gate(each, "agrees"), "why", None) for each in results]
    assert [each and each.rpartition(" ")[2] for each in words] == [None, "a1", None, "b1", "a1"]
    others = [("a1", "a2"), ("a1", "b1"), ("a1", "b2"), ("b1", "b2"), ("a1", "a3")]
    assert compared == others


def test_a_comparison_of_artifacts_tells_how_far_it_is(source, made, tmp_path):
    gguf = made("gguf:q4_0")
    other = Path(shutil.copy(gguf, tmp_path / "other.gguf"))
    seen = []
    qconv.validate([gguf, other], source, depth="bytes", progress=lambda *each: seen.append(each))
    beside = [(done, total) for name, done, total in seen if name.startswith("model.layers.")]
    assert [done for done, _ in beside] == sorted({done for done, _ in beside})
    assert {total for _, total in beside} == {seen[-1][1]}  # it ends when all is done


def test_what_cannot_be_decoded_is_a_fault_and_no_crash(source, made, tmp_path):
    damaged = Path(shutil.copytree(made(GPTQ_V2), tmp_path / "damaged"))
    edit_safetensors(damaged, lambda tensors: tensors.pop(f"{UP}.scales"))
    found = qconv.validate([made(GPTQ), damaged], source, depth="bytes")
    assert found.status == "fail"
    assert gate(found.artifacts[1], "agrees") is None
