"""llm-compressor makes a compressed-tensors checkpoint; its last line says what that took.

    pip install torch==2.13.0 && pip install llmcompressor==0.14.0.1
    python llm_compressor.py MODEL OUT --scheme awq-asym --tokens windows.safetensors

Runs in an environment of its own: llm-compressor pins what qconv and the other peers need newer.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import figures
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import __version__, oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier

SCHEMES = (
    "rtn-sym", "rtn-asym", "gptq-sym", "gptq-asym", "awq-sym", "awq-asym",
    "awq+gptq-sym", "awq+gptq-asym", "sq-w8a8",
)  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scheme", choices=SCHEMES, required=True)
    parser.add_argument("--group-size", type=int, default=64, help="columns per scale (4 bit)")
    parser.add_argument("--observer", help="how ranges are found: memoryless_minmax, mse, ...")
    parser.add_argument("--tokens", type=Path, help="what make_windows.py wrote")
    parser.add_argument("--windows", type=int, help="only this many of them, evenly spaced")
    parser.add_argument("--dtype", default="auto", help="of the weights: auto (as stored), float32")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def recipe(scheme: str, group_size: int, observer: str | None) -> list[Modifier]:
    """The modifiers of a scheme. W8A8 is as llm-compressor's own example has it."""
    if scheme == "sq-w8a8":
        gptq = GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"])
        return [SmoothQuantModifier(smoothing_strength=0.8), gptq]
    methods, _, kind = scheme.rpartition("-")
    weights = QuantizationArgs(
        num_bits=4,
        type="int",
        strategy="group",
        group_size=group_size,
        symmetric=kind == "sym",
    )
    rounder = GPTQModifier if "gptq" in methods else QuantizationModifier
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    rounding = rounder(config_groups=groups, ignore=["lm_head"], weight_observer=observer)
    return [AWQModifier(), rounding] if "awq" in methods else [rounding]


def calibration(options: argparse.Namespace) -> DataLoader | None:
    """One window per batch, in the file's order; None for the schemes that read no data."""
    if options.scheme.startswith("rtn"):
        return None
    if options.tokens is None:
        raise SystemExit(f"--scheme {options.scheme} calibrates: give --tokens")
    tokens = load_file(options.tokens)["tokens"]
    if options.windows:
        tokens = tokens[torch.linspace(0, len(tokens) - 1, options.windows).long()]
    batches = [
        {"input_ids": window[None], "attention_mask": torch.ones_like(window[None])}
        for window in tokens
    ]
    return DataLoader(batches, batch_size=None)


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    if not torch.accelerator.is_available():
        # AWQ pins its caches whether or not there is a device to copy to, and torch then raises
        IntermediatesCache.pin_memory = lambda *_: None
    data = calibration(options)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype)
    modifiers = recipe(options.scheme, options.group_size, options.observer)
    watch = figures.Stopwatch.start()
    oneshot(model=model, recipe=modifiers, dataset=data)
    quantizing = watch.seconds()
    model.save_pretrained(options.out, save_compressed=True)
    AutoTokenizer.from_pretrained(options.model).save_pretrained(options.out)
    figures.report(
        "llm-compressor",
        options.scheme,
        quantizing=quantizing,
        windows=len(data) if data else 0,
        group_size=None if options.scheme == "sq-w8a8" else options.group_size,
        observer=options.observer,
        dtype=str(model.dtype).removeprefix("torch."),
        threads=options.threads,
        version=__version__,
        out=str(options.out),
    )


if __name__ == "__main__":
    main()
