"""transformers loads an artifact, with compressed-tensors, bitsandbytes or GPTQModel behind it.

python in_transformers.py ARTIFACT windows.json
"""

from __future__ import annotations

import os

import log_probabilities


def run(options: object) -> list[float]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        options.artifact, dtype=getattr(torch, options.dtype), device_map="cpu"
    )
    return log_probabilities.of_model(model.eval(), log_probabilities.read_windows(options.windows))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    given = log_probabilities.parse(__doc__)
    log_probabilities.report(
        "transformers",
        ("transformers", "compressed-tensors", "bitsandbytes", "optimum", "gptqmodel"),
        lambda: run(given),
    )
