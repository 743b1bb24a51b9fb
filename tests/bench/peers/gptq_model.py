"""GPTQModel makes a GPTQ- or AWQ-format checkpoint; its last line says what that took.

    pip install torch==2.14.1 && pip install gptqmodel==7.7.0
    python gptq_model.py MODEL OUT --scheme gptq-sym --tokens windows.safetensors

Runs in an environment of its own: it pins a newer torch and transformers than the other peers. It
compiles C++ when it first packs: run it once before measuring. On machines of two cores and fewer
its thread pools need GPTQMODEL_CPU_WORKERS=2, which this script sets where nothing is set.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import figures

SCHEMES = ("rtn-sym", "gptq-sym", "gptq-asym", "awq-asym")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scheme", choices=SCHEMES, required=True)
    parser.add_argument("--group-size", type=int, default=64, help="columns per scale")
    parser.add_argument("--tokens", type=Path, help="what make_windows.py wrote")
    parser.add_argument("--windows", type=int, help="only this many of them, evenly spaced")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def calibration(options: argparse.Namespace) -> list[dict[str, object]] | None:
    """One window per entry; None for rounding to nearest, which reads none."""
    import torch
    from safetensors.torch import load_file

    if options.scheme.startswith("rtn"):
        return None
    if options.tokens is None:
        raise SystemExit(f"--scheme {options.scheme} calibrates: give --tokens")
    tokens = load_file(options.tokens)["tokens"]
    if options.windows:
        tokens = tokens[torch.linspace(0, len(tokens) - 1, options.windows).long()]
    return [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in tokens]


def main() -> None:
    options = parse()
    figures.limit_threads(options.threads)
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig, RTNConfig, __version__

    torch.set_num_threads(options.threads)
    data = calibration(options)
    method, _, kind = options.scheme.rpartition("-")
    settings = {"quant_method": "awq", "format": "gemm"} if method == "awq" else {}
    make = RTNConfig if method == "rtn" else QuantizeConfig
    config = make(
        bits=4, group_size=options.group_size, sym=kind == "sym", device="cpu", **settings
    )
    out = options.out.resolve()
    model = GPTQModel.load(str(options.model.resolve()), config)
    os.chdir(tempfile.mkdtemp())  # it leaves a folder of logs where it runs
    watch = figures.Stopwatch.start()
    model.quantize(data)
    quantizing = watch.seconds()
    model.save(str(out))
    figures.report(
        "gptqmodel",
        options.scheme,
        quantizing=quantizing,
        windows=len(data) if data else 0,
        group_size=options.group_size,
        threads=options.threads,
        version=__version__,
        out=str(options.out),
    )


if __name__ == "__main__":
    main()
