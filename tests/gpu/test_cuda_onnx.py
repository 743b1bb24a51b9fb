"""On CUDA, onnxruntime computes from ONNX targets what their decoded weights compute in torch."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "plugins"))

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'qconv[onnx]'")

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available()
    or "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="no CUDA device, or no onnxruntime-gpu",
)

#: Target, options, and the largest error of a logit: rounding of products only, or float16's, or
#: that of inputs in 8 bits, which onnxruntime by default makes of decoded weights' products, too.
TARGETS = [
    ("fp32", {}, 1e-3),
    ("w8", {"accuracy_level": "1"}, 1e-3),
    ("w8", {"accuracy_level": "1", "symmetric": "true", "group_size": "64"}, 1e-3),
    ("w8", {}, 6e-2),
    ("int4", {"accuracy_level": "1"}, 1e-3),
    ("int4", {"accuracy_level": "1", "symmetric": "true"}, 1e-3),
    ("int4", {}, 6e-2),
    ("int4_qdq", {}, 6e-2),
    ("w8a8", {"provider": "cuda"}, 6e-2),
    ("fp16", {}, 2e-2),
]

Backends = Mapping[bool, Any]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from onnx_driver import save_llama

    return save_llama(tmp_path_factory.mktemp("llama") / "tiny")


@pytest.fixture(scope="module")
def backends() -> Backends:
    """By dtype: each keeps the graph that it exported last."""
    from qconv_onnx._backend import OnnxBackend

    return defaultdict(OnnxBackend)


@pytest.mark.parametrize(("target", "options", "tolerance"), TARGETS)
def test_logits_on_cuda_are_those_of_the_decoded_weights(
    llama: Path,
    backends: Backends,
    tmp_path: Path,
    target: str,
    options: dict[str, str],
    tolerance: float,
) -> None:
    from onnx_driver import decoded, write

    from qconv_onnx._session import device_of, open_session

    artifact, _ = write(backends[target == "fp16"], llama, tmp_path, target, **options)
    session = open_session(artifact / "model.onnx", device="cuda")
    assert device_of(session) == "cuda:0"
    ids = torch.randint(3, 160, (2, 9), generator=torch.Generator().manual_seed(0))
    found = torch.from_numpy(_run(session, ids)["logits"]).float()
    with torch.no_grad():
        expected = decoded(llama, artifact)(ids).logits
    error = float((found - expected).abs().max())
    print(f"{target} {options}: logits up to {error:.2g} off")
    assert error <= tolerance
    assert expected.abs().max() > 1  # and so the tolerance is small


def test_generation_with_the_cache_is_that_without_on_cuda(
    llama: Path, backends: Backends, tmp_path: Path
) -> None:
    from onnx_driver import write

    from qconv_onnx._session import open_session

    artifact, _ = write(backends[False], llama, tmp_path, "int4", accuracy_level="1")
    session = open_session(artifact / "model.onnx", device="cuda")
    ids = torch.randint(3, 160, (1, 12), generator=torch.Generator().manual_seed(1))
    whole = _run(session, ids)["logits"][0]
    first = _run(session, ids[:, :5])
    first.pop("logits")
    rest = _run(session, ids[:, 5:], first)["logits"][0]
    assert abs(rest - whole[5:]).max() <= 1e-3


def _run(session, ids, past=None):  # type: ignore[no-untyped-def]
    from onnx_driver import run

    return run(session, ids.numpy(), past)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Without what onnxruntime says of nodes that it leaves to the CPU."""
    onnxruntime.set_default_logger_severity(3)
    yield
    onnxruntime.set_default_logger_severity(2)
