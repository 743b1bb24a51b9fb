"""The formats to be judged, and what is known of runtimes that do not read them.

A format that a runtime refuses is asked for all the same: the table shows when that changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

RUNTIMES = ("vllm", "transformers", "gptqmodel")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table.

    target: as on qconv's command line
    refused: by runtime, why it cannot read the format
    not_for: runtimes that have nothing to do with the format, and are not asked
    rounds_inputs: the runtime quantizes activations
    rounds_scales: runtimes compute in bfloat16, and round scales to it: GPTQ's and AWQ's, which are
        float16, and bitsandbytes' in its kernels for CPUs, which are float32
    """

    name: str
    target: str
    refused: Mapping[str, str] = field(default_factory=dict)
    not_for: tuple[str, ...] = ()
    rounds_inputs: bool = False
    rounds_scales: bool = False

    @property
    def tolerance(self) -> float:
        """How far from 1 a ratio may be: farther, where the runtime itself rounds what it reads."""
        return 0.01 if self.rounds_inputs or self.rounds_scales else 0.002


_NO_W8A16 = {"vllm": "no CPU kernel for 8-bit weights with float inputs"}
_NO_BLOCKS = {"vllm": "no CPU kernel for FP8 blocks"}
_NO_FUSING = {"vllm": "its CPU build cannot give fused siblings one scale"}
_PLUGIN = {"vllm": "needs vllm-bnb-plugin"}
_PACKED_ZEROS = {"transformers": "5.20 and later misread packed zero-points"}
_NOT_GPTQ = ("gptqmodel",)
#: transformers reads GPTQ and AWQ by GPTQModel, which pins another torch than the environment's.
_BY_GPTQMODEL = ("transformers",)

CASES = (
    Case(name="bf16", target="safetensors:bf16", not_for=_NOT_GPTQ),
    Case(
        name="int4", target="safetensors:int4", refused=_PACKED_ZEROS,
        not_for=_NOT_GPTQ,
    ),
    Case(
        name="int4 g32", target="safetensors:int4,group_size=32",
        refused=_PACKED_ZEROS, not_for=_NOT_GPTQ,
    ),
    Case(name="int4 sym", target="safetensors:int4,symmetric=true", not_for=_NOT_GPTQ),
    Case(name="int8", target="safetensors:int8", refused=_NO_W8A16, not_for=_NOT_GPTQ),
    Case(
        name="int8 W8A8", target="safetensors:int8,activations=dynamic", not_for=_NOT_GPTQ,
        rounds_inputs=True,
    ),
    Case(name="fp8", target="safetensors:fp8", not_for=_NOT_GPTQ, rounds_inputs=True),
    Case(
        name="fp8 tensor", target="safetensors:fp8,scope=tensor",
        refused=_NO_FUSING, not_for=_NOT_GPTQ,
        rounds_inputs=True,
    ),
    Case(
        name="fp8 block", target="safetensors:fp8,scope=block", refused=_NO_BLOCKS,
        not_for=_NOT_GPTQ, rounds_inputs=True,
    ),
    Case(name="gptq", target="safetensors:gptq", not_for=_BY_GPTQMODEL, rounds_scales=True),
    Case(
        name="gptq 8-bit", target="safetensors:gptq,bits=8", refused=_NO_W8A16,
        not_for=_BY_GPTQMODEL, rounds_scales=True,
    ),
    Case(name="gptq v2", target="safetensors:gptq_v2", not_for=_BY_GPTQMODEL, rounds_scales=True),
    Case(
        name="gptq v2 asym", target="safetensors:gptq_v2,symmetric=false",
        refused={"vllm": "symmetric only"}, not_for=_BY_GPTQMODEL, rounds_scales=True,
    ),
    Case(
        name="awq", target="safetensors:awq", not_for=_BY_GPTQMODEL,
        rounds_scales=True,
    ),
    Case(
        name="nf4", target="safetensors:nf4", refused=_PLUGIN, not_for=_NOT_GPTQ,
        rounds_scales=True,
    ),
    Case(
        name="nf4 double", target="safetensors:nf4,double_quant=true", refused=_PLUGIN,
        not_for=_NOT_GPTQ, rounds_scales=True,
    ),
    Case(
        name="fp4", target="safetensors:fp4", refused=_PLUGIN, not_for=_NOT_GPTQ,
        rounds_scales=True,
    ),
)  # fmt: skip
