"""Vectors that a method changed: what their weights undo is no fault, a single channel off is."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import qconv
from qconv.grids import UniformGrid
from qconv.validation import TensorResult, _settling
from qconv.validation._limits import rounding_step
from qconv.validation._rescaled_vectors import Beside, Change
from validation.damage import converted, edit_safetensors, faults_of, model_at, validated

ROWS, CHANNELS = 512, 128
GRID = UniformGrid(bits=4, symmetric=False, group_size=64)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return model_at(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def made(source, tmp_path_factory) -> Callable[[str, str], Path]:
    out = tmp_path_factory.mktemp("made")
    text = qconv.Calibration(windows=8, window_length=64)

    def by(target: str, method: str) -> Path:
        folder = out / f"{target.replace(':', '-')}-{method}"
        if not folder.exists():
            converted(source, target, folder, method=method, calibration=text)
        (artifact,) = folder.iterdir()
        return artifact

    return by


@pytest.mark.parametrize(
    ("target", "method"),
    [
        ("safetensors:int4,group_size=64", "awq"),
        ("safetensors:int4,group_size=64", "awq,gptq"),
        ("safetensors:int8", "smoothquant"),
        ("gguf:q4_k_m", "awq"),
        ("gguf:q2_k", "awq"),
    ],
)
def test_what_a_method_rescaled_is_no_fault(target, method, made, source):
    result = validated(made(target, method), source)
    assert faults_of(result) == {}
    assert any(each.rescaled and len(each.shape) == 1 for each in result.tensors)
    assert {each.name: each.status for each in result.gates}["weights"] == "pass"


@pytest.mark.parametrize(
    ("target", "method", "factor"),
    [
        ("safetensors:int4,group_size=64", "awq", 1.2),
        ("safetensors:int8", "smoothquant", 1.02),
    ],
)
def test_one_channel_of_a_norm_that_no_weight_undoes_is_found(
    target, method, factor, made, source, tmp_path
):
    name = "model.layers.0.post_attention_layernorm.weight"
    artifact = Path(shutil.copytree(made(target, method), tmp_path / "damaged"))
    edit_safetensors(artifact, lambda tensors: tensors[name][37].mul_(factor))
    found = faults_of(validated(artifact, source))
    assert list(found) == [name]
    told = float(found[name].partition("channel 37 is off by a factor of ")[2].split()[0])
    assert told == pytest.approx(factor, rel=0.03)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rounded(weight: torch.Tensor) -> torch.Tensor:
    return GRID.decode(*GRID.quantize(weight))


def unanswered(found, source, weights, stored: str = "F32"):
    change = Change(found, source, rounding_step(found, stored))
    for each in weights:
        change.take(each)
    return change.mismatch()


def words(*given) -> str | None:
    told = unanswered(*given)
    return None if told is None else told.words


def beside(source: torch.Tensor, made: torch.Tensor, *, own: bool = False) -> Beside:
    return Beside(found=rounded(made), source=source, grid=GRID, own=own)


@pytest.fixture(scope="module")
def factors() -> torch.Tensor:
    return torch.exp(0.2 * normal(CHANNELS, seed=1))


def test_a_norm_is_divided_by_what_its_columns_are_multiplied_by(factors):
    weight, norm = normal(ROWS, CHANNELS), 1 + 0.1 * normal(CHANNELS, seed=2)
    reads, other = (
        beside(weight, weight * factors),
        beside(normal(64, CHANNELS), normal(64, CHANNELS)),
    )
    assert words(norm / factors, norm, [other, reads]) is None
    told = words(norm * factors, norm, [other, reads])
    assert told == "no weight of its block undoes its change"


def test_a_norm_that_is_one_more_than_its_weight_is_known_by_its_weights(factors):
    weight, norm = normal(ROWS, CHANNELS), 0.1 * normal(CHANNELS, seed=2)
    reads = beside(weight, weight * factors)
    changed = (1 + norm) / factors - 1
    assert words(changed, norm, [reads]) is None
    changed[9] += 0.12
    assert "channel 9 is off" in words(changed, norm, [reads])


def test_a_bias_goes_with_the_rows_of_its_weight(factors):
    weight, bias = normal(CHANNELS, ROWS), normal(CHANNELS, seed=2)
    own = beside(weight, weight * factors[:, None], own=True)
    assert words(bias * factors, bias, [own]) is None
    assert words(bias / factors, bias, [own]) is not None


def test_rows_that_another_pair_rescaled_do_not_count(factors):
    weight, norm = normal(ROWS, CHANNELS), torch.ones(CHANNELS)
    rows = torch.exp(0.5 * normal(ROWS, 1, seed=3))
    assert words(norm / factors, norm, [beside(weight, weight * factors * rows)]) is None


def test_a_norm_that_is_scaled_as_a_whole_is_found(factors):
    weight, norm = normal(ROWS, CHANNELS), torch.ones(CHANNELS)
    reads = beside(weight, weight * factors)
    told = words(1.2 * norm / factors, norm, [reads])
    count = int(told.partition(", and ")[2].split()[0])
    assert count > 0.9 * CHANNELS


def test_a_sign_that_turned_and_weights_that_tell_nothing_answer_nothing(factors):
    weight, norm = normal(ROWS, CHANNELS), torch.ones(CHANNELS)
    turned = norm / factors
    turned[3] *= -1
    nothing = "no weight of its block undoes its change"
    assert words(turned, norm, [beside(weight, weight * factors)]) == nothing
    assert words(norm / factors, norm, []) == nothing
    zeros = Beside(found=torch.zeros(ROWS, CHANNELS), source=weight, grid=GRID, own=False)
    assert words(norm / factors, norm, [zeros]) == nothing


def test_channels_padded_with_zeros_need_no_answer(factors):
    weight, norm = normal(ROWS, CHANNELS), torch.ones(CHANNELS)
    weight[:, 96:], norm[96:] = 0, 0
    made = weight * factors
    assert words(norm / factors, norm, [beside(weight, made)]) is None


def test_two_bits_make_a_mismatch_odd_and_prove_nothing(factors):
    grid = UniformGrid(bits=2, symmetric=False, group_size=64)
    weight, norm = normal(ROWS, CHANNELS), torch.ones(CHANNELS)
    found = grid.decode(*grid.quantize(weight * factors))
    reads = Beside(found=found, source=weight, grid=grid, own=False)
    changed = norm / factors
    assert unanswered(changed, norm, [reads]) is None
    changed[9] *= 2
    told = unanswered(changed, norm, [reads])
    assert not told.sure
    assert told.words.startswith("channel 9 is off by a factor of ")


def test_a_bias_of_nothing_says_nothing_of_its_rows(factors):
    """Whatever its weights are multiplied by, it stays nothing; others are held to it as ever."""
    weight, bias = normal(CHANNELS, ROWS), normal(CHANNELS, seed=2)
    bias[[3, 70]] = 0
    strong = factors.clone()
    strong[3] = 5.0
    own = beside(weight, weight * strong[:, None], own=True)
    changed = bias * strong
    assert words(changed, bias, [own]) is None
    changed[9] *= 1.3
    assert "channel 9 is off" in words(changed, bias, [own])
    changed[9], changed[70] = bias[9] * strong[9], 0.5
    assert words(changed, bias, [own]) == "no weight of its block undoes its change"


def test_a_norm_of_nothing_leaves_the_columns_beside_its_own_alone(factors):
    weight, norm = normal(ROWS, CHANNELS), 1 + 0.1 * normal(CHANNELS, seed=2)
    norm[5] = 0
    strong = factors.clone()
    strong[5] = 30.0
    assert words(norm / strong, norm, [beside(weight, weight * strong)]) is None


def test_one_more_than_a_weight_in_bfloat16_may_be_off_by_more_than_the_weight():
    """Of 1 + w = 0.04 half a unit in the last place of w = -0.96 is 5 %."""
    weight, norm = normal(ROWS, CHANNELS), (0.1 * normal(CHANNELS, seed=2)).bfloat16()
    strong = torch.exp(0.2 * normal(CHANNELS, seed=1))
    strong[:20] = torch.linspace(2, 24, 20)
    changed = ((1 + norm.float()) / strong - 1).bfloat16()
    grid = UniformGrid(bits=8, symmetric=True, group_size="channel")
    found = grid.decode(*grid.quantize(weight * strong))
    reads = Beside(found=found, source=weight, grid=grid, own=False)
    assert unanswered(changed.float(), norm.float(), [reads], "BF16") is None
    changed[40] += 0.3
    told = unanswered(changed.float(), norm.float(), [reads], "BF16")
    assert told.words.startswith("channel 40 is off")


def test_small_values_of_a_bias_in_float16_may_be_off_by_a_step(factors):
    weight, bias = normal(CHANNELS, ROWS), normal(CHANNELS, seed=2)
    bias[:5] = torch.tensor([3e-7, 8e-7, 2e-6, 5e-6, 4e-8])
    strong = factors.clone()
    strong[4] = 0.5  # 2e-8, which float16 has no number for
    own = beside(weight, weight * strong[:, None], own=True)
    changed = (bias * strong).half().float()
    assert changed[4] == 0
    assert unanswered(changed, bias, [own], "F16") is None
    changed[3] *= 1.5
    assert "channel 3 is off" in unanswered(changed, bias, [own], "F16").words


@pytest.mark.parametrize(
    ("stored", "value", "step"),
    [
        ("F16", 1.0, 2.0**-11),
        ("F16", 1.9, 2.0**-11),
        ("F16", 3e-7, 2.0**-25),
        ("F16", 0.0, 2.0**-25),
        ("BF16", -0.96, 2.0**-9),
        ("F32", 1.0, 2.0**-24),
        ("Q8_0", 1.0, 0.0),
    ],
)
def test_a_step_of_rounding_is_half_a_unit_in_the_last_place(stored, value, step):
    assert float(rounding_step(torch.tensor([value]), stored)) == step


class Counted:
    """Weights of a block of 12 experts and two norms that changed, which count what is read."""

    def __init__(self, factors: torch.Tensor) -> None:
        self.reads: list[str] = []
        self.alive: list[weakref.ref[torch.Tensor]] = []
        self.most = 0
        norm = torch.ones(CHANNELS)
        self.tensors = {"layers.0.a": (norm / factors, norm), "layers.0.b": (norm / factors, norm)}
        for each in range(12):
            weight = normal(ROWS, CHANNELS, seed=each)
            self.tensors[f"layers.0.{each}.up"] = (rounded(weight * factors), weight)
        dtypes = {name: SimpleNamespace(dtype="F32") for name in self.tensors}
        self.match = SimpleNamespace(
            grid=lambda plan: GRID if len(self.tensors[plan.name][0]) == ROWS else None,
            reader=SimpleNamespace(tensors=dtypes),
        )

    def jobs(self):
        for name, (found, _) in self.tensors.items():
            rows = found.numel() // CHANNELS
            yield (
                SimpleNamespace(rows=rows, columns=CHANNELS),
                SimpleNamespace(name=name, shape=found.shape),
            )

    def found(self, job, plan) -> torch.Tensor:
        self.reads.append(plan.name)
        decoded = self.tensors[plan.name][0].clone().reshape(job.rows, job.columns)
        self.alive = [each for each in self.alive if each() is not None]
        self.most = max(self.most, len(self.alive))
        if job.rows > 1:
            self.alive.append(weakref.ref(decoded))
        return decoded

    def expected(self, job, plan, start, stop) -> torch.Tensor:
        return self.tensors[plan.name][1].reshape(job.rows, job.columns)[start:stop]


def changed_vector(name: str, *shape: int) -> TensorResult:
    return TensorResult(
        name=name,
        shape=shape,
        grid="F32",
        bits_per_weight=32,
        relative_error=0.2,
        limit=1e-7,
        rescaled=True,
    )


def test_a_matrix_of_one_row_goes_with_the_columns_of_its_block(factors):
    """As the gate of shared experts does, which reads their norm."""
    values, source = Counted(factors), normal(1, CHANNELS, seed=50)
    values.tensors["layers.0.gate"] = (source * factors, source)
    values.match.reader.tensors["layers.0.gate"] = SimpleNamespace(dtype="BF16")
    gate = changed_vector("layers.0.gate", 1, CHANNELS)
    (found,) = _settling.settled([gate], list(values.jobs()), values)
    assert (found.limit, found.faults) == (None, ())
    values.tensors["layers.0.gate"][0][0, 7] *= 1.3
    (found,) = _settling.settled([gate], list(values.jobs()), values)
    assert "channel 7 is off" in found.faults[0]
    assert not found.rescaled


def test_each_weight_is_decoded_once_for_all_norms_and_let_go(factors, monkeypatch):
    values = Counted(factors)
    taken = []
    take = Change.take
    monkeypatch.setattr(
        Change, "take", lambda self, each: (taken.append(each.source.shape[0]), take(self, each))
    )
    monkeypatch.setattr(_settling, "_VALUES", 12 * 128 * CHANNELS)
    norms = [changed_vector(name, CHANNELS) for name in ("layers.0.a", "layers.0.b")]
    found = _settling.settled(norms, list(values.jobs()), values)
    assert [(each.limit, each.faults) for each in found] == [(None, ()), (None, ())]
    assert sorted(values.reads) == sorted(values.tensors)
    assert values.most == 0  # those before it
    assert taken == [128] * 24  # of 512 rows each, so that all together keep to their number
