"""Graphs of language models and encoders in onnxruntime: their outputs on text, and their speed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray[Any, Any]]

#: Tokens of a window.
LENGTH = 128

#: Seconds that a speed is measured for, after one run that is not counted.
_ENOUGH = 2.0


class Opened:
    """A graph in onnxruntime on the CPU."""

    def __init__(self, graph: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [each.name for each in self._session.get_inputs()]

    def run(self, feeds: Arrays) -> np.ndarray[Any, Any]:
        """The first output: logits, or states."""
        found: np.ndarray[Any, Any] = self._session.run(
            None, {name: feeds[name] for name in self.inputs}
        )[0]
        return found

    def outputs(self, scored: Arrays) -> list[np.ndarray[Any, Any]]:
        """The first output for every window."""
        count = len(scored["input_ids"])
        return [
            self.run({name: value[number : number + 1] for name, value in scored.items()})[0]
            for number in range(count)
        ]


def feeds(ids: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Every input that such graphs take, of whole texts: (texts, tokens) int64."""
    ids = ids.astype(np.int64)
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.broadcast_to(np.arange(ids.shape[1]), ids.shape).copy(),
        "token_type_ids": np.zeros_like(ids),
    }


def windows(model: Path, count: int) -> tuple[Arrays, Arrays]:
    """Windows to be scored, and as many to calibrate on, of qconv's texts for either."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    scored, other = (
        _spread(tokenizer.encode(text, add_special_tokens=False).ids, count)
        for text in (_text("evaluate.jsonl"), _text("calibrate.jsonl"))
    )
    return feeds(scored), feeds(other)


def _spread(ids: list[int], count: int) -> np.ndarray[Any, Any]:
    """So many windows from all over a text: (count, LENGTH)."""
    if len(ids) < count * LENGTH:
        raise SystemExit(f"the text has {len(ids)} tokens only; lower --windows")
    step = len(ids) // count
    return np.stack([np.array(ids[n * step : n * step + LENGTH]) for n in range(count)])


def _text(name: str) -> str:
    """Documents of one of qconv's own texts, conversations left out."""
    from importlib.resources import files

    lines = (files("qconv.calibration") / "builtin" / name).read_text(encoding="utf-8")
    return "\n".join(str(json.loads(line).get("text", "")) for line in lines.splitlines())


def divergence(
    expected: Sequence[np.ndarray[Any, Any]], found: Sequence[np.ndarray[Any, Any]]
) -> float:
    """KL divergence in nats by token, of logits; 1 - cosine, of states, which are far narrower."""
    pairs = zip(expected, found, strict=True)
    if expected[0].shape[-1] < 4096:
        return float(np.mean([1 - _cosine(a, b) for a, b in pairs]))
    return float(np.mean([_kl(a, b) for a, b in pairs]))


def _kl(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    p, q = (_log_softmax(each.astype(np.float64)) for each in (expected, found))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def _log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    shifted = logits - logits.max(-1, keepdims=True)
    result: np.ndarray[Any, Any] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def _cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    result: np.ndarray[Any, Any] = (a * b).sum(-1) / (
        np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    )
    return result.mean()


def speed(opened: Opened, scored: Arrays, rows: int) -> float:
    """Tokens per second at so many rows at once: the best run, as load only slows."""
    ids = np.resize(scored["input_ids"], (1, rows))
    one = feeds(ids)
    opened.run(one)
    best, began = np.inf, time.monotonic()
    while time.monotonic() - began < _ENOUGH:
        start = time.perf_counter()
        opened.run(one)
        best = min(best, time.perf_counter() - start)
    return rows / float(best)
