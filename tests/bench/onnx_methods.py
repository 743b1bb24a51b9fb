"""What methods lose in onnxruntime: smoothing against quantize_dynamic, GPTQ and AWQ against rtn.

    python tests/bench/onnx_methods.py --model .models/smollm2-135m

A model is exported once to float32, without a cache, and scored in onnxruntime on the CPU on text
that nothing is calibrated on. ``qconv MODEL --to onnx:FORMAT --method METHOD`` is scored beside it,
with the text that comes with qconv where a method needs some, and so is what onnxruntime's own
``quantize_dynamic`` (by channel) makes of the float32 graph. Loss is the KL divergence from the
float32 graph's predictions in nats by token; of an encoder, 1 minus the cosine of its states. The
ratios at the end are to quantize_dynamic for formats that round inputs, and to ``rtn`` for others.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from onnx_session import Opened, divergence, windows
from onnx_whole import PEERS, QCONV, exported, run_command, target_of

#: What is asked for: targets of one command, by method.
METHODS: Mapping[str, tuple[str, ...]] = {
    "rtn": ("w8a8", "int4"),
    "rtn with text": ("w8a8", "int8_static", "int4"),
    "smoothquant": ("w8a8", "int8_static"),
    "gptq": ("int4",),
    "awq": ("int4",),
    "awq,gptq": ("int4",),
}

#: Formats that round inputs, too.
ROUNDED = ("w8a8", "int8_static")

DYNAMIC = "onnxruntime dynamic"


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        lost = measured(options, Path(folder))
    if options.json:
        print(json.dumps({"lost": lost, "ratios": ratios(lost)}))
        return
    for title, figures in (("lost", lost), ("ratios", ratios(lost))):
        print(title)
        for name, figure in figures.items():
            print(f"  {name:48} {figure:.5f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--scored", type=int, default=16, help="windows of 128 tokens")
    parser.add_argument("--windows", type=int, default=16, help="to calibrate on")
    parser.add_argument("--window-length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, help="where the large files go")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def measured(options: argparse.Namespace, work: Path) -> dict[str, float]:
    """The loss of everything, by what made it."""
    graph = exported(options.model, work / "float32")
    scored, _ = windows(graph.parent, options.scored)
    expected = Opened(graph, options.threads).outputs(scored)
    made = work / "dynamic" / "model.onnx"
    made.parent.mkdir()
    run_command([sys.executable, PEERS / "onnx_runtime.py", "dynamic", graph, made])
    lost = {DYNAMIC: divergence(expected, Opened(made, options.threads).outputs(scored))}
    for method in options.methods:
        for target, found in _converted(options, method, work / method.replace(" ", "-")).items():
            outputs = Opened(found, options.threads).outputs(scored)
            lost[f"{target}, {method}"] = divergence(expected, outputs)
            print(f"{target}, {method}: {lost[f'{target}, {method}']:.5f}", file=sys.stderr)
    return lost


def _converted(options: argparse.Namespace, method: str, out: Path) -> dict[str, Path]:
    """The graphs of a method's targets, made by one command."""
    name, _, text = method.partition(" with ")
    command = [QCONV, options.model, "--method", name, "--out", out, "--quiet"]
    command += ["--threads", options.threads]
    if text or name != "rtn":
        command += ["--calibration", "builtin", "--windows", options.windows]
        command += ["--window-length", options.window_length]
    for target in METHODS[method]:
        command += ["--to", target_of(options.model, target)]
    run_command(command)
    folder = f"{options.model.name}-ONNX"
    return {target: out / f"{folder}-{target.upper()}" / "model.onnx" for target in METHODS[method]}


def ratios(lost: Mapping[str, float]) -> dict[str, float]:
    """Losses to those of what everybody has: less is better."""
    found = {}
    for name, loss in lost.items():
        target, _, method = name.partition(", ")
        base = DYNAMIC if target in ROUNDED else f"{target}, rtn"
        if method and name != base and base in lost:
            found[f"{name} / {base}"] = loss / lost[base]
    return found


if __name__ == "__main__":
    main()
