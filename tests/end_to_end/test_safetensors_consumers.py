"""transformers loads what qconv wrote, and computes with exactly the weights that qconv decodes.

The light half of ``make consumers``, which asks vLLM and GPTQModel, too.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import qconv
from model import tiny

sys.path.insert(0, str(Path(__file__).parents[1] / "consumers"))

import in_decoded
import matrix

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
#: Formats whose runtime computes with the weights alone, and those that round inputs as well.
WEIGHTS_ONLY = (
    "int4,symmetric=true",
    "int4,symmetric=true,group_size=32",
    "int4,symmetric=true,bits=3,group_size=64",
    "int8",
    "bf16",
)
ROUNDS_INPUTS = ("int8,activations=dynamic", "fp8", "fp8,scope=tensor", "fp8,scope=block")
FOUR_BIT = ("nf4", "nf4,double_quant=true", "fp4", "fp4,double_quant=true")
needs_compressed_tensors = pytest.mark.skipif(
    not transformers.utils.is_compressed_tensors_available(),
    reason="pip install compressed-tensors",
)
needs_bitsandbytes = pytest.mark.skipif(
    not transformers.utils.is_bitsandbytes_available(), reason="pip install bitsandbytes"
)


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def source(request, tmp_path_factory) -> Path:
    """A tiny model in bfloat16: an untied head; or a tied one, and biases."""
    folder = tmp_path_factory.mktemp(request.param) / request.param
    tiny.save(request.param, folder, **SIZES)
    tensors = load_file(folder / "model.safetensors")
    rounded = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"float32"', '"bfloat16"'))
    return folder


def written(source: Path, target: str, out: Path) -> Path:
    conversion = qconv.convert(source, [f"safetensors:{target}"], out=out)
    return next(file for file in conversion.artifacts[0].files if file.name == "config.json").parent


def loaded(artifact: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs: of deprecations and slow kernels
        return transformers.AutoModelForCausalLM.from_pretrained(
            artifact, dtype=torch.bfloat16, device_map="cpu"
        ).eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    (window,) = tiny.windows(24)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(input_ids=window[None], use_cache=False).logits[0].float()


def divergence(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Mean KL divergence in nats."""
    log_p, log_q = expected.log_softmax(-1), found.log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@needs_compressed_tensors
@pytest.mark.parametrize("target", WEIGHTS_ONLY)
def test_transformers_computes_with_the_decoded_weights(source, target, tmp_path):
    artifact = written(source, target, tmp_path)
    model = loaded(artifact)
    assert torch.equal(logits(model), logits(in_decoded.load(artifact, torch.bfloat16)))
    check_weights(model, artifact)


@needs_compressed_tensors
@pytest.mark.parametrize("target", ROUNDS_INPUTS)
def test_transformers_rounds_inputs_to_formats_that_say_so(source, target, tmp_path):
    """Near ours only: it finds scales in bfloat16, and int8's from max / 127.5, vLLM's is 127."""
    artifact = written(source, target, tmp_path)
    model = loaded(artifact)
    found = logits(model)
    check_weights(model, artifact)
    ours = in_decoded.load(artifact, torch.bfloat16)
    assert divergence(found, logits(ours)) < 0.02
    for module in ours.modules():
        module._forward_pre_hooks.clear()
    assert not torch.equal(found, logits(ours))


def check_weights(model, artifact: Path) -> None:
    """Equal bit for bit in bfloat16; transformers decodes when a model first runs."""
    held = model.state_dict()
    for name, tensor in in_decoded.decoded(artifact).items():
        assert torch.equal(held[name], tensor.bfloat16()), name


@needs_bitsandbytes
@pytest.mark.parametrize("target", FOUR_BIT)
def test_bitsandbytes_decodes_to_the_same_weights(source, target, tmp_path):
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    artifact = written(source, target, tmp_path)
    model = loaded(artifact)
    decoded = in_decoded.decoded(artifact)
    quantized = [n for n, module in model.named_modules() if isinstance(module, Linear4bit)]
    assert len(quantized) == 7 * SIZES["num_hidden_layers"]
    for name in quantized:
        weight = model.get_submodule(name).weight
        found = dequantize_4bit(weight.data, weight.quant_state)
        assert torch.equal(found, decoded[f"{name}.weight"].to(found.dtype)), name
    expected = logits(in_decoded.load(artifact, torch.bfloat16))
    assert divergence(logits(model), expected) < 1e-3


def test_a_runtime_within_the_tolerance_passes_and_one_outside_does_not():
    case = matrix.Case(name="int4", target="safetensors:int4")
    decoded = {"log_probabilities": [-2.0, -3.0] * 50}
    near = {"log_probabilities": [-2.001, -3.001] * 50}
    far = {"log_probabilities": [-2.003, -3.003] * 50}
    assert matrix.compare(near, decoded, case, None).ok
    assert not matrix.compare(far, decoded, case, None).ok
    assert not matrix.compare({"error": "ValueError: no"}, decoded, case, None).ok
    assert matrix.compare({"error": "ValueError: no"}, decoded, case, "no kernel").ok


@needs_compressed_tensors
@pytest.mark.slow
def test_the_matrix_shows_what_each_runtime_makes_of_each_format(smollm2_wide, tmp_path):
    command = [sys.executable, matrix.__file__, "--model", smollm2_wide, "--out", tmp_path]
    settings = ["--formats", "int4 sym", "int4", "--windows", "2", "--length", "64"]
    done = subprocess.run([*command, *settings], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| int4")]
    assert [row[0] for row in rows] == ["| int4", "| int4 sym"]
    assert rows[1][2].startswith("1.0000")
    assert "transformers: torch" in done.stdout
