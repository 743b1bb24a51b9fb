"""onnxruntime.quantization: what it makes of a float graph, by itself or with calibration."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["dynamic", "static"])
    parser.add_argument("graph", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--calibration", type=Path, help="inputs by name, windows first")
    parser.add_argument("--external", action="store_true", help="weights in another file")
    options = parser.parse_args()
    {"dynamic": dynamic, "static": static}[options.kind](options)


def dynamic(options: argparse.Namespace) -> None:
    """Weights by channel, inputs by tensor as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        options.graph,
        options.out,
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=options.external,
    )


def static(options: argparse.Namespace) -> None:
    """QDQ of products, by minimum and maximum; its default operators ruin transformers."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        options.graph,
        options.out,
        Windows(options.calibration, options.graph),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
    )


class Windows:
    """Calibration inputs, one window at a time, as onnxruntime asks for them."""

    def __init__(self, path: Path, graph: Path) -> None:
        import onnx

        inputs = onnx.load(graph, load_external_data=False).graph.input
        with np.load(path) as arrays:
            self._arrays = {each.name: arrays[each.name] for each in inputs}
        self._rows = self._each()

    def _each(self) -> Iterator[dict[str, Any]]:
        for number in range(len(next(iter(self._arrays.values())))):
            yield {name: value[number : number + 1] for name, value in self._arrays.items()}

    def get_next(self) -> dict[str, Any] | None:
        return next(self._rows, None)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._rows


if __name__ == "__main__":
    main()
