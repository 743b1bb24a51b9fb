"""``qconv fit``."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema

from qconv.memory import Measurement, VramResult

SCHEMAS = Path(__file__).parents[2] / "schemas"


def test_what_fits_ends_with_zero(qconv_cli, smollm2_wide):
    ran = qconv_cli("fit", str(smollm2_wide), "--vram", "8GiB", "--to", "gguf:q4km")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0] == f"{smollm2_wide}: 8.00 GiB of memory on the device, 8192 tokens"
    assert lines[1] == "gguf:q4_k_m in llama.cpp: 118 MiB, fair"
    assert lines[-1] == "fits; the longest context that does is 8192 tokens"


def test_what_does_not_fit_ends_with_five_and_tells_what_would(qconv_cli, smollm2_wide):
    ran = qconv_cli(
        "fit", str(smollm2_wide), "--vram", "2000MiB", "--to", "gguf:q4_k_m", "--batch", "4"
    )
    assert ran.code == 5
    assert ran.out.splitlines()[-4:] == [
        "does not fit with 8192 tokens as asked",
        "  needs an 8-bit cache: --cache q8_0",
        "  fits with context at most 4608",
        "  offload 12 layers: 19 of 31 fit (-ngl)",
    ]


def test_without_a_target_there_is_a_table_and_advice(qconv_cli, smollm2_wide, monkeypatch):
    monkeypatch.setenv("QCONV_DISABLE_PLUGINS", "onnx")  # whose plans export a graph first
    ran = qconv_cli("fit", str(smollm2_wide), "--vram", "8GiB")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[1].split() == [
        "target", "runtime", "size", "bits/weight", "expected", "memory", "context", "verdict"
    ]  # fmt: skip
    assert any(line.startswith("gguf:q4_k_m") and line.endswith("8192  fits") for line in lines)
    assert "take gguf:bf16: it fits as asked, and it loses nothing" in lines
    assert "or gguf:q8_0: near lossless, and smaller" in lines


def test_json_is_one_document_of_its_schema(qconv_cli, smollm2_wide):
    ran = qconv_cli("fit", str(smollm2_wide), "--vram", "1GiB", "--runtime", "llama.cpp", "--json")
    assert ran.code == 5
    document = json.loads(ran.out)
    schema = json.loads((SCHEMAS / "fit.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(document, schema)
    assert document["fits"] is False
    assert document["recommendation"] is None


def test_a_size_that_is_none_is_refused(qconv_cli, smollm2_wide):
    ran = qconv_cli("fit", str(smollm2_wide), "--vram", "much")
    assert ran.code == 2
    assert "--vram 'much' is not a size" in ran.err


def test_what_was_measured_stands_beside_its_prediction(qconv_cli, smollm2_wide, monkeypatch):
    mib = 2**20
    result = VramResult(
        low=100 * mib, high=200 * mib, context=64, batch=1, cache_type="f32", runtime="torch",
        parts={"weights": 200 * mib}, measured=230 * mib, device="cpu", assumptions=("none",),
        by="process memory", figures={"device_context": 5 * mib},
    )  # fmt: skip
    made = Measurement(result=result)
    monkeypatch.setattr("qconv.memory._fit.measure", lambda *_, **__: made)
    ran = qconv_cli(
        "fit", str(smollm2_wide), "--measure", "--device", "cpu", "--context", "64",
        "--vram", "8GiB",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[-5:] == [
        "measured on cpu in torch (process memory): 230 MiB",
        "  device context: 5 MiB",
        "predicted for this run: 100 MiB to 200 MiB",
        "assumed: none",
        "that is 30 MiB above the range",
    ]
    ran = qconv_cli("fit", str(smollm2_wide), "--measure", "--device", "cpu", "--vram", "700MiB")
    assert ran.code == 5  # 230 MiB, but 188 are left of 700


def test_a_device_without_a_size_is_refused(qconv_cli, smollm2_wide):
    ran = qconv_cli("fit", str(smollm2_wide))
    assert ran.code == 2
    assert "give the bytes of memory that the device has (--vram 8GiB)" in ran.err
