"""What every runtime is held to: transformers' forward pass on the weights as qconv decodes them.

    python in_decoded.py ARTIFACT windows.json

The weights come from qconv's own reader, rounded to the dtype that runtimes compute in. Where the
artifact says that the runtime rounds the linears' inputs, they are rounded here, too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import log_probabilities
import torch

Rounding = Callable[[torch.Tensor], torch.Tensor]


def decoded(artifact: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the artifact by the model's name, float32."""
    from qconv_safetensors._backend import SafetensorsBackend

    reader = SafetensorsBackend().open(artifact)
    return {name: reader.read(name) for name in reader.tensors}


def load(artifact: Path, dtype: torch.dtype) -> Any:
    """A transformers model with the decoded weights, which rounds inputs as the artifact says."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(artifact)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    state = {name: tensor.to(dtype) for name, tensor in decoded(artifact).items()}
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    model.load_state_dict(state, strict=True)
    for name, rounding in roundings(artifact, model):
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda _, inputs, f=rounding: (f(inputs[0]), *inputs[1:]))
    return model


def roundings(artifact: Path, model: torch.nn.Module) -> Iterator[tuple[str, Rounding]]:
    """The linears whose inputs the artifact's config has rounded, and how."""
    text = (artifact / "config.json").read_text(encoding="utf-8")
    section = json.loads(text).get("quantization_config", {})
    groups = section.get("config_groups", {}).values()
    inputs = [group["input_activations"] for group in groups if group.get("input_activations")]
    if not inputs:
        return
    if len(groups) > 1 or any(not each["dynamic"] for each in inputs):
        raise SystemExit(f"{artifact}: only one group and inputs rounded as they come are judged")
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name not in section.get("ignore", []):
            yield name, rounding_of(inputs[0])


def rounding_of(arguments: dict[str, Any]) -> Rounding:
    """Symmetric, by token or by group of a token's values, to int8 or FP8 E4M3."""
    largest = 127.0 if arguments["type"] == "int" else 448.0
    size = arguments["group_size"] if arguments["strategy"] == "group" else None

    def rounded(values: torch.Tensor) -> torch.Tensor:
        wide = values.float()
        grouped = wide if size is None else wide.unflatten(-1, (-1, size))
        scale = grouped.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        steps = grouped / (scale / largest)
        if arguments["type"] == "int":
            steps = steps.round().clamp(-128, 127)
        else:
            steps = steps.clamp(-448, 448).to(torch.float8_e4m3fn).float()
        return (steps * (scale / largest)).reshape(values.shape).to(values.dtype)

    return rounded


def run(options: argparse.Namespace) -> list[float]:
    model = load(options.artifact, getattr(torch, options.dtype))
    return log_probabilities.of_model(model, log_probabilities.read_windows(options.windows))


if __name__ == "__main__":
    given = log_probabilities.parse(__doc__)
    log_probabilities.report("decoded", ("transformers", "qconv"), lambda: run(given))
