"""config.json: the source's, with the ``quantization_config`` that runtimes expect of a format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ._compressed_tensors import compressed_tensors_config
from ._container import json_bytes
from ._dtypes import stating_dtype
from ._options import FLOATS
from ._skipped import float_modules, merged_experts, need_apart, pattern, quantized_head

if TYPE_CHECKING:
    from ._planner import Job, PlannedTensor

_FORMATS = {"int4", "int8", "fp8"}


def config_files(job: Job, plans: Sequence[PlannedTensor]) -> dict[str, bytes]:
    """The files that say how the weights are stored, by name.

    Raises:
        Unsupported: a module left in float cannot be told apart by its runtime.
    """
    config = {key: value for key, value in job.view.config.items() if key != "quantization_config"}
    if job.scheme.format in FLOATS:
        return {"config.json": json_bytes(stating_dtype(config, job.dtype))}
    if job.model.kind == "gguf":  # whose floats are cast, not kept
        config = stating_dtype(config, job.dtype)
    settings = _settings(job, plans)
    files = {"config.json": json_bytes({**config, "quantization_config": settings})}
    if job.scheme.format in {"gptq", "gptq_v2"}:
        files["quantize_config.json"] = json_bytes(settings)  # where older loaders look
    return files


def _settings(job: Job, plans: Sequence[PlannedTensor]) -> dict[str, Any]:
    quantized = [plan for plan in plans if plan.grid is not None]
    skipped = float_modules(plans)
    if job.scheme.format in _FORMATS:
        return compressed_tensors_config(quantized, skipped)
    skipped = merged_experts(skipped, quantized)
    if job.scheme.format in {"gptq", "gptq_v2"}:
        return _gptq(job, quantized, skipped)
    need_apart(job.scheme.format, skipped, quantized)
    if job.scheme.format == "awq":
        return _awq(quantized, skipped)
    return _bitsandbytes(job, quantized, skipped)


def _gptq(job: Job, quantized: Sequence[PlannedTensor], skipped: Sequence[str]) -> dict[str, Any]:
    """As GPTQModel 7.7 writes it; ``dynamic`` with ``-:`` names what is not quantized."""
    grid = quantized[0].grid
    spec = {} if grid is None else grid.spec()
    return {
        "bits": spec["bits"],
        "checkpoint_format": job.scheme.format,
        "desc_act": False,
        "dynamic": {f"-:{pattern(name)}": {} for name in skipped},
        "group_size": _group_size(spec),
        "lm_head": quantized_head(quantized),
        "pack_dtype": "int32",
        "quant_method": "gptq",
        "sym": spec["symmetric"],
        "static_groups": False,
        "true_sequential": False,
    }


def _awq(quantized: Sequence[PlannedTensor], skipped: Sequence[str]) -> dict[str, Any]:
    """As transformers' ``AwqConfig`` reads it."""
    grid = quantized[0].grid
    spec = {} if grid is None else grid.spec()
    return {
        "bits": spec["bits"],
        "group_size": _group_size(spec),
        **({"lm_head": True} if quantized_head(quantized) else {}),  # vLLM asks for it
        "modules_to_not_convert": list(skipped),
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": True,
    }


def _bitsandbytes(
    job: Job, quantized: Sequence[PlannedTensor], skipped: Sequence[str]
) -> dict[str, Any]:
    """As transformers' ``BitsAndBytesConfig`` writes it."""
    grid = quantized[0].grid
    spec = {} if grid is None else grid.spec()
    return {
        "bnb_4bit_compute_dtype": job.dtype,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": spec["codebook"],
        "bnb_4bit_use_double_quant": spec["double_quant"],
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": list(skipped),
        "llm_int8_threshold": 6.0,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "quant_method": "bitsandbytes",
    }


def _group_size(spec: Any) -> int:  # noqa: ANN401 -- a grid's spec
    """-1 stands for a whole row."""
    size = spec["group_size"]
    return size if isinstance(size, int) else -1
