"""What the plugin tells the host, and at what cost."""

from __future__ import annotations

import subprocess
import sys

import qconv_safetensors
from qconv.plugin import API_VERSION
from qconv_safetensors._options import FORMATS


def test_one_backend_is_offered() -> None:
    (spec,) = qconv_safetensors.qconv_backends()
    assert (spec.name, spec.api_version) == ("safetensors", API_VERSION)
    assert tuple(entry.name for entry in spec.formats) == FORMATS
    assert spec.load()().__class__.__name__ == "SafetensorsBackend"


def test_planning_and_laying_out_import_no_heavy_library() -> None:
    heavy = "torch numba numpy safetensors transformers tokenizers gguf"
    code = (
        "import sys\n"
        "from qconv.plugin import ModelInfo, PlanRequest, TensorInfo\n"
        "import qconv_safetensors\n"
        "(spec,) = qconv_safetensors.qconv_backends()\n"
        "backend = spec.load()()\n"
        "name = 'model.layers.0.mlp.up_proj.weight'\n"
        "info = TensorInfo(name=name, shape=(256, 256), dtype='BF16', nbytes=131072)\n"
        "model = ModelInfo(kind='safetensors', name='m', config={}, tensors={name: info},"
        " files={}, metadata={})\n"
        "for target in ('int4', 'int8', 'fp8', 'gptq', 'awq', 'bf16'):\n"
        "    request = PlanRequest(model=model, format=target)\n"
        "    backend.layout(request, backend.plan_tensors(request))\n"
        f"print([name for name in {heavy.split()} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
