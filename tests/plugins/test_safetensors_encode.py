"""Artifacts as written: read by the safetensors library, the reader, transformers and its kin."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_driver import fill, model_info, read_model
from safetensors_driver import CONFIG, read_all, request, write, write_request

import qconv
from qconv.errors import Unsupported, UnsupportedGrid
from qconv.plugin import RowOrder, TensorPlan
from qconv.tensors import QuantTensor
from qconv_safetensors._backend import SafetensorsBackend

SHAPES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "tie_word_embeddings": True,
}
TARGETS: list[tuple[str, dict[str, str]]] = [
    ("int4", {"group_size": "32"}),
    ("int4", {"group_size": "64", "symmetric": "true"}),
    ("int4", {"bits": "3", "group_size": "channel"}),
    ("int8", {}),
    ("int8", {"activations": "dynamic"}),
    ("fp8", {}),
    ("fp8", {"scope": "tensor"}),
    ("fp8", {"scope": "block", "activations": "none"}),
    ("gptq", {"group_size": "32"}),
    ("gptq_v2", {"group_size": "32", "symmetric": "false", "bits": "3"}),
    ("awq", {"group_size": "64"}),
    ("nf4", {}),
    ("fp4", {"double_quant": "true"}),
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """A tiny random Llama in bfloat16, saved by transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("source") / "tiny"
    model = LlamaForCausalLM(LlamaConfig(**SHAPES)).to(torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def logits(folder: Path, **options: Any) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits[0].float()


@pytest.mark.parametrize(("target", "options"), TARGETS)
def test_the_reader_decodes_exactly_what_was_chosen(
    target: str, options: dict[str, str], llama: Path, tmp_path: Path
) -> None:
    folder, plans, _ = write(llama, target, tmp_path, **options)
    reader = SafetensorsBackend().open(folder)
    _, weights = read_model(llama)
    assert set(reader.tensors) == set(weights)
    for plan in plans.tensors:
        if plan.grid is None:
            expected = weights[plan.name].float()
        else:
            value = fill(plan, weights)
            assert isinstance(value, QuantTensor)
            expected = value.dequantize()
        assert torch.equal(reader.read(plan.name), expected), plan.name


@pytest.mark.parametrize(("target", "options"), TARGETS)
def test_slabs_of_rows_give_the_bytes_of_whole_tensors(
    target: str, options: dict[str, str], llama: Path
) -> None:
    model, weights = read_model(llama)
    backend = SafetensorsBackend()
    asked = request(model, target, **options)
    plans = backend.plan_tensors(asked)
    places = backend.layout(asked, plans).places
    plan = next(each for each in plans.tensors if each.name.endswith("up_proj.weight"))
    assert plan.grid is not None
    if any(place.row_nbytes is None for place in places[plan.name]):
        return
    whole = fill(plan, weights)
    assert isinstance(whole, QuantTensor)
    together = max(place.rows_together for place in places[plan.name])
    sizes = [5 * together, whole.shape[0] - 8 * together, 3 * together]
    parts = [backend.encode(plan, slab) for slab in whole.split_rows(sizes)]
    joined = [b"".join(bytes(part) for part in each) for each in zip(*parts, strict=True)]
    assert joined == [bytes(part) for part in backend.encode(plan, whole)]


def test_plain_checkpoints_load_in_transformers_and_compute_the_same(
    llama: Path, tmp_path: Path
) -> None:
    qconv.convert(llama, ["safetensors:fp32", "safetensors:bf16"], out=tmp_path)
    expected = logits(llama, dtype=torch.float32)
    assert torch.equal(logits(tmp_path / "tiny-FP32"), expected)
    assert torch.equal(logits(tmp_path / "tiny-BF16", dtype=torch.float32), expected)


def test_shards_load_in_transformers(llama: Path, tmp_path: Path) -> None:
    qconv.convert(llama, "safetensors:bf16,shard_size=50KB", out=tmp_path)
    assert len(list((tmp_path / "tiny-BF16").glob("model-*.safetensors"))) > 2
    assert torch.equal(logits(tmp_path / "tiny-BF16"), logits(llama))


@pytest.mark.parametrize(
    "target", ["int4,group_size=32,symmetric=true", "int8", "int8,activations=dynamic", "fp8"]
)
def test_compressed_tensors_decodes_what_the_reader_decodes(
    target: str, llama: Path, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors", reason="pip install compressed-tensors")
    from transformers import AutoModelForCausalLM

    (artifact,) = qconv.convert(llama, f"safetensors:{target}", out=tmp_path).artifacts
    folder = Path(artifact.files[0]).parent
    model = AutoModelForCausalLM.from_pretrained(folder)
    model(torch.arange(3, 9)[None])  # decodes the weights
    reader = SafetensorsBackend().open(folder)
    loaded = dict(model.named_parameters())
    for name in reader.tensors:
        assert torch.allclose(loaded[name].float(), reader.read(name), rtol=1e-2, atol=1e-6), name


def test_conversions_on_one_and_two_threads_give_the_same_bytes(
    llama: Path, tmp_path: Path
) -> None:
    targets = ["safetensors:int4,group_size=32", "safetensors:awq,group_size=32"]
    found = []
    for threads in (1, 2):
        out = tmp_path / str(threads)
        qconv.convert(llama, targets, out=out, threads=threads)
        found.append(
            {
                path.relative_to(out): path.read_bytes()
                for path in sorted(out.rglob("*"))
                if path.is_file()
            }
        )
    assert found[0] == found[1]


def test_files_have_the_modes_of_other_files(llama: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    qconv.convert(llama, "safetensors:int4,group_size=32", out=tmp_path)
    modes = {path.stat().st_mode for path in (tmp_path / "tiny-INT4").iterdir()}
    assert modes == {plain.stat().st_mode}


def test_a_stored_head_and_integers_are_carried_over(llama: Path, tmp_path: Path) -> None:
    model, weights = read_model(llama)
    weights |= {
        "lm_head.weight": weights["model.embed_tokens.weight"].clone(),
        "model.layers.2.mlp.up_proj.weight": torch.randn(128, 64).bfloat16(),
        "model.counts": torch.arange(5),
        "model.half": torch.ones(()).half(),
    }
    infos = model_info("tiny", dict(model.config), {}, dict(model.files))
    kinds = {torch.bfloat16: "BF16", torch.int64: "I64", torch.float16: "F16"}
    from qconv.plugin import TensorInfo

    tensors = {
        name: TensorInfo(
            name=name, shape=tuple(value.shape), dtype=kinds[value.dtype], nbytes=value.nbytes
        )
        for name, value in weights.items()
    }
    asked = request(replace(infos, tensors=tensors), "gptq", group_size="32")
    folder, _, _ = write_request(asked, weights, tmp_path)
    stored = read_all(folder)
    for name in (
        *("lm_head.weight", "model.layers.2.mlp.up_proj.weight", "model.counts", "model.half"),
        *("model.embed_tokens.weight", "model.norm.weight"),
    ):
        assert stored[name].dtype == weights[name].dtype
        assert torch.equal(stored[name], weights[name])


def test_vectors_are_put_in_order_by_value() -> None:
    model = model_info(
        "tiny", CONFIG, {"a.bias": torch.arange(4.0), "b.weight": torch.ones(2, 2)}, {}
    )
    backend = SafetensorsBackend()
    plan = backend.plan_tensors(request(model, "fp32")).tensors[0]
    order = RowOrder(label="turned", index=[3, 2, 1, 0])
    turned = replace(plan, dtype="float32", value_order=order)  # type: ignore[call-arg]
    (data,) = backend.encode(turned, torch.arange(4.0).view(1, 4))
    assert torch.frombuffer(bytearray(data), dtype=torch.float32).tolist() == [3, 2, 1, 0]


def test_a_quantized_value_for_a_float_plan_is_refused(llama: Path) -> None:
    model, weights = read_model(llama)
    backend = SafetensorsBackend()
    plans = backend.plan_tensors(request(model, "int4", group_size="32"))
    quantized = next(each for each in plans.tensors if each.grid is not None)
    value = fill(quantized, weights)
    with pytest.raises(UnsupportedGrid, match="was planned to stay float, and came quantized"):
        backend.encode(plans.tensors[0], value)


def test_a_plan_of_another_backend_is_refused() -> None:
    plan = TensorPlan(
        name="x", sources=("x",), shape=(2, 2), action="copy", storage="F32", dtype="raw", reason=""
    )
    with pytest.raises(Unsupported, match="'x' was not planned by the safetensors backend"):
        SafetensorsBackend().encode(plan, torch.ones(2, 2))


def test_the_command_line_converts(llama: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qconv", str(llama), "--to", "safetensors:int4,group_size=32"]
    subprocess.run([*command, "--out", str(tmp_path)], check=True, capture_output=True)
    assert (tmp_path / "tiny-INT4" / "model.safetensors").is_file()
