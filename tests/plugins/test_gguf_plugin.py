"""What the plugin tells the host, and at what cost."""

from __future__ import annotations

import subprocess
import sys

import qconv_gguf
from qconv.plugin import API_VERSION, BackendSpec
from qconv_gguf._types import file_type


def spec() -> BackendSpec:
    (spec,) = qconv_gguf.qconv_backends()
    return spec


def test_one_backend_is_offered() -> None:
    assert spec().name == "gguf"
    assert spec().api_version == API_VERSION
    assert {option.name for option in spec().options} == {"search", "pre"}
    assert spec().load()().__class__.__name__ == "GgufBackend"


def test_every_format_offered_is_known_by_the_same_name() -> None:
    names = [entry.name for entry in spec().formats]
    assert [file_type(name).name.lower() for name in names] == names
    assert len(names) == 17


def test_planning_and_laying_out_import_no_heavy_library() -> None:
    heavy = "torch numba gguf transformers tokenizers sentencepiece xllamacpp numpy"
    code = (
        "import sys, qconv_gguf, qconv_gguf._backend\n"
        "list(qconv_gguf.qconv_backends())\n"
        f"print([name for name in {heavy.split()} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
