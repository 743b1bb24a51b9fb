"""GPTQModel loads a GPTQ or AWQ artifact by itself.

    pip install torch==2.14.1 && pip install gptqmodel==7.7.0
    python in_gptqmodel.py ARTIFACT windows.json

Compiles C++ on its first load, which takes minutes once.
"""

from __future__ import annotations

import os

import log_probabilities


def run(options: object) -> list[float]:
    import torch
    from gptqmodel import GPTQModel

    model = GPTQModel.load(str(options.artifact), device="cpu", dtype=getattr(torch, options.dtype))
    return log_probabilities.of_model(
        model.model.eval(), log_probabilities.read_windows(options.windows)
    )


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # its thread pools want two workers, and take half as many as there are cores
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    given = log_probabilities.parse(__doc__)
    log_probabilities.report("gptqmodel", ("gptqmodel", "transformers"), lambda: run(given))
