"""What every consumer is asked for: log-probabilities of the tokens of fixed windows.

Standard library only at import: these scripts run in each runtime's own environment. A consumer
prints one line of JSON: runtime, versions, and either perplexity with the log-probability of every
token but each window's first, or the error that the runtime raised.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Windows = list[list[int]]
#: Marks the one line of a consumer's output that is its report; runtimes print much else.
MARK = "qconv-consumer "


def parse(description: str) -> argparse.Namespace:
    """The artifact and the windows, a JSON list of lists of token ids."""
    parser = argparse.ArgumentParser(description=description.split("\n", maxsplit=1)[0])
    parser.add_argument("artifact", type=Path, help="folder with config.json")
    parser.add_argument("windows", type=Path, help="JSON: [[token id, ...], ...]")
    parser.add_argument("--dtype", default="bfloat16", help="of activations and float weights")
    return parser.parse_args()


def read_windows(path: Path) -> Windows:
    return json.loads(path.read_text(encoding="utf-8"))


def of_logits(logits: torch.Tensor, window: Sequence[int]) -> list[float]:
    """Log-probabilities of ``window[1:]``. logits: (tokens, vocabulary), any float dtype."""
    import torch

    log_p = torch.log_softmax(logits[: len(window) - 1].float(), -1)
    return log_p.gather(1, torch.tensor(window[1:])[:, None])[:, 0].tolist()


def of_model(model: Any, windows: Windows) -> list[float]:
    """Log-probabilities from a transformers model, window by window."""
    import torch

    found = []
    with torch.inference_mode():
        for window in windows:
            logits = model(input_ids=torch.tensor([window]), use_cache=False).logits[0]
            found += of_logits(logits, window)
    return found


def versions(*packages: str) -> dict[str, str]:
    """Of the packages that are installed."""
    installed = {
        distribution.metadata["Name"].lower(): distribution.version
        for distribution in importlib.metadata.distributions()
    }
    return {package: installed[package] for package in packages if package in installed}


def report(runtime: str, packages: Sequence[str], run: Callable[[], list[float]]) -> None:
    """Run a consumer and print its line; what it raises is its answer."""
    line: dict[str, Any] = {"runtime": runtime, "versions": versions("torch", *packages)}
    try:
        log_p = run()
    except Exception as error:  # noqa: BLE001 -- a runtime may raise anything
        traceback.print_exc(file=sys.stderr)
        line["error"] = f"{type(error).__name__}: {error}"
    else:
        line["perplexity"] = math.exp(-sum(log_p) / len(log_p))
        line["log_probabilities"] = [round(value, 6) for value in log_p]
    print(MARK + json.dumps(line), flush=True)
