"""Damaged GGUF files: each damage is found, at depth bytes, and the tensor named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import qconv
from qconv.errors import GateFailed
from validation.damage import (
    converted,
    edit_gguf,
    faults_of,
    model_at,
    replace_in,
    validated,
)

UP = "blk.1.ffn_up.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return model_at(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def sound(source, tmp_path_factory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("sound")
    return {name: converted(source, f"gguf:{name}", out) for name in ("q4_0", "q4_1", "q4_k_m")}


@pytest.fixture
def artifact(sound, tmp_path):
    def copy(name: str) -> Path:
        return Path(shutil.copy(sound[name], tmp_path))

    return copy


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q4_k_m"])
def test_a_sound_file_has_no_faults_and_is_known_for_what_it_is(name, sound, source):
    result = validated(sound[name], source)
    assert result.target == f"gguf:{name}"
    assert (result.faults, faults_of(result)) == ((), {})
    assert result.status == "unmeasured"  # nobody ran it
    assert all(each.relative_error is not None for each in result.tensors)
    assert len(result.digests) == 1


def test_a_scale_with_the_wrong_sign_is_found(artifact, source):
    path = artifact("q4_0")

    def flip(rows: np.ndarray) -> None:
        rows[7, 18 * 3 + 1] ^= 0x80  # the sign of the fourth block's float16 scale

    edit_gguf(path, UP, flip)
    result = validated(path, source)
    assert result.status == "fail"
    assert list(faults_of(result)) == [UP]
    assert "a wrong scale?): first row 7, columns 96 to 127" in faults_of(result)[UP]


def test_a_scale_of_zero_is_found(artifact, source):
    path = artifact("q4_0")

    def clear(rows: np.ndarray) -> None:
        rows[0, :2] = 0

    edit_gguf(path, UP, clear)
    assert (
        "decode to zeros only (a scale of zero?): first row 0, columns 0 to 31"
        in (faults_of(validated(path, source))[UP])
    )


def test_a_scale_that_is_no_number_is_found(artifact, source):
    path = artifact("q4_0")

    def spoil(rows: np.ndarray) -> None:
        rows[2, 18:20] = (0x00, 0x7E)  # NaN

    edit_gguf(path, UP, spoil)
    result = validated(path, source)
    assert "row 2, column 32 is nan, and 31 more values are not finite" in faults_of(result)[UP]
    assert result.status == "fail"


def test_an_offset_that_is_one_step_off_is_found(artifact, source):
    path = artifact("q4_1")

    def shift(rows: np.ndarray) -> None:
        block = rows[5, :4].view(np.float16)  # scale and minimum
        block[1] += block[0]

    edit_gguf(path, UP, shift)
    assert (
        "shifted as a whole (a zero-point off?): first row 5, columns 0 to 31"
        in (faults_of(validated(path, source))[UP])
    )


def test_super_block_scales_are_looked_at_too(artifact, source):
    path = artifact("q4_k_m")

    def flip(rows: np.ndarray) -> None:
        rows[1, 1] ^= 0x80

    edit_gguf(path, "blk.0.ffn_gate.weight", flip)
    assert faults_of(validated(path, source)) == {
        "blk.0.ffn_gate.weight": "1 of 512 blocks hold something else than the source: first row "
        "1, columns 0 to 255"  # its minima are not turned, so that it is no multiple
    }


def test_rows_in_the_order_of_another_format_are_found(artifact, source):
    path = artifact("q4_0")

    def unordered(rows: np.ndarray) -> None:
        heads = rows.reshape(4, 32, 2, -1)  # pairs side by side, as llama.cpp has them
        rows[:] = heads.transpose(0, 2, 1, 3).reshape(rows.shape)  # halves apart

    edit_gguf(path, "blk.0.attn_q.weight", unordered)
    fault = faults_of(validated(path, source))["blk.0.attn_q.weight"]
    assert "its row 1 is what row 2 should be: rows in another order?" in fault


def test_tensors_that_changed_places_are_found_and_told_apart(artifact, source):
    path = artifact("q4_0")
    held: dict[str, np.ndarray] = {}
    for name in ("blk.0.ffn_up.weight", "blk.0.ffn_gate.weight"):
        edit_gguf(path, name, lambda rows, name=name: held.update({name: rows.copy()}))
    edit_gguf(
        path, "blk.0.ffn_up.weight", lambda rows: np.copyto(rows, held["blk.0.ffn_gate.weight"])
    )
    edit_gguf(
        path, "blk.0.ffn_gate.weight", lambda rows: np.copyto(rows, held["blk.0.ffn_up.weight"])
    )
    found = faults_of(validated(path, source))
    assert "'model.layers.0.mlp.gate_proj.weight': swapped?" in found["blk.0.ffn_up.weight"]
    assert "'model.layers.0.mlp.up_proj.weight': swapped?" in found["blk.0.ffn_gate.weight"]


def test_a_tensor_that_is_missing_is_named(artifact, source):
    path = artifact("q4_0")
    replace_in(path, b"blk.1.ffn_up.weight", b"blk.1.ffn_uq.weight")
    result = validated(path, source)
    assert result.faults == (
        "1 tensors are missing: 'blk.1.ffn_up.weight' (of model.layers.1.mlp.up_proj.weight)",
        "1 tensors are none of the source's: 'blk.1.ffn_uq.weight'",
    )
    assert result.status == "fail"


def test_a_truncated_file_is_a_fault_and_no_crash(artifact, source):
    path = artifact("q4_0")
    path.write_bytes(path.read_bytes()[:-4096])
    result = validated(path, source)
    assert result.status == "fail"
    assert "not a sound GGUF file" in result.faults[0]


def test_another_chat_template_is_found(artifact, source):
    path = artifact("q4_0")
    replace_in(path, b"{% if add_generation_prompt %}", b"{% if not generation_prompt %}")
    (fault,) = validated(path, source).faults
    assert fault.startswith("tokenizer: chat template: line 3 is '{% endfor %}{% if not generation")


def test_tokens_in_another_order_are_found(artifact, source):
    path = artifact("q4_0")
    tokens = {n: b"\x01\0\0\0\0\0\0\0" + n for n in (b"A", b"B")}
    data = path.read_bytes()
    swapped = data.replace(tokens[b"A"], b"?" * 9).replace(tokens[b"B"], tokens[b"A"])
    path.write_bytes(swapped.replace(b"?" * 9, tokens[b"B"]))
    result = validated(path, source)
    assert "'B', but the source's is 'A' (2 of 501 tokens differ)" in result.faults[0]


def test_a_conversion_that_would_write_a_damaged_file_writes_none(source, tmp_path, monkeypatch):
    from qconv_gguf import _packing

    pack = _packing.pack

    def broken(kind, codes, parameters):
        return pack(kind, codes, {key: -value for key, value in parameters.items()})

    monkeypatch.setattr(_packing, "pack", broken)
    with pytest.raises(
        GateFailed, match=r"gguf:q4_0: the artifact does not hold what was encoded.*--no-val"
    ):
        qconv.convert(source, "gguf:q4_0", out=tmp_path)
    assert not list(tmp_path.iterdir())
    qconv.convert(source, "gguf:q4_0", out=tmp_path, validate=False)
    assert [each.name for each in tmp_path.iterdir()] == ["tiny-Q4_0.gguf"]
