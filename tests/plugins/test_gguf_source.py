"""GGUF files as source: metadata kept, tensors requantized or copied byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_driver import read_gguf, write_request
from gguf_models import byte_level_files, llama_config, save_model

from qconv.errors import UnreadableInput, Unsupported
from qconv.plugin import ModelInfo, PlanRequest
from qconv_gguf._backend import GgufBackend
from qconv_gguf._container import Value, ValueType

Write = Callable[..., Path]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A GGUF file of an architecture that this plugin knows nothing of."""
    path = tmp_path / "strange.gguf"
    writer = gguf.GGUFWriter(path, "strange")
    writer.add_uint32("strange.block_count", 1)
    writer.add_array("strange.attention.head_count", [8, 8])
    writer.add_array("strange.attention.head_count_kv", [2, 2])
    writer.add_uint8("strange.flags", 7)
    writer.add_float64("strange.exact", 0.1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "\u2581c"])
    writer.add_file_type(1)
    writer.add_uint16("split.no", 0)
    writer.add_uint16("split.count", 2)
    writer.add_int32("split.tensors.count", 5)
    values = np.random.default_rng(0).standard_normal((6, 256)).astype(np.float32)
    writer.add_tensor("blk.0.attn_v.weight", values.astype(np.float16))
    eight = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.ffn_up.weight", eight, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.attn_norm.weight", values[0])
    writer.add_tensor("blk.0.ssm_conv1d.weight", values[:, :4].copy())
    writer.add_tensor("blk.0.ids", np.arange(6, dtype=np.int32))
    writer.add_tensor("blk.0.one_row.weight", values[:1])
    writer.add_tensor("token_embd.weight", values.reshape(2, 3, 256))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def convert(source: Path, out: Path, target: str) -> Path:
    model, values, raw = read_gguf(source)
    out.mkdir()
    return write_request(PlanRequest(model=model, format=target), values, out, raw)


def test_metadata_is_kept_with_its_types(source: Path, tmp_path: Path) -> None:
    path = convert(source, tmp_path / "out", "bf16")
    assert path.name == "strange-BF16.gguf"
    before, after = read_gguf(source)[0].metadata, read_gguf(path)[0].metadata
    changed = {
        "general.quantization_version": Value(ValueType.UINT32, 2),
        "general.file_type": Value(ValueType.UINT32, 32),
    }
    kept = {key: value for key, value in before.items() if not key.startswith("split.")}
    assert after == {**kept, **changed}
    assert list(after) == [key for key in kept if key not in changed] + list(changed)


def test_what_is_not_eligible_or_already_so_is_copied_byte_for_byte(
    source: Path, tmp_path: Path
) -> None:
    before = read_gguf(source)
    after = read_gguf(convert(source, tmp_path / "out", "f16"))
    for name in ("blk.0.attn_norm.weight", "blk.0.ids", "blk.0.ssm_conv1d.weight"):
        assert torch.equal(before[2][name], after[2][name])
        assert before[0].tensors[name] == after[0].tensors[name]
    assert torch.equal(before[2]["blk.0.attn_v.weight"], after[2]["blk.0.attn_v.weight"])
    assert after[0].tensors["blk.0.ffn_up.weight"].dtype == "F16"
    expected = before[1]["blk.0.ffn_up.weight"].half().float()
    assert torch.equal(after[1]["blk.0.ffn_up.weight"], expected)


def test_outer_dimensions_of_one_are_not_counted(source: Path, tmp_path: Path) -> None:
    before = read_gguf(source)
    after = read_gguf(convert(source, tmp_path / "out", "q8_0"))
    assert before[0].tensors["blk.0.one_row.weight"].shape == (1, 256)
    assert after[0].tensors["blk.0.one_row.weight"].shape == (256,)
    assert torch.equal(before[2]["blk.0.one_row.weight"], after[2]["blk.0.one_row.weight"])
    assert after[0].tensors["token_embd.weight"].shape == (2, 3, 256)


def test_actions_are_planned_in_llama_cpps_order(source: Path) -> None:
    model = read_gguf(source)[0]
    plans = GgufBackend().plan_tensors(PlanRequest(model=model, format="f32")).tensors
    assert [(plan.name, plan.action, plan.storage, plan.dtype) for plan in plans] == [
        ("token_embd.weight", "copy", "F32", "raw"),
        ("blk.0.attn_norm.weight", "copy", "F32", "raw"),
        ("blk.0.attn_v.weight", "cast", "F32", "float32"),
        ("blk.0.ffn_up.weight", "cast", "F32", "float32"),
        ("blk.0.ids", "copy", "I32", "raw"),
        ("blk.0.one_row.weight", "copy", "F32", "raw"),
        ("blk.0.ssm_conv1d.weight", "copy", "F32", "raw"),
    ]
    assert "never quantizes" in plans[1].reason
    assert "stored so already" in plans[0].reason


def test_a_file_of_ours_survives_unchanged(tmp_path: Path, write_gguf: Write) -> None:
    folder = save_model(tmp_path / "tiny", llama_config(), byte_level_files())
    path = write_gguf(folder, "f16")
    again = convert(path, tmp_path / "out", "f16")
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Llama-3.2-1B-F16", "Llama-3.2-1B-Q8_0.gguf"),
        ("phi.q4_k_m", "phi-Q8_0.gguf"),
        ("Llama-3.2-1B", "Llama-3.2-1B-Q8_0.gguf"),
        ("bf16", "bf16-Q8_0.gguf"),
    ],
)
def test_a_file_is_named_for_the_model_not_for_its_sources_type(
    source: Path, name: str, expected: str
) -> None:
    model = replace(read_gguf(source)[0], name=name)
    request = PlanRequest(model=model, format="q8_0")
    (file,) = GgufBackend().layout(request, GgufBackend().plan_tensors(request)).files
    assert file.path == expected


def without(model: ModelInfo, key: str) -> ModelInfo:
    metadata = {name: value for name, value in model.metadata.items() if name != key}
    return replace(model, metadata=metadata)


def test_a_file_that_is_no_model_is_refused(source: Path) -> None:
    model = read_gguf(source)[0]
    backend = GgufBackend()
    for key, message in (
        ("general.architecture", r"no general\.architecture; only models"),
        ("strange.block_count", r"strange\.block_count is None, but must be a whole number"),
    ):
        with pytest.raises(UnreadableInput, match=message):
            backend.plan_tensors(PlanRequest(model=without(model, key), format="f16"))


def test_integers_are_read_as_numbers(source: Path) -> None:
    reader = GgufBackend().open(source)
    assert reader.read("blk.0.ids").tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert reader.read("token_embd.weight").shape == (2, 3, 256)


def test_a_type_that_the_library_does_not_decode_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "strange")
    kind = gguf.GGMLQuantizationType.Q8_K
    writer.add_tensor("x.weight", np.zeros((1, 292), np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(Unsupported, match=r"'x\.weight': Dequantization for Q8_K is not yet"):
        GgufBackend().open(path).read("x.weight")
