"""Quantized checkpoints as sources: recognized, decoded, shown, calibrated on and converted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import qconv
from calibration.tokenized import save_model, write_texts
from checkpoint.written import hf_directory
from qconv._sources import open_source, plugins_behind
from qconv.checkpoint import DecodedCheckpoint, FileCheckpoint
from qconv.errors import BrokenPlugin, Unsupported
from qconv.plugin import SourceSpec, hookimpl
from toy_packed import (
    GRID,
    PackedPlugin,
    PackedSource,
    host_with,
    quantized,
    save_packed,
    small_packed,
)


class Other:
    """A plugin with one source more. recognizes: what it says of any checkpoint."""

    def __init__(self, recognizes, load=lambda: PackedSource):
        self._spec = SourceSpec(
            name="other", summary="", recognizes=recognizes, load=load, api_version=1
        )

    @hookimpl
    def qconv_sources(self):
        yield self._spec


def test_a_recognized_checkpoint_is_decoded(tmp_path):
    held = small_packed(tmp_path)
    host = host_with(PackedPlugin())
    with open_source(tmp_path, host) as checkpoint:
        assert isinstance(checkpoint, DecodedCheckpoint)
        assert checkpoint.family == "toy-packed"
        values = checkpoint.read_rows("up.weight", 0, 6)
        assert torch.equal(values, held["up.weight"].dequantize())
        assert plugins_behind(checkpoint, host) == ("plugin 'toy0' of toy0 not installed",)


def test_a_plain_checkpoint_stays_as_it_is(tmp_path):
    host = host_with(PackedPlugin())
    with open_source(hf_directory(tmp_path), host) as checkpoint:
        assert isinstance(checkpoint, FileCheckpoint)
        assert plugins_behind(checkpoint, host) == ()


def test_two_that_recognize_one_checkpoint_are_an_error(tmp_path):
    small_packed(tmp_path)
    with pytest.raises(
        Unsupported,
        match=r"2 sources recognize .*'toy-packed' \(plugin 'toy0'.*'other' \(plugin 'toy1'.*"
        "QCONV_DISABLE_PLUGINS",
    ):
        open_source(tmp_path, host_with(PackedPlugin(), Other(lambda model: True)))


def test_a_source_that_cannot_tell_or_load_is_a_broken_plugin(tmp_path):
    small_packed(tmp_path)
    with pytest.raises(BrokenPlugin, match=r"'toy0'.*recognizes\(\) failed: ZeroDivisionError"):
        open_source(tmp_path, host_with(Other(lambda model: 1 / 0)))
    with pytest.raises(BrokenPlugin, match=r"loading source 'other' failed: TypeError"):
        open_source(tmp_path, host_with(Other(lambda model: True, lambda: None)))


def test_the_files_are_closed_when_opening_fails(tmp_path, monkeypatch):
    small_packed(tmp_path)
    opened = []
    close = FileCheckpoint.close

    def closing(self):
        opened.append(self)
        close(self)

    monkeypatch.setattr(FileCheckpoint, "close", closing)
    with pytest.raises(BrokenPlugin):
        open_source(tmp_path, host_with(Other(lambda model: 1 / 0)))
    assert len(opened) == 1


@pytest.mark.usefixtures("toy_packed")
def test_inspect_shows_the_tensors_that_the_parts_stand_for(tmp_path):
    small_packed(tmp_path)
    found = qconv.inspect(tmp_path)
    (up,) = [row for row in found.tensors if row.name == "up.weight"]
    assert (up.shape, up.dtype, up.bits_per_weight) == ((6, 64), "int4_g32", 8.5)
    assert up.values.abs_max > 1
    assert found.types["int4_g32"].parameters == 2 * 6 * 64
    assert found.parameters == 2 * 6 * 64 + 11 * 64
    assert "up.codes" not in {row.name for row in found.tensors}
    assert "quantized already" in found.warnings[0]
    assert json.dumps(found.to_json())


@pytest.mark.usefixtures("toy_packed")
def test_inspect_shows_what_cannot_be_decoded_as_it_is_stored(tmp_path, monkeypatch):
    def refuse(self, model, read):
        raise Unsupported("packed in an order nobody decodes")

    monkeypatch.setattr(PackedSource, "tensors", refuse)
    small_packed(tmp_path)
    found = qconv.inspect(tmp_path)
    assert "up.codes" in {row.name for row in found.tensors}
    assert "shown as stored, not decoded: packed in an order nobody" in found.warnings[-1]


@pytest.mark.usefixtures("toy_packed")
def test_a_family_nobody_knows_is_refused_naming_those_that_are_known(tmp_path):
    small_packed(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "exl9"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unsupported, match=r"method 'exl9'.* decoded: .*toy-packed.*float check"):
        qconv.plan(tmp_path, "toypack:float", allow_unused=True)


@pytest.mark.usefixtures("toy_packed")
def test_convert_quantizes_the_decoded_values_and_says_so(tmp_path):
    held = small_packed(tmp_path / "model", replace(GRID, bits=8))
    made = qconv.convert(tmp_path / "model", "toypack:same", out=tmp_path)
    assert any("quantizing twice loses twice" in each for each in made.to_json()["warnings"])
    assert made.plan.plugins[0] == "plugin 'toy0' of toy0 not installed"
    written = load_file(tmp_path / "model-same" / "model.safetensors")
    expected = quantized(held["up.weight"].dequantize())
    assert torch.equal(written["up.codes"], expected.codes)
    assert torch.equal(written["up.scale"], expected.parameters["scale"])


@pytest.mark.usefixtures("toy_packed")
def test_the_plan_counts_the_memory_of_decoding(tmp_path):
    held = {"a.weight": quantized(torch.ones(1024, 1024))}
    save_packed(tmp_path / "packed", held, {})
    hf_directory(tmp_path / "plain", {"a.weight": held["a.weight"].dequantize()})
    needs = [
        qconv.plan(tmp_path / name, "toypack:float", threads=1).needs.ram_nbytes
        for name in ("packed", "plain")
    ]
    headers, scales = 1000, 1024 * 32 * 2
    assert needs[0] - needs[1] == pytest.approx(8 * 1024 * 1024 + 4 * scales, abs=headers)


@pytest.mark.usefixtures("toy_packed")
def test_the_plan_tells_how_the_source_is_stored(tmp_path):
    small_packed(tmp_path)
    source = qconv.plan(tmp_path, "toypack:float").to_json()["source"]
    assert source["quantized"] == "toy-packed"
    assert source["nbytes"] == 2 * (6 * 64 + 6 * 2 * 2) + 11 * 64 * 2


@pytest.mark.usefixtures("toy_packed")
def test_the_request_names_the_steps_of_the_chain(tmp_path, monkeypatch):
    from toy_packed import PackedBackend

    asked = []
    plan_tensors = PackedBackend.plan_tensors
    monkeypatch.setattr(
        PackedBackend,
        "plan_tensors",
        lambda self, request: asked.append(request) or plan_tensors(self, request),
    )
    small_packed(tmp_path)
    qconv.plan(tmp_path, "toypack:same", method="awq,gptq,damp=0.1")
    assert asked[0].method == ("awq", "gptq")
    assert asked[0].held == {}


def packed_and_float(tmp_path: Path) -> tuple[Path, Path]:
    """A tiny model with quantized linears, and the same with their decoded values."""
    floats = save_model(tmp_path / "floats", intermediate_size=64)
    tensors = load_file(floats / "model.safetensors")
    held = {
        name: quantized(value, replace(GRID, group_size=16))
        for name, value in tensors.items()
        if "proj" in name
    }
    others = {name: value for name, value in tensors.items() if name not in held}
    config = json.loads((floats / "config.json").read_text())
    packed = shutil.copytree(floats, tmp_path / "packed")
    save_packed(packed, held, others, config)
    decoded = {name: value.dequantize() for name, value in held.items()}
    save_file({**others, **decoded}, floats / "model.safetensors", {"format": "pt"})
    return packed, floats


@pytest.mark.usefixtures("toy_packed")
def test_calibration_runs_the_model_that_the_parts_stand_for(tmp_path):
    text = write_texts(tmp_path / "text.jsonl", 4)
    calibration = qconv.Calibration(source=str(text), windows=2, window_length=16)
    made = []
    for number, folder in enumerate(packed_and_float(tmp_path)):
        out = tmp_path / f"{number}.safetensors"
        qconv.calibrate(folder, out, calibration, device="cpu")
        made.append(load_file(out))
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(value, made[1][name]) for name, value in made[0].items())


@pytest.mark.usefixtures("toy_packed")
def test_a_chain_converts_the_model_that_the_parts_stand_for(tmp_path):
    text = write_texts(tmp_path / "text.jsonl", 4)
    calibration = qconv.Calibration(source=str(text), windows=2, window_length=16)
    written = []
    for folder in packed_and_float(tmp_path):
        qconv.convert(
            folder, "toypack:same", out=tmp_path, method="awq,gptq", calibration=calibration
        )
        written.append(load_file(tmp_path / f"{folder.name}-same" / "model.safetensors"))
    assert written[0].keys() == written[1].keys()
    assert all(torch.equal(value, written[1][name]) for name, value in written[0].items())
