"""``qconv fit``."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema

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
        "fit", str(smollm2_wide), "--vram", "1900MiB", "--to", "gguf:q4_k_m", "--batch", "4"
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
