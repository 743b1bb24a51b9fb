"""Transcoding: which grid holds the values that a tensor already has."""

from __future__ import annotations

from dataclasses import replace

import pytest
from safetensors_driver import files, llama, plan, request, settings

from qconv.errors import Unsupported, UnsupportedGrid, UsageError
from qconv.grids import CodebookGrid, FloatGrid, Grid, UniformGrid

ASYMMETRIC = UniformGrid(bits=4, symmetric=False, group_size=128, scale_dtype="bfloat16")
SYMMETRIC = replace(ASYMMETRIC, symmetric=True)
FIRST = "model.layers.0.mlp.up_proj.weight"
SECOND = "model.layers.1.mlp.up_proj.weight"


def grids(target: str, held: dict[str, Grid]) -> dict[str, Grid]:
    plans = plan(llama(), target, method=(), held=held)
    return {each.name: each.grid for each in plans.tensors if each.grid is not None}


@pytest.mark.parametrize(
    ("target", "held", "found"),
    [
        ("int4", ASYMMETRIC, ASYMMETRIC),
        ("int4", replace(SYMMETRIC, narrow=True), SYMMETRIC),
        ("gptq_v2", ASYMMETRIC, replace(ASYMMETRIC, scale_dtype="float16")),
        ("gptq", SYMMETRIC, replace(SYMMETRIC, scale_dtype="float16")),
        ("awq", ASYMMETRIC, replace(ASYMMETRIC, scale_dtype="float16")),
        ("awq", SYMMETRIC, replace(ASYMMETRIC, scale_dtype="float16")),
        ("fp8", FloatGrid(scope="tensor"), FloatGrid(scope="tensor")),
        ("nf4", CodebookGrid(codebook="nf4"), CodebookGrid(codebook="nf4")),
    ],
)
def test_held_values_keep_a_grid_that_holds_them(target: str, held: Grid, found: Grid) -> None:
    assert grids(target, {FIRST: held}) == {FIRST: found}


def test_what_is_not_held_stays_float() -> None:
    plans = plan(llama(), "int4", method=(), held={FIRST: ASYMMETRIC})
    assert [each.name for each in plans.tensors if each.action == "quantize"] == [FIRST]


def test_symmetric_and_asymmetric_tensors_meet_on_asymmetric_gptq() -> None:
    found = grids("gptq_v2", {FIRST: ASYMMETRIC, SECOND: SYMMETRIC})
    assert [grid.spec()["symmetric"] for grid in found.values()] == [False, False]


def test_several_grids_become_several_groups() -> None:
    held = {FIRST: ASYMMETRIC, SECOND: replace(ASYMMETRIC, group_size=64)}
    groups = settings(llama(), "int4", method=(), held=held)["config_groups"]
    assert groups["group_0"]["targets"] == ["Linear"]
    assert groups["group_0"]["weights"]["group_size"] == 128
    assert groups["group_1"]["targets"] == ["model.layers.1.mlp.up_proj"]
    assert groups["group_1"]["weights"]["group_size"] == 64


@pytest.mark.parametrize("target", ["gptq", "gptq_v2", "awq"])
def test_several_group_sizes_are_refused_where_one_must_do(target: str) -> None:
    held = {FIRST: ASYMMETRIC, SECOND: replace(ASYMMETRIC, group_size=64)}
    with pytest.raises(Unsupported, match=r"lie on 2 grids: uint4_g128 .*use safetensors:int4"):
        grids(target, held)


@pytest.mark.parametrize(
    ("target", "held"),
    [
        ("int4", CodebookGrid(codebook="nf4")),
        ("gptq", FloatGrid(scope="channel")),
        ("awq", replace(ASYMMETRIC, bits=3)),
        ("gptq_v2", replace(ASYMMETRIC, bits=5)),
        ("fp8", ASYMMETRIC),
        ("fp4", CodebookGrid(codebook="nf4")),
        ("int8", replace(SYMMETRIC, group_size="tensor")),
        ("int8", ASYMMETRIC),
    ],
)
def test_values_that_a_format_cannot_hold_are_refused_by_name(target: str, held: Grid) -> None:
    with pytest.raises(UnsupportedGrid, match=f"tensor '{FIRST}' lies on grid {held.name}, whose"):
        grids(target, {FIRST: held})


def test_plain_formats_take_held_values_as_floats() -> None:
    assert grids("bf16", {FIRST: ASYMMETRIC}) == {}


def test_options_that_the_values_decide_are_refused() -> None:
    with pytest.raises(UsageError, match="option 'group_size' cannot be chosen in a transcoding"):
        plan(llama(), "int4", method=(), held={FIRST: ASYMMETRIC}, group_size="64")


def test_the_folder_is_named_after_the_bits_that_are_held() -> None:
    asked = request(llama(), "int4", method=(), held={FIRST: replace(ASYMMETRIC, bits=3)})
    assert {path.partition("/")[0] for path in files(asked)} == {"tiny-INT3"}
