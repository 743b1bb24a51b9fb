"""qconv's own artifacts for the comparison: one command each, with what the kernel says it took.

A command runs in a process of its own and is measured whole, with imports, calibration and writing.
Before it, the same command runs unmeasured on one block of the model, so that no kernel is compiled
while the clock runs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import quality_backend
from quality_windows import as_windows, read_windows
from safetensors import safe_open
from safetensors.torch import save_file
from whole import LAUNCH

from qconv.calibration import Calibration, save_calibration
from qconv.checkpoint import open_checkpoint

Row = dict[str, Any]

#: Formats by the name of the table: the target, and which of the two models it is measured on.
FORMATS = {
    "q4_k_m": ("gguf:q4_k_m", "wide"),
    "int4_g64": ("bench:int4_g64", "narrow"),
    "uint4_g64": ("bench:uint4_g64", "narrow"),
    "w8a8": ("bench:w8a8", "narrow"),
}
_FOUR_BIT = (
    "rtn@none",
    "rtn",
    "gptq",
    "gptq@sequential",
    "awq",
    "awq,gptq",
    "awq,gptq@sequential",
    "signround",
)
#: What is tried by default: a chain, then `@none` for no calibration or `@sequential`.
METHODS = {
    "q4_k_m": _FOUR_BIT,
    "int4_g64": _FOUR_BIT,
    "uint4_g64": _FOUR_BIT,
    "w8a8": ("rtn@none", "rtn", "gptq", "smoothquant", "smoothquant,gptq"),
}


@dataclass(frozen=True, kw_only=True)
class Command:
    """One conversion.

    method: a chain, and after `@` what it is calibrated on or how
    calibration: builtin, a text, or a calibration file
    """

    model: Path
    format: str
    method: str
    calibration: str
    windows: int
    length: int
    out: Path
    threads: int

    @property
    def chain(self) -> str:
        return self.method.split("@")[0]

    @property
    def steps(self) -> list[str]:
        """Names of the methods in the chain, without their options."""
        return [part for part in self.chain.split(",") if "=" not in part]

    @property
    def calibrated(self) -> bool:
        return not self.method.endswith("@none")

    def arguments(self) -> list[str]:
        target, _ = FORMATS[self.format]
        made = [
            str(Path(sys.executable).parent / "qconv"), str(self.model), "--to", target,
            "--out", str(self.out), "--method", self.chain, "--threads", str(self.threads),
            "--device", "cpu", "--force", "--no-resume", "--quiet",
        ]  # fmt: skip
        if self.calibrated:
            made += ["--calibration", self.calibration]
        if self.calibrated and not self.calibration.endswith(".safetensors"):
            made += ["--windows", str(self.windows), "--window-length", str(self.length)]
        if self.method.endswith(("@shared", "@sequential")):
            made += ["--statistics", self.method.split("@")[1]]
        return made


class Workshop:
    """Where conversions run: the environment that finds the bench's backend, and their results.

    out: a folder for artifacts and for `runs.jsonl`, one line for each conversion
    """

    def __init__(self, out: Path, threads: int) -> None:
        self.out, self.threads = out, threads
        out.mkdir(parents=True, exist_ok=True)
        plugin = out / "plugin"
        shutil.rmtree(plugin, ignore_errors=True)
        quality_backend.install(plugin)
        path = [str(Path(__file__).parent), str(plugin), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(part for part in path if part),
            **dict.fromkeys(
                ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)
            ),
        }

    def methods(self) -> set[str]:
        """The methods that are installed."""
        command = [str(Path(sys.executable).parent / "qconv"), "plugins", "--json"]
        done = subprocess.run(command, check=True, capture_output=True, env=self.environment)
        plugins = json.loads(done.stdout)["plugins"]
        return {method["name"] for plugin in plugins for method in plugin["methods"]}

    def calibration_for(self, given: str, model: Path) -> str:
        """What `--calibration` takes: peers' windows become a calibration file for the model."""
        if not given.endswith(".safetensors"):
            return given
        tokens = read_windows(Path(given))
        path = self.out / f"calibration-{model.name}.safetensors"
        settings = Calibration(source=given, windows=len(tokens), window_length=len(tokens[0]))
        with open_checkpoint(model) as checkpoint:
            save_calibration(path, as_windows(tokens), checkpoint.model, options=[settings])
        return str(path)

    def run(self, command: Command) -> Row:
        """Warm up, convert, and add a line to `runs.jsonl`."""
        self._warm_up(command)
        shutil.rmtree(command.out, ignore_errors=True)
        row: Row = {
            "format": command.format,
            "method": command.method,
            "calibration": Path(command.calibration).name if command.calibrated else None,
            "threads": command.threads,
        }
        row |= self._measured(command)
        with (self.out / "runs.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        return row

    def _measured(self, command: Command) -> Row:
        launch = [sys.executable, "-c", LAUNCH, *command.arguments()]
        done = subprocess.run(launch, check=False, capture_output=True, env=self.environment)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            return {"failed": said[-1]}
        wall, cpu, peak = json.loads(done.stdout)
        (artifact,) = command.out.iterdir()
        return {"cpu_s": cpu, "wall_s": wall, "peak_mb": peak, "out": str(artifact)}

    def _warm_up(self, command: Command) -> None:
        with tempfile.TemporaryDirectory() as folder:
            small = cut_model(command.model, Path(folder) / "small")
            quick = replace(
                command,
                model=small,
                out=Path(folder) / "out",
                calibration="builtin",
                windows=2,
                length=64,
            )
            subprocess.run(
                quick.arguments(), check=False, capture_output=True, env=self.environment
            )


def cut_model(model: Path, out: Path) -> Path:
    """The model's embedding, first block and head."""
    out.mkdir()
    later = re.compile(r"\.layers\.[1-9]")
    kept = {}
    for path in model.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if not later.search(name)]  # noqa: SIM118
            kept |= {name: file.get_tensor(name) for name in names}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    for path in model.glob("*token*.json"):
        shutil.copy(path, out)
    return out


def commands(
    workshop: Workshop,
    models: dict[str, Path],
    *,
    formats: Sequence[str],
    methods: Sequence[str] | None,
    calibration: str,
    windows: int,
    length: int,
) -> Iterator[Command]:
    """Every conversion asked for. methods: instead of each format's own."""
    for name in formats:
        model = models[FORMATS[name][1]]
        given = workshop.calibration_for(calibration, model)
        for method in methods or METHODS[name]:
            slug = re.sub(r"[^a-z0-9.=]+", "-", method)
            yield Command(
                model=model,
                format=name,
                method=method,
                calibration=given,
                windows=windows,
                length=length,
                out=workshop.out / f"{name}-{slug}",
                threads=workshop.threads,
            )


def latest_runs(out: Path) -> list[Row]:
    """The last line of each format and method."""
    file = out / "runs.jsonl"
    if not file.exists():
        return []
    rows = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
    return list({(row["format"], row["method"]): row for row in rows}.values())
