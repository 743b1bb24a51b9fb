"""What is odd and may be right is a warning: no failure, and not passed over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import qconv
from qconv.cli._run import run
from qconv.validation._comparison import compare
from validation.damage import converted, edit_safetensors, faults_of, model_at, validated

UP = "model.layers.0.mlp.up_proj.weight"
LOST = "what rounding left of it is no better than zeros (relative error 1)"


@pytest.fixture
def source(tmp_path) -> Callable[[Callable[[torch.Tensor], object]], Path]:
    """A model with one matrix changed."""

    def of(change: Callable[[torch.Tensor], object]) -> Path:
        folder = model_at(tmp_path / "tiny")
        tensors = load_file(folder / "model.safetensors")
        change(tensors[UP])
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder

    return of


def warnings_of(result) -> dict[str, tuple[str, ...]]:
    return {each.name: each.warnings for each in result.tensors if each.warnings}


@pytest.mark.parametrize("target", ["gguf:q4_0", "gguf:f16"])
def test_a_tensor_of_which_nothing_is_left_is_a_warning(target, source, tmp_path):
    """Its scales, and it itself, are below the smallest value of float16."""
    folder = source(lambda weight: weight.mul_(1e-9))
    result = validated(converted(folder, target, tmp_path / "out"), folder)
    assert (result.faults, faults_of(result)) == ((), {})
    assert warnings_of(result) == {"blk.0.ffn_up.weight": (LOST,)}


def test_a_warning_makes_a_pass_a_warning(source, tmp_path, capsys):
    folder = source(lambda weight: weight.mul_(1e-9))
    artifact = converted(folder, "gguf:q8_0", tmp_path / "out")
    few = {"windows": 2, "window_length": 32, "device": "cpu"}
    result = validated(artifact, folder, depth="model", **few)
    assert {each.status for each in result.gates} == {"pass"}
    assert result.status == "warn"
    assert run(["validate", str(artifact), "--against", str(folder), "--depth", "bytes"]) == 0
    printed = capsys.readouterr().out
    assert f"  warning: tensor 'blk.0.ffn_up.weight' (q8_0): {LOST}" in printed


def test_a_constant_matrix_is_held_to_what_its_grid_does_to_it_rescaled(source, tmp_path):
    """As it was, two bits hold it exactly; what AWQ makes of it they do not."""
    folder = source(lambda weight: weight.fill_(0.02))
    artifact = converted(
        folder,
        "gguf:q2_k",
        tmp_path / "out",
        method="awq",
        calibration=qconv.Calibration(windows=4, window_length=64),
    )
    result = validated(artifact, folder)
    assert (result.faults, faults_of(result)) == ((), {})
    (up,) = (each for each in result.tensors if each.name == "blk.0.ffn_up.weight")
    assert up.rescaled
    assert up.relative_error < up.limit < 0.2


def test_a_tensor_too_many_is_a_warning(source, tmp_path):
    folder = source(lambda weight: None)
    artifact = converted(folder, "safetensors:int4,group_size=64", tmp_path / "out")

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["extra"] = torch.ones(4)

    edit_safetensors(artifact, add)
    result = validated(artifact, folder)
    assert result.faults == ()
    assert result.warnings == (
        "1 tensors are in the artifact that were not planned, 'extra' first",
    )
    assert json.dumps(qconv.validate(artifact, folder, depth="bytes").to_json()).count("'extra'")


def compared(found: torch.Tensor, source: torch.Tensor):
    return compare(found, lambda a, b: source[a:b], 32, rounding=0.1)


def test_blocks_of_zeros_are_a_fault_where_they_held_something_and_odd_where_little():
    source = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    source[5, 32:64] *= 0.2
    found = source.clone()
    found[5, 32:64] = 0
    result = compared(found, source)
    assert result.faults == ()
    assert result.warnings == (
        "1 of 256 blocks hold little, and decode to zeros only: first row 5, columns 32 to 63",
    )
    found[6, :32] = 0
    assert (
        "decode to zeros only (a scale of zero?): first row 6, columns 0"
        in (compared(found, source).faults[0])
    )


def test_errors_of_equal_values_point_one_way_and_tell_nothing():
    source = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    source[5, 32:64] = 1.0
    found = source.clone()
    found[5, 32:64] = 1.3
    assert compared(found, source).faults == ()
    source[5, 32:64] += torch.linspace(-1, 1, 32)
    found[5, 32:64] = source[5, 32:64] + 0.35
    assert "are shifted as a whole (a zero-point off?)" in compared(found, source).faults[0]
