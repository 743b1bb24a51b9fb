"""Options: what each format takes, and what is refused because no runtime computes it."""

from __future__ import annotations

import pytest
from safetensors_driver import llama, plan, request

import qconv_safetensors
from qconv.errors import UsageError
from qconv_safetensors._options import _KNOWN, read_scheme


def test_every_format_is_known_with_options_that_the_plugin_declares() -> None:
    (spec,) = qconv_safetensors.qconv_backends()
    assert {entry.name for entry in spec.formats} == set(_KNOWN)
    declared = {option.name for option in spec.options}
    assert {option for known in _KNOWN.values() for option in known} == declared


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("5GB", 5 * 10**9), ("500mb", 5 * 10**8), ("2GiB", 2 << 30), ("1.5 KB", 1500)],
)
def test_shard_sizes_are_read_with_their_units(text: str, nbytes: int) -> None:
    assert read_scheme(request(llama(), "bf16", shard_size=text)).shard_nbytes == nbytes


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("int4", {"bits": "9"}, "bits is '9', but this layout holds 2, 3, 4, 5, 6, 7, 8$"),
        ("int8", {"bits": "4"}, "bits is '4', but this layout holds 8; safetensors:int4 takes"),
        ("gptq", {"bits": "5"}, "bits is '5', but this layout holds 2, 3, 4, 8; "),
        ("awq", {"bits": "8"}, "bits is '8', but this layout holds 4; "),
        ("int4", {"group_size": "48"}, "group_size is '48', but .* 32, 64, 128, channel"),
        ("awq", {"symmetric": "true"}, "AWQ kernels always read zero-points; .*int4,symmetric=t"),
        ("gptq", {"symmetric": "false"}, "stores each zero-point less one .*gptq_v2,symmetric=f"),
        ("int8", {"activations": "dynamic", "group_size": "64"}, "one scale per channel"),
        ("int8", {"activations": "dynamic", "symmetric": "false"}, "without zero-points"),
        ("int4", {"activations": "dynamic"}, "'activations' means nothing here, as no runtime qu"),
        ("awq", {"scope": "block"}, "'scope' means nothing here, as only FP8 scales have a scope"),
        ("fp8", {"bits": "8"}, "'bits' means nothing here, as the format decides it; this format"),
        ("int4", {"double_quant": "true"}, "as only bitsandbytes quantizes scales"),
        ("bf16", {"group_size": "64"}, "as nothing is quantized; this format takes serve, shard_s"),
        ("bf16", {"shard_size": "5"}, "shard_size is '5'; write a size with its unit, such as 5GB"),
        ("bf16", {"shard_size": "0GB"}, "shard_size is '0GB'; write a size with its unit"),
        ("int4", {"serve": "sglang"}, "serve is 'sglang'; the runtime whose kernels are checked"),
        ("int4", {"serve": "vllm:tp=0"}, "serve is 'vllm:tp=0'; the runtime whose kernels"),
        ("nf4", {"serve": "vllm:tp=2"}, "vLLM does not load nf4; serve int4, int8, fp8"),
    ],
)
def test_what_no_runtime_computes_is_refused(
    target: str, options: dict[str, str], words: str
) -> None:
    with pytest.raises(UsageError, match=f"safetensors:{target}: .*{words}"):
        plan(llama(), target, **options)
