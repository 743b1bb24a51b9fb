"""Vectors that a method changed: what their weights undo is no fault, a single channel off is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import qconv
from qconv.grids import UniformGrid
from qconv.validation._rescaled_vectors import Beside, unanswered
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
    assert words(norm / factors, norm, 1e-7, [other, reads]) is None
    told = words(norm * factors, norm, 1e-7, [other, reads])
    assert told == "no weight of its block undoes its change"


def test_a_norm_that_is_one_more_than_its_weight_is_known_by_its_weights(factors):
    weight, norm = normal(ROWS, CHANNELS), 0.1 * normal(CHANNELS, seed=2)
    reads = beside(weight, weight * factors)
    changed = (1 + norm) / factors - 1
    assert words(changed, norm, 1e-7, [reads]) is None
    changed[9] += 0.12
    assert "channel 9 is off" in words(changed, norm, 1e-7, [reads])


def test_a_bias_goes_with_the_rows_of_its_weight(factors):
    weight, bias = normal(CHANNELS, ROWS), normal(CHANNELS, seed=2)
    own = beside(weight, weight * factors[:, None], own=True)
    assert words(bias * factors, bias, 1e-7, [own]) is None
    assert words(bias / factors, bias, 1e-7, [own]) is not None


def test_rows_that_another_pair_rescaled_do_not_count(factors):
    weight, norm = normal(ROWS, CHANNELS), torch.ones(CHANNELS)
    rows = torch.exp(0.5 * normal(ROWS, 1, seed=3))
    assert words(norm / factors, norm, 1e-7, [beside(weight, weight * factors * rows)]) is None


def test_a_norm_that_is_scaled_as_a_whole_is_found(factors):
    weight, norm = normal(ROWS, CHANNELS), torch.ones(CHANNELS)
    reads = beside(weight, weight * factors)
    told = words(1.2 * norm / factors, norm, 1e-7, [reads])
    count = int(told.partition(", and ")[2].split()[0])
    assert count > 0.9 * CHANNELS


def test_a_sign_that_turned_and_weights_that_tell_nothing_answer_nothing(factors):
    weight, norm = normal(ROWS, CHANNELS), torch.ones(CHANNELS)
    turned = norm / factors
    turned[3] *= -1
    nothing = "no weight of its block undoes its change"
    assert words(turned, norm, 1e-7, [beside(weight, weight * factors)]) == nothing
    assert words(norm / factors, norm, 1e-7, []) == nothing
    zeros = Beside(found=torch.zeros(ROWS, CHANNELS), source=weight, grid=GRID, own=False)
    assert words(norm / factors, norm, 1e-7, [zeros]) == nothing


def test_channels_padded_with_zeros_need_no_answer(factors):
    weight, norm = normal(ROWS, CHANNELS), torch.ones(CHANNELS)
    weight[:, 96:], norm[96:] = 0, 0
    made = weight * factors
    assert words(norm / factors, norm, 1e-7, [beside(weight, made)]) is None


def test_two_bits_make_a_mismatch_odd_and_prove_nothing(factors):
    grid = UniformGrid(bits=2, symmetric=False, group_size=64)
    weight, norm = normal(ROWS, CHANNELS), torch.ones(CHANNELS)
    found = grid.decode(*grid.quantize(weight * factors))
    reads = Beside(found=found, source=weight, grid=grid, own=False)
    changed = norm / factors
    assert unanswered(changed, norm, 1e-7, [reads]) is None
    changed[9] *= 2
    told = unanswered(changed, norm, 1e-7, [reads])
    assert not told.sure
    assert told.words.startswith("channel 9 is off by a factor of ")
