"""AutoRound makes a GPTQ-format (sym) or AWQ-format (asym) checkpoint; its last line: what it took.

    pip install torch==2.13.0 && pip install auto-round==0.15.1
    python autoround.py MODEL OUT --scheme signround-sym --tokens windows.safetensors

Symmetric is its full-range grid: the largest weight of a group lies on -8, with a signed scale.
Runs in an environment of its own, or in llm-compressor's, which brings this version.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import figures
import torch
from auto_round import AutoRound, __version__
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

METHODS = ("rtn", "opt-rtn", "signround")
FORMATS = {"sym": "auto_gptq", "asym": "auto_awq"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    schemes = [f"{method}-{kind}" for method in METHODS for kind in FORMATS]
    parser.add_argument("--scheme", choices=schemes, required=True)
    parser.add_argument("--group-size", type=int, default=64, help="columns per scale")
    parser.add_argument("--tokens", type=Path, help="what make_windows.py wrote")
    parser.add_argument("--iters", type=int, default=200, help="of signround, per block")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--compile", action="store_true", help="by inductor, as AutoRound would")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def calibration(options: argparse.Namespace) -> dict[str, object]:
    """AutoRound's arguments about data; none for plain RTN, which reads none."""
    if options.scheme.startswith("rtn"):
        return {}
    if options.tokens is None:
        raise SystemExit(f"--scheme {options.scheme} calibrates: give --tokens")
    tokens = load_file(options.tokens)["tokens"]
    batches = [{"input_ids": batch} for batch in tokens.split(options.batch_size)]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    return {"dataset": loader, "nsamples": len(tokens), "seqlen": tokens.shape[1]}


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    method, _, kind = options.scheme.rpartition("-")
    data = calibration(options)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="auto")
    watch = figures.Stopwatch.start()
    rounder = AutoRound(
        model,
        AutoTokenizer.from_pretrained(options.model),
        scheme="W4A16",
        group_size=options.group_size,
        sym=kind == "sym",
        iters=options.iters if method == "signround" else 0,
        disable_opt_rtn=method == "rtn",
        batch_size=options.batch_size,
        enable_torch_compile=options.compile,
        device_map="cpu",
        **data,
    )
    rounder.quantize_and_save(str(options.out), format=FORMATS[kind])
    figures.report(
        "auto-round",
        options.scheme,
        quantizing=watch.seconds(),
        windows=data.get("nsamples", 0),
        group_size=options.group_size,
        iters=options.iters if method == "signround" else 0,
        threads=options.threads,
        version=__version__,
        out=str(options.out),
    )


if __name__ == "__main__":
    main()
