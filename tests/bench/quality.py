"""How much a converted model loses, of qconv and of its peers, with the same windows for all.

    python tests/bench/quality.py score MODEL ARTIFACT...

Held-out text is qconv's own, of which no run of 13 tokens is in a calibration window; every
position of a window counts, unless `--skip` leaves the first ones out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from quality_artifacts import Artifact, open_artifact
from quality_score import Judge, Score
from quality_windows import calibration_tokens, held_out

from qconv.checkpoint import open_checkpoint

Row = dict[str, Any]


def score_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--held-out", nargs="+", default=["builtin"], help="text to measure on: builtin or files"
    )
    parser.add_argument("--held-out-windows", type=int, help="how many; by default all there are")
    parser.add_argument("--length", type=int, default=512, help="tokens per window")
    parser.add_argument(
        "--skip", type=int, default=0, help="positions of each window not scored (llama.cpp: 256)"
    )
    parser.add_argument(
        "--calibration", nargs="*", default=["builtin"], help="what held-out text stays clear of"
    )
    parser.add_argument("--windows", type=int, default=32, help="calibration windows")
    parser.add_argument(
        "--tensors",
        choices=("all", "linears"),
        default="all",
        help="linears: the float model's own embedding and head",
    )
    parser.add_argument(
        "--activations",
        choices=("both", "rounded", "float"),
        default="both",
        help="for formats that compute in int8: inputs of linears rounded as run, or not",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="append a line for each artifact to this file")


def make_judge(model: Path, options: argparse.Namespace) -> Judge:
    """The float model and its held-out windows."""
    torch.set_num_threads(options.threads)
    with open_checkpoint(model) as checkpoint:
        calibrated = [
            window
            for given in options.calibration
            for window in calibration_tokens(given, options.windows, options.length, checkpoint)
        ]
    windows = held_out(
        model,
        options.held_out,
        calibrated,
        count=options.held_out_windows,
        length=options.length,
    )
    judge = Judge(model, windows, skip=options.skip)
    print(
        f"{model.name}: float perplexity {judge.perplexity:.3f}; scored are positions "
        f"{options.skip} to {options.length - 1} of each window"
    )
    return judge


def score_all(
    judge: Judge, paths: Sequence[Path], options: argparse.Namespace
) -> Iterator[tuple[Path, Row]]:
    """The score of each artifact, in two ways where its runtime rounds activations."""
    for path in paths:
        artifact = open_artifact(path, judge.config)
        for activations in _ways(artifact, options.activations):
            score = judge.score(
                artifact, activations=activations, linears_only=options.tensors == "linears"
            )
            yield path, as_row(artifact, score, activations=activations)


def _ways(artifact: Artifact, asked: str) -> list[bool]:
    if not artifact.activations:
        return [False]
    return {"both": [True, False], "rounded": [True], "float": [False]}[asked]


def as_row(artifact: Artifact, score: Score, *, activations: bool) -> Row:
    return {
        "activations": "int8" if activations else "float",
        "nbytes": artifact.nbytes,
        "linear_bits": artifact.linear_bits,
        **score.to_json(),
    }


HEADER = "KL (nats)        median    p99   top-1     ppl  / float      MB   bits  artifact"


def line(name: str, row: Row) -> str:
    inputs = " (int8 inputs)" if row["activations"] == "int8" else ""
    return (
        f"{row['kl']:.4f} +-{row['kl_se']:.4f} {row['kl_median']:7.4f} {row['kl_p99']:7.3f} "
        f"{100 * row['top1']:5.1f} % {row['perplexity']:7.3f} {row['perplexity_ratio']:7.4f} "
        f"{row['nbytes'] / 1e6:8.1f} {row['linear_bits']:6.3f}  {name}{inputs}"
    )


def score_command(options: argparse.Namespace) -> None:
    judge = make_judge(options.model, options)
    print(HEADER)
    for path, row in score_all(judge, options.artifacts, options):
        print(line(path.name, row), flush=True)
        if options.json:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"artifact": str(path), **row}) + "\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    score = commands.add_parser("score", help="score artifacts of any converter")
    score.add_argument("model", type=Path, help="folder of the float model")
    score.add_argument("artifacts", type=Path, nargs="+")
    score_options(score)
    score.set_defaults(call=score_command)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse(sys.argv[1:])
    options.call(options)


if __name__ == "__main__":
    main()
