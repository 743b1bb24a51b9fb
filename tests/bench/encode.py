"""Speed and error of quantizing to GGUF blocks, against llama.cpp's own quantizer.

    python tests/bench/encode.py [--model DIR] [--types q4_k,q8_0] [--json]

Both on one thread, by CPU time, taking turns on the same tensors, so that the ratio of medians
means something on a busy machine too. qconv's time covers the checks, the search and the packing.
Errors are squared, weighted by importance where it is given, relative to llama.cpp's, and averaged
over tensors. Without a model these are normal, heavy-tailed, sparse, one-signed, of mixed scale.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

sys.path.insert(0, str(Path(__file__).parents[1]))

from llama_oracle import TYPES, ggml_quantize
from qconv.grids import BlockGrid, Grid, SuperBlockGrid
from qconv_gguf._packing import pack

Array = npt.NDArray[np.float32]


def synthetic() -> Iterator[tuple[str, Array]]:
    rng = np.random.default_rng(0)
    shape = (256, 2048)
    normal = rng.standard_normal(shape, np.float32) * np.float32(0.02)
    yield "normal", normal
    yield "student-t", (rng.standard_t(3, shape) * 0.02).astype(np.float32)
    yield "sparse", normal * (rng.random(shape) < 0.1)
    yield "one-signed", np.abs(normal)
    yield "mixed rows", normal * np.exp(2 * rng.standard_normal((256, 1))).astype(np.float32)


def of_model(folder: Path) -> Iterator[tuple[str, Array]]:
    """Every 17th linear weight of a checkpoint, its first 512 rows."""
    from safetensors import safe_open

    files = [safe_open(file, "pt") for file in sorted(folder.glob("*.safetensors"))]
    linear = [
        (name, file) for file in files for name in sorted(file.keys()) if name.endswith("weight")
    ]
    linear = [(name, f) for name, f in linear if len(f.get_slice(name).get_shape()) == 2]
    for name, file in linear[::17]:
        yield name, np.ascontiguousarray(file.get_tensor(name).float().numpy()[:512])


def grid_of(name: str) -> Grid:
    return (SuperBlockGrid if name.endswith("_k") else BlockGrid)(type=name)


def quantize(grid: Grid, weight: Array, importance: Array | None) -> Array:
    codes, parameters = grid.quantize(
        torch.from_numpy(weight), None if importance is None else torch.from_numpy(importance)
    )
    return pack(grid.name, codes, parameters).numpy()


def loss(name: str, data: Array, weight: Array, importance: Array | None) -> float:
    decoded = dequantize(data, GGMLQuantizationType[name.upper()]).reshape(weight.shape)
    error = np.square(decoded.astype(np.float64) - weight)
    return float((error if importance is None else error * importance).sum())


def seconds(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def measure(
    name: str, tensors: list[tuple[str, Array, Array]], *, weighted: bool, turns: int
) -> dict[str, object]:
    grid = grid_of(name)
    cases = [
        (w, i if weighted else None) for _, w, i in tensors if w.shape[1] % TYPES[name][1] == 0
    ]
    ratios = [
        loss(name, quantize(grid, w, i), w, i)
        / max(loss(name, ggml_quantize(name, w, i), w, i), 1e-300)
        for w, i in cases
    ]
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(turns):
        ours.append(sum(seconds(lambda w=w, i=i: quantize(grid, w, i)) for w, i in cases))
        theirs.append(sum(seconds(lambda w=w, i=i: ggml_quantize(name, w, i)) for w, i in cases))
    weights = sum(w.size for w, _ in cases)
    mine, other = statistics.median(ours), statistics.median(theirs)
    return {
        "type": name,
        "importance": weighted,
        "qconv_weights_per_second": weights / mine,
        "ggml_weights_per_second": weights / other,
        "speed_ratio": other / mine,
        "mean_error_ratio": statistics.fmean(ratios),
        "largest_error_ratio": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a checkpoint's folder")
    parser.add_argument("--types", default=",".join(TYPES), help="of " + ", ".join(TYPES))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    tensors = [
        (name, weight, np.exp(1.5 * rng.standard_normal(weight.shape[1])).astype(np.float32))
        for name, weight in (of_model(options.model) if options.model else synthetic())
    ]
    if not options.json:
        print("type  importance  qconv Mw/s  ggml Mw/s  faster  error  largest")
    for name in options.types.split(","):
        for weighted in (False, True):
            row = measure(name, tensors, weighted=weighted, turns=options.turns)
            if options.json:
                print(json.dumps(row), flush=True)
                continue
            print(
                f"{name:5} {'yes' if weighted else 'no':>11}"
                f" {row['qconv_weights_per_second'] / 1e6:11.1f}"
                f" {row['ggml_weights_per_second'] / 1e6:10.1f} {row['speed_ratio']:7.2f}"
                f" {row['mean_error_ratio']:6.3f} {row['largest_error_ratio']:8.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
