"""ONNX targets against onnxruntime's own quantizers and Olive, on the same graphs.

    python tests/bench/onnx_whole.py --models .models/smollm2-135m
    python tests/bench/onnx_whole.py --models MODEL [MODEL ...] --olive PYTHON

A model is exported once to float32 by qconv, without a cache; from this graph, in one file, every
contender starts: ``qconv GRAPH --to onnx:...``, onnxruntime's ``quantize_dynamic`` (by channel) and
``quantize_static`` (QDQ, MatMul and Gemm, calibrated on other text than is scored), and Olive's
dynamic pass. ``qconv MODEL --to ...`` from the checkpoint is measured beside them, its export
included. Wall and CPU seconds and peak memory are those of the whole process; then the size of the
result, the KL divergence of its predictions from the float32 graph's (of an encoder: 1 minus the
cosine of its states), and tokens per second at 1, 64 and 512 rows, in onnxruntime on the CPU. A
larger random model with its weights in another file says what memory depends on. All by turns, the
median of ``--runs``; nothing is compared over several runs of this script.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx_session import Opened, divergence, speed, windows
from whole import Figures, measure

PEERS = Path(__file__).parent / "peers"
QCONV = Path(sys.executable).parent / "qconv"

TARGETS = ("w8a8", "int8_static", "w8", "int4")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a contender took, and what it made.

    size_mb: of the graph and its weights, in units of 10^6 bytes
    lost: KL divergence in nats by token of a model that predicts; of an encoder, 1 - cosine
    at_1, at_64, at_512: tokens per second
    """

    figures: Figures
    size_mb: float
    lost: float | None = None
    at_1: float | None = None
    at_64: float | None = None
    at_512: float | None = None


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        for model in options.models:
            report(_name(model), _of_model(options, model, Path(folder) / model.name), options)
        if options.scale:
            report("scaling", _of_size(options, Path(folder) / "scaling"), options)


def _name(model: Path) -> str:
    """A folder that is called model is known by the one that it is in."""
    return model.parent.name if model.name == "model" else model.name


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--models", nargs="*", type=Path, default=[], help="checkpoints")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--olive", help="Python of an environment that has Olive")
    parser.add_argument("--scale", type=int, default=0, help="MB of the random float32 model")
    parser.add_argument("--windows", type=int, default=8, help="of 128 tokens, to be scored")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, help="where the large files go")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _of_model(options: argparse.Namespace, model: Path, work: Path) -> dict[str, Result]:
    """All contenders on one model."""
    graph = exported(model, work)
    scored, other = windows(graph.parent, options.windows)
    np.savez(work / "calibration.npz", **other)
    contenders = _commands(options, model, graph, work)
    taken = by_turns(contenders, options.runs)
    opened = Opened(graph, options.threads)
    expected = opened.outputs(scored)
    results = {"float32": _measured(options, graph, None, expected, scored)}
    for name, (_, made) in contenders.items():
        results[name] = _measured(options, made, taken[name], expected, scored)
    return results


def exported(model: Path, work: Path) -> Path:
    """The float32 graph of a checkpoint as the peers know it best: one file, nothing transposed."""
    work.mkdir(parents=True)
    run_command([QCONV, model, "--to", target_of(model, "fp32"), "--out", work, "--quiet"])
    (folder,) = work.iterdir()
    return _in_one_file(folder)


def _in_one_file(folder: Path) -> Path:
    import onnx

    path = folder / "model.onnx"
    whole = onnx.load(path)
    fold_transposes(whole)
    (folder / "model.onnx.data").unlink()
    onnx.save(whole, path)
    return path


def fold_transposes(model: Any) -> None:
    """Store weights that the graph transposes transposed: onnxruntime quantizes no others."""
    from onnx import numpy_helper

    stored = {each.name: each for each in model.graph.initializer}
    users = Counter(name for node in model.graph.node for name in node.input)
    for node in list(model.graph.node):
        weight = stored.get(node.input[0]) if node.op_type == "Transpose" else None
        if weight is None or len(weight.dims) != 2 or users[weight.name] != 1:
            continue
        turned = np.ascontiguousarray(numpy_helper.to_array(weight).T)
        weight.CopyFrom(numpy_helper.from_array(turned, node.output[0]))
        model.graph.node.remove(node)


