"""On CUDA, a validation measures what it measures on the CPU, in the memory of two blocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import qconv
from qconv.checkpoint import open_checkpoint
from qconv.model import exact_arithmetic, open_model
from qconv.validation._gates import judge
from validation.damage import model_at

CUDA = "cuda"
MIB = 1 << 20

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device that torch can use"
)


@pytest.fixture
def tf32() -> Iterator[None]:
    """A process that allows TF32, as many do."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_at(tmp_path_factory.mktemp("model") / "tiny")


def test_what_makes_arithmetic_exact_is_put_back(tf32: None) -> None:
    with exact_arithmetic(torch.device("cuda")):
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cuda.matmul.allow_tf32
    assert not torch.are_deterministic_algorithms_enabled()


def test_tf32_allowed_the_newer_way_is_put_back_too(tf32: None) -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("torch before 2.9 has one way only")
    torch.backends.cuda.matmul.allow_tf32 = False
    matmul.fp32_precision = cudnn.conv.fp32_precision = "tf32"
    with exact_arithmetic(torch.device("cuda")):
        assert matmul.fp32_precision == "ieee"
        assert cudnn.conv.fp32_precision != "tf32"
    assert matmul.fp32_precision == cudnn.conv.fp32_precision == "tf32"


def test_nothing_is_changed_for_the_cpu(tf32: None) -> None:
    with exact_arithmetic(torch.device("cpu")), exact_arithmetic(None):
        assert torch.backends.cuda.matmul.allow_tf32
        assert not torch.are_deterministic_algorithms_enabled()


@needs_cuda
def test_logits_are_those_of_the_cpu_even_where_tf32_is_allowed(model: Path, tf32: None) -> None:
    window = torch.arange(200) % 512
    exact, expected = logits(model, CUDA, window), logits(model, "cpu", window)
    rough = logits(model, CUDA, window, exactly=False)
    size = float(expected.norm())
    off, tf32_off = (float((each - expected).norm()) / size for each in (exact, rough))
    print(f"relative error of logits {off:.2g}, with TF32 {tf32_off:.2g}")
    assert off < 2e-5
    assert tf32_off > 3 * off  # or this test would prove nothing


def logits(model: Path, device: str, window: torch.Tensor, *, exactly: bool = True) -> torch.Tensor:
    with open_checkpoint(model) as checkpoint:
        opened = open_model(checkpoint, device=device)
        exact = exact_arithmetic(opened.device if exactly else None)
        with exact, opened.begin([window]) as hidden:
            for info in opened.blocks:
                with opened.block(info.index) as live:
                    live.advance(hidden)
            return opened.logits(hidden[0]).cpu()


@needs_cuda
@pytest.mark.parametrize("target", ["gguf:f32", "gguf:q4_k_m", "safetensors:int4"])
def test_figures_are_those_of_the_cpu(model: Path, tmp_path: Path, tf32: None, target: str) -> None:
    made = qconv.convert(model, target, out=tmp_path).artifacts[0].files[0]
    artifact = made if made.parent == tmp_path else made.parent
    options = {"windows": 2, "window_length": 64}
    (ours,) = qconv.validate(artifact, model, device=CUDA, **options).artifacts
    (theirs,) = qconv.validate(artifact, model, device="cpu", **options).artifacts
    assert ours.logits is not None
    assert theirs.logits is not None
    assert ours.logits.kl.mean == pytest.approx(theirs.logits.kl.mean, rel=1e-2, abs=1e-7)
    assert ours.logits.perplexity == pytest.approx(theirs.logits.perplexity, rel=1e-4)
    assert ours.logits.same_top1 == pytest.approx(theirs.logits.same_top1, abs=0.01)
    errors = [[each.relative_error for each in result.blocks] for result in (ours, theirs)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-2, abs=1e-5)


@needs_cuda
def test_a_validation_takes_the_memory_of_two_blocks(tmp_path: Path) -> None:
    """Of a model of twenty: 20 MB each in float32, 409 MB in all."""
    sizes = {"hidden_size": 768, "intermediate_size": 1536, "num_hidden_layers": 20}
    big = model_at(tmp_path / "big", **sizes, num_attention_heads=12, num_key_value_heads=4)
    artifact = qconv.convert(big, "gguf:q8_0", out=tmp_path).artifacts[0].files[0]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    options = {"windows": 4, "window_length": 128}
    (result,) = qconv.validate(artifact, big, device=CUDA, **options).artifacts
    peak = torch.cuda.max_memory_allocated() - before
    whole = 4 * sum(
        2 * 768 * (768 + 256) + 3 * 768 * 1536 for _ in range(sizes["num_hidden_layers"])
    )
    print(f"{peak / MIB:.0f} MiB at most, of a model of {whole / MIB:.0f} MiB")
    assert not result.faults
    assert len(result.blocks) == 20
    assert peak < 0.35 * whole  # two blocks, what cuBLAS works in, the states of one window


@needs_cuda
def test_memory_is_measured_beside_its_prediction_and_judged(tmp_path: Path) -> None:
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4}
    model = model_at(tmp_path / "model", **sizes, num_attention_heads=16, num_key_value_heads=4)
    made = qconv.convert(model, "safetensors:int4", out=tmp_path).artifacts[0].files[0].parent
    torch.cuda.empty_cache()
    options = {"depth": "bytes", "device": CUDA, "context": 2048, "measure": True}
    (result,) = qconv.validate(made, model, gates={"vram": float(MIB)}, **options).artifacts
    vram = result.vram
    assert vram is not None
    assert vram.reason is None
    assert vram.measured is not None
    assert vram.error is not None
    assert vram.figures["max_memory_allocated"] <= vram.figures["max_memory_reserved"]
    assert vram.figures["max_memory_reserved"] <= vram.figures["device"] + 64 * MIB
    assert abs(vram.error) <= vram.measured // 10, vram
    gate = next(each for each in result.gates if each.name == "vram")
    assert (gate.status, gate.value) == ("fail", vram.measured)
    assert gate.why.startswith("as asked for; measured on cuda")
    (*_, gate) = judge(result, {"vram": 8.0 * 2**30}, weights=1, reason="")
    assert gate.status == "pass"
