"""How far sound artifacts of a real model stay below the default limits of their class.

    python tests/bench/gates.py --model .models/smollm2-135m-wide --out out/gates

converts the model to every target below, by rounding to nearest or SmoothQuant, measures each on
held-out text, and prints its figures with the share of the limit that they take. Ends with 1 where
a sound artifact is over a limit, or where every artifact of a class stays so far below one that it
would let a broken file pass. What an earlier run of the same command measured is not measured
again; ``--out`` keeps it, so that limits can be set from it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import qconv
from qconv.validation._class_limits import CLASSES, LOSSLESS, limit_for

#: Target and method.
SOUND = (
    ("gguf:q8_0", "rtn"),
    ("safetensors:int8", "rtn"),
    ("safetensors:fp8", "rtn"),
    ("safetensors:int8", "smoothquant"),
    ("onnx:w8a8", "rtn"),
    ("onnx:int8_static", "rtn"),
    ("gguf:q6_k", "rtn"),
    ("gguf:q5_k_m", "rtn"),
    ("gguf:q4_k_m", "rtn"),
    ("safetensors:nf4", "rtn"),
    ("gguf:q3_k_m", "rtn"),
    ("gguf:q2_k", "rtn"),
)
#: The same of what loses so much of a small model that a warning is right: measured, not judged.
LOSSY = (
    ("safetensors:int4", "rtn"),
    ("safetensors:int4,symmetric=true", "rtn"),
)

#: What needs text although its method does not.
STATIC = "int8_static"

#: Figures that have default limits.
FIGURES = ("kl", "kl_p99", "top1", "ppl")

#: The worst sound artifact of a class must take this share of a limit, or the limit is too wide.
LEAST = 0.3


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One artifact. figures: by the name of their gate."""

    target: str
    method: str
    grid_class: str
    weights: int
    figures: Mapping[str, float]

    def shares(self) -> dict[str, float]:
        """What each figure takes of its limit."""
        found = {}
        for name in FIGURES:
            lossless = LOSSLESS.get(name, 0.0)
            limit = limit_for(self.grid_class, name, self.weights)
            if limit is not None:
                found[name] = (self.figures[name] - lossless) / (limit - lossless)
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="targets whose name holds this")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--window-length", type=int, default=512)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    print(f"{'target':34}{'method':13}{'class':19}" + "".join(f"{n:>18}" for n in FIGURES))
    found = []
    for target, method in (*SOUND, *LOSSY):
        if given.only not in f"{target} {method}":
            continue
        found.append(measured(target, method, given))
        print(row(found[-1]), flush=True)
    if given.only:
        return 0  # limits are judged by all of a class
    problems = list(judged(found[: len(SOUND)]))
    print("\n".join(problems) or "every sound artifact is below its limits, none of them too wide")
    return 1 if problems else 0


def measured(target: str, method: str, given: argparse.Namespace) -> Measured:
    """An artifact's figures: those of an earlier run, or new ones."""
    name = f"{given.model.name}-{target}-{method}-{given.windows}x{given.window_length}"
    kept = given.out / (name.translate(str.maketrans(":,=", "---")) + ".json")
    if kept.is_file():
        return Measured(**json.loads(kept.read_text(encoding="utf-8")))
    folder = given.out / "artifact"
    shutil.rmtree(folder, ignore_errors=True)
    text = "builtin" if STATIC in target else None
    done = qconv.convert(given.model, target, method=method, calibration=text, out=folder)
    first = done.artifacts[0].files[0]
    validation = qconv.validate(
        first if first.parent == folder else first.parent,
        given.model,
        windows=given.windows,
        window_length=given.window_length,
    )
    (artifact,) = validation.artifacts
    shutil.rmtree(folder)
    logits = artifact.logits
    if logits is None or artifact.faults or any(each.faults for each in artifact.tensors):
        raise SystemExit(f"{target} by {method} is not sound: {artifact.status}")
    made = Measured(
        target=target,
        method=method,
        grid_class=artifact.grid_class,
        weights=sum(each.numel for each in done.plan.model.tensors.values()),
        figures={
            "kl": logits.kl.mean,
            "kl_p99": logits.kl.p99,
            "top1": logits.same_top1,
            "ppl": logits.perplexity_ratio,
        },
    )
    kept.write_text(json.dumps(asdict(made), indent=2) + "\n", encoding="utf-8")
    return made


def row(each: Measured) -> str:
    shares = each.shares()
    cells = [
        f"{figure:.4g} ({shares[name]:.0%})" if name in shares else f"{figure:.4g}"
        for name, figure in each.figures.items()
    ]
    return f"{each.target:34}{each.method:13}{each.grid_class:19}" + "".join(
        f"{cell:>18}" for cell in cells
    )


def judged(found: list[Measured]) -> Iterator[str]:
    """What is wrong with the limits."""
    for each in found:
        for name, share in each.shares().items():
            if share > 1:
                yield f"{each.target} by {each.method}: {name} is {share:.2f} of its limit"
    for grid_class in CLASSES:
        of_class = [each.shares() for each in found if each.grid_class == grid_class]
        for name in FIGURES:
            worst = max((shares[name] for shares in of_class if name in shares), default=0.0)
            if 0 < worst < LEAST:  # of no loss, no limit is a multiple
                yield f"class {grid_class}: sound files take {worst:.2f} of {name} at most"


if __name__ == "__main__":
    sys.exit(main())