def target_of(model: Path, name: str) -> str:
    """A target of a checkpoint: without a cache, as the peers' graphs have none."""
    config = json.loads((model / "config.json").read_text())
    return f"onnx:{name}" + (",kv_cache=false" if _decodes(config) else "")


def _decodes(config: Mapping[str, Any]) -> bool:
    return "CausalLM" in str(config.get("architectures"))


Contenders = dict[str, tuple[list[list[str]], Path]]


def _commands(options: argparse.Namespace, model: Path, graph: Path, work: Path) -> Contenders:
    """Each contender's commands, and the graph it leaves."""
    found: Contenders = {}
    for target in options.targets:
        if target == "int8_static":
            continue  # needs statistics of the checkpoint's own blocks
        folder = f"{graph.parent.name}-ONNX-{target.upper()}"
        found[f"qconv {target}"] = (
            [_qconv(options, graph, f"onnx:{target}", work / "graph")],
            work / "graph" / folder / "model.onnx",
        )
    for target in options.targets:
        more = ["--calibration", "builtin", "--windows", "16"] if target == "int8_static" else []
        folder = f"{model.name}-ONNX-{target.upper()}"
        found[f"qconv {target}, from the checkpoint"] = (
            [[*_qconv(options, model, target_of(model, target), work / "whole"), *more]],
            work / "whole" / folder / "model.onnx",
        )
    return found | _peers(options, graph, work)


