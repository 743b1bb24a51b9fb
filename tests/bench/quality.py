"""How much a converted model loses, of qconv and of its peers, with the same windows for all.

    python tests/bench/quality.py score MODEL ARTIFACT...
    python tests/bench/quality.py run --wide DIR --narrow DIR --out DIR [--peers DIR]
    python tests/bench/quality.py table --wide DIR --narrow DIR --out DIR [--peers DIR]

`score` takes artifacts of any converter. `run` makes qconv's own, then does what `table` does: it
scores them and the peers' (of tests/bench/peers, with their results.jsonl) and prints tables.
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
from quality_artifacts import Artifact, hidden_size, open_artifact
from quality_run import FORMATS, Workshop, commands, latest_runs
from quality_score import Judge, Score
from quality_table import Entry, Scored, our_entries, peer_entries, tables
from quality_windows import calibration_tokens, digest_of, held_out

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
        "--calibration",
        nargs="+",
        default=["builtin"],
        help="builtin, text or windows (.safetensors): held-out text stays clear of all of them; "
        "`run` calibrates on the first",
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
        print(line(f"{path.resolve().parent.name}/{path.name}", row), flush=True)
        if options.json:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"artifact": str(path), **row}) + "\n")


def run_command(options: argparse.Namespace) -> None:
    for folder in options.peers:
        list(peer_entries(folder))  # what cannot be read should not come to light hours later
    workshop = Workshop(options.out, options.threads)
    known = workshop.methods()
    models = {"wide": options.wide, "narrow": options.narrow}
    for command in commands(
        workshop,
        models,
        formats=options.formats,
        methods=options.methods,
        calibration=options.calibration[0],
        windows=options.windows,
        length=options.length,
    ):
        lacking = [step for step in command.steps if step not in known]
        if lacking:
            print(f"{command.format} {command.method}: missing, no method {', '.join(lacking)}")
            continue
        row = workshop.run(command)
        took = row.get("failed") or f"{row['cpu_s']:.1f} CPU s, {row['peak_mb']:.0f} MB"
        print(f"{command.format} {command.method}: {took}", flush=True)
    table_command(options)


def table_command(options: argparse.Namespace) -> None:
    entries = list(our_entries(latest_runs(options.out)))
    for folder in options.peers:
        entries += peer_entries(folder)
    found: list[Scored] = []
    for kind, model in (("wide", options.wide), ("narrow", options.narrow)):
        hidden = hidden_size(model)
        wanted = [
            entry
            for entry in entries
            if entry.format in options.formats
            and FORMATS[entry.format][1] == kind
            and hidden_size(entry.path) == hidden
        ]
        if wanted:
            judge = make_judge(model, options)
            found += score_entries(judge, wanted, options)
            del judge
    print(
        f"\nCalibrated on {', '.join(options.calibration)}; CPU seconds: of qconv the whole "
        "command, of peers calibrating and quantizing alone; errors are over windows\n"
    )
    for table in tables(found):
        print(table)


def score_entries(
    judge: Judge, entries: Sequence[Entry], options: argparse.Namespace
) -> Iterator[Scored]:
    """Scores of all entries; those that were scored before as they are now come from a file."""
    file = options.out / "scores.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    known = {str(row["key"]): row["rows"] for row in map(json.loads, lines)}
    held = [digest_of(judge.windows), judge.skip, options.tensors, options.activations]
    for entry in entries:
        weights = entry.path if entry.path.is_file() else next(entry.path.glob("*.safetensors"))
        key = [str(entry.path), weights.stat().st_mtime_ns, *held]
        if str(key) not in known:
            rows = [row for _, row in score_all(judge, [entry.path], options)]
            known[str(key)] = rows
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"key": key, "rows": rows}) + "\n")
        for row in known[str(key)]:
            print(line(f"{entry.format} {entry.converter} {entry.method}", row), flush=True)
            yield Scored(entry=entry, row=row)


def comparison_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wide", type=Path, required=True, help="float model for K-quants")
    parser.add_argument("--narrow", type=Path, required=True, help="float model for the others")
    parser.add_argument("--out", type=Path, required=True, help="folder for artifacts and results")
    parser.add_argument(
        "--peers", type=Path, nargs="*", default=[], help="folders with peers' results.jsonl"
    )
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    score_options(parser)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    subcommands = parser.add_subparsers(dest="command", required=True)
    score = subcommands.add_parser("score", help="score artifacts of any converter")
    score.add_argument("model", type=Path, help="folder of the float model")
    score.add_argument("artifacts", type=Path, nargs="+")
    score.add_argument("--json", type=Path, help="append a line for each artifact to this file")
    score_options(score)
    score.set_defaults(call=score_command)
    run = subcommands.add_parser("run", help="make qconv's artifacts, then the tables")
    run.add_argument(
        "--methods", nargs="+", help="chains, each with @none, @shared or @sequential after it"
    )
    comparison_options(run)
    run.set_defaults(call=run_command)
    table = subcommands.add_parser("table", help="score what `run` left, and peers'; print tables")
    comparison_options(table)
    table.set_defaults(call=table_command)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse(sys.argv[1:])
    options.call(options)


if __name__ == "__main__":
    main()