def by_turns(contenders: Contenders, runs: int) -> dict[str, Figures]:
    """Contenders in turn, ``runs`` times after one unmeasured round; the median run of each.

    What they wrote stays, to be scored.
    """
    taken: dict[str, list[Figures]] = {name: [] for name in contenders}
    for number in range(runs + 1):
        for name, (steps, _) in contenders.items():
            os.sync()  # so that no command pays for what another left to be written
            parts = [measure(step) for step in steps]
            total = Figures(
                wall=sum(part.wall for part in parts),
                cpu=sum(part.cpu for part in parts),
                peak_mb=max(part.peak_mb for part in parts),
            )
            if number:
                taken[name].append(total)
                print(name, total, file=sys.stderr)
    return {
        name: sorted(figures, key=lambda figure: figure.wall)[len(figures) // 2]
        for name, figures in taken.items()
    }


def _qconv(options: argparse.Namespace, source: Path, target: str, out: Path) -> list[str]:
    settings = ["--force", "--quiet", "--threads", str(options.threads)]
    return [str(QCONV), str(source), "--to", target, "--out", str(out), *settings]


def _peers(options: argparse.Namespace, graph: Path, work: Path) -> Contenders:
    found: Contenders = {}
    for kind in ("dynamic", "static"):
        made = work / f"ort-{kind}" / "model.onnx"
        made.parent.mkdir()
        command = [sys.executable, str(PEERS / "onnx_runtime.py"), kind, str(graph), str(made)]
        more = ["--calibration", str(work / "calibration.npz")] if kind == "static" else []
        found[f"onnxruntime {kind}"] = ([[*command, *more]], made)
    if options.olive:
        made = work / "olive" / "model.onnx"
        command = [options.olive, str(PEERS / "olive_dynamic.py"), str(graph), str(made.parent)]
        found["olive dynamic"] = ([command], made)
    else:
        print("olive: left out, as no --olive PYTHON was given", file=sys.stderr)
    return found


def _measured(
    options: argparse.Namespace,
    made: Path,
    figures: Figures | None,
    expected: Sequence[np.ndarray[Any, Any]],
    scored: Mapping[str, np.ndarray[Any, Any]],
) -> Result:
    opened = Opened(made, options.threads)
    return Result(
        figures=figures or Figures(wall=0, cpu=0, peak_mb=0),
        size_mb=_size(made),
        lost=divergence(expected, opened.outputs(scored)),
        at_1=speed(opened, scored, 1),
        at_64=speed(opened, scored, 64),
        at_512=speed(opened, scored, 512),
    )


def _size(graph: Path) -> float:
    """Of the graph and what weights lie beside it, not of tokenizers."""
    files = [each for each in graph.parent.iterdir() if each.suffix in {".onnx", ".data"}]
    return sum(each.stat().st_size for each in files) / 1e6


def _of_size(options: argparse.Namespace, work: Path) -> dict[str, Result]:
    """A random model of so many MB, its weights in another file: time and memory only."""
    work.mkdir(parents=True)
    graph = make_random(work / "random", options.scale)
    contenders: Contenders = {}
    for target in ("w8a8", "int4"):
        made = work / "out" / f"random-ONNX-{target.upper()}" / "model.onnx"
        command = _qconv(options, graph, f"onnx:{target}", work / "out")
        contenders[f"qconv {target}"] = ([command], made)
    made = work / "ort" / "model.onnx"
    made.parent.mkdir()
    script = [sys.executable, str(PEERS / "onnx_runtime.py"), "dynamic", str(graph), str(made)]
    contenders["onnxruntime dynamic"] = ([[*script, "--external"]], made)
    taken = by_turns(contenders, options.runs)
    results = {"float32": Result(figures=Figures(wall=0, cpu=0, peak_mb=0), size_mb=_size(graph))}
    for name, (_, made) in contenders.items():
        results[name] = Result(figures=taken[name], size_mb=_size(made))
    shutil.rmtree(work)
    return results


def make_random(folder: Path, megabytes: int) -> Path:
    """A stack of products of 2048 by 2048, as many as make up the size, in external data."""
    from onnx import TensorProto, helper, save_model

    folder.mkdir(parents=True)
    count = max(1, megabytes * 10**6 // (2048 * 2048 * 4))
    nodes, tensors = [], []
    with (folder / "weights.data").open("wb") as file:
        for number, values in enumerate(_matrices(count)):
            tensors.append(_external(f"weight.{number}", file.tell(), values.nbytes))
            file.write(values.data)
            nodes.append(
                helper.make_node("MatMul", [f"x{number}", f"weight.{number}"], [f"m{number}"])
            )
            nodes.append(helper.make_node("Tanh", [f"m{number}"], [f"x{number + 1}"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2048])
        for name in ("x0", f"x{count}")
    ]
    graph = helper.make_graph(nodes, "random", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    save_model(model, folder / "model.onnx")
    return folder / "model.onnx"


def _matrices(count: int) -> Iterator[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield (rng.standard_normal((2048, 2048), dtype=np.float32) * 0.02).astype(np.float32)


def _external(name: str, offset: int, nbytes: int) -> Any:
    from onnx import TensorProto

    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2048, 2048])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.data"), ("offset", offset), ("length", nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def run_command(command: Sequence[object]) -> None:
    import subprocess

    words = [str(each) for each in command]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")


def report(title: str, results: Mapping[str, Result], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps({title: {name: asdict(each) for name, each in results.items()}}))
        return
    print(f"\n{title}")
    for name, each in results.items():
        print(f"  {name:32} {_shown(each)}")
    for name, each in results.items():
        for peer, theirs in results.items():
            if name.startswith("qconv") and not peer.startswith(("qconv", "float32")):
                print(f"  {name} / {peer}: {ratios(each, theirs)}")


def _shown(result: Result) -> str:
    figures = result.figures
    parts = [
        f"wall {figures.wall:6.1f} s  CPU {figures.cpu:6.1f} s  peak {figures.peak_mb:5.0f} MB"
    ]
    parts.append(f"size {result.size_mb:6.1f} MB")
    if result.lost is not None:
        parts.append(f"lost {result.lost:.5f}")
        speeds = {1: result.at_1, 64: result.at_64, 512: result.at_512}
        parts.append(f"tokens/s {', '.join(f'{at:.1f} at {n}' for n, at in speeds.items())}")
    return "  ".join(parts)


def ratios(ours: Result, theirs: Result) -> str:
    """Ours to theirs: of times, memory, size and loss, less is better; of speeds, more."""
    pairs = {
        "wall": (ours.figures.wall, theirs.figures.wall),
        "CPU": (ours.figures.cpu, theirs.figures.cpu),
        "peak": (ours.figures.peak_mb, theirs.figures.peak_mb),
        "size": (ours.size_mb, theirs.size_mb),
        "lost": (ours.lost, theirs.lost),
        "speed at 1": (ours.at_1, theirs.at_1),
        "speed at 64": (ours.at_64, theirs.at_64),
        "speed at 512": (ours.at_512, theirs.at_512),
    }
    found = {name: a / b for name, (a, b) in pairs.items() if a is not None and b}
    return ", ".join(f"{name} {ratio:.3f}" for name, ratio in found.items())


if __name__ == "__main__":
    main()
