"""Memory of an artifact, measured: loaded and run over a context in a process of its own.

On a CPU the process' memory is looked at; on CUDA what torch's allocator reserved, and what the
device itself says. A GGUF or a graph is run by its own engine, of which the driver tells.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qconv.errors
from qconv.errors import NotEnoughResources, QconvError, Unsupported, UsageError
from qconv.memory._driver import driver_name
from qconv.memory._predict import make_setting, predict
from qconv.memory._subject import open_subject
from qconv.memory._weights import Weights

if TYPE_CHECKING:
    from qconv.memory._json import MeasurementJson
    from qconv.memory._result import VramResult
    from qconv.memory._subject import Subject

#: Tokens run at a time.
_STEP = 512

#: Of the weights on the device, if any are: a driver counts by pages, and others come and go.
_SOME = 0.5

#: What is told of a figure that is not of one process.
_WHOLE_DEVICE = (
    "measured as a difference of the whole device, whose driver does not list processes here: what "
    "others took or gave back meanwhile is in it"
)

#: What is freed goes back to the system, so that resident memory is memory in use (glibc).
_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "262144",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what deterministic algorithms ask for
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A prediction beside what was measured, for the same run.

    result: of qconv's own run or of the artifact's engine, with ``measured``, ``by`` and
        ``figures``: on CUDA ``max_memory_allocated``, ``max_memory_reserved``, ``device`` and
        ``device_context``
    """

    result: VramResult

    def to_json(self) -> MeasurementJson:
        """As JSON-able data."""
        result = self.result
        return {
            "low": result.low,
            "high": result.high,
            "measured": result.measured or 0,
            "error": result.error or 0,
            "runtime": result.runtime,
            "device": result.device or "",
            "by": result.by or "",
            "context": result.context,
            "batch": result.batch,
            "cache_type": result.cache_type,
            "parts": dict(result.parts),
            "figures": dict(result.figures),
            "assumptions": list(result.assumptions),
        }


def measure(
    path: str | Path, *, context: int, batch: int = 1, device: str = "cpu", step: int = _STEP
) -> Measurement:
    """Load an artifact, run ``context`` tokens through it, and compare with the prediction.

    batch: sequences at a time; engines other than torch run one
    device: ``cpu``, ``cuda`` or ``cuda:n``
    step: tokens run at a time, where torch runs them

    Raises:
        UnreadableInput: it is missing, malformed or hostile, or no model.
        Unsupported: its engine cannot be measured on the device, or its architecture not run.
        NotEnoughResources: the process ran out of memory, or the device is absent.
        BrokenPlugin: what runs it is not installed.
    """
    from qconv._host import load_plugins
    from qconv.model import resolve_device

    place = resolve_device(device)
    with open_subject(path, load_plugins()) as subject:
        if subject.kind == "safetensors":
            return _in_torch(subject, str(place), context, batch, step)
        return _in_engine(subject, str(place), context, batch)


def device_memory(device: str) -> int:
    """Bytes that a device has: a GPU's own, or the machine's.

    Raises:
        UsageError: no such device, or a system that does not say.
        NotEnoughResources: the device is absent.
    """
    from qconv.model import resolve_device

    place = resolve_device(device)
    if place.type == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(place).total_memory)
    if not hasattr(os, "sysconf"):
        raise UsageError("this system does not say how much memory it has; give --vram, e.g. 16GiB")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _in_torch(subject: Subject, device: str, context: int, batch: int, step: int) -> Measurement:
    cuda = device.startswith("cuda")
    dtype, cache_type, nbytes = ("bfloat16", "f16", 2) if cuda else ("float32", "f32", 4)
    found = _run(
        {
            "engine": "torch",
            "path": str(subject.path),
            "device": device,
            "dtype": dtype,
            "context": context,
            "batch": batch,
            "step": step,
        }
    )
    asked = make_setting("torch", context=context, batch=batch, cache_type=cache_type, step=step)
    result = predict(subject.shape, _held(subject, nbytes), asked, device="cuda" if cuda else "cpu")
    if cuda and not found["context_known"]:
        result = _without_context(result)
    return _measurement(result, found, device)


def _in_engine(subject: Subject, device: str, context: int, batch: int) -> Measurement:
    """In the artifact's own engine: llama.cpp or onnxruntime."""
    if batch != 1:
        raise Unsupported(
            f"{subject.path}: its own engine is run one sequence at a time, not {batch}; leave "
            "--batch out"
        )
    vocab = subject.shape.vocab
    asked = {"engine": "runtime", "path": str(subject.path), "device": device}
    found = _run({**asked, "context": context, "vocab": vocab})
    kind = "cpu" if device == "cpu" else "cuda"
    runtime = "llama.cpp" if subject.kind == "gguf" else "onnxruntime"
    setting = make_setting(runtime, context=context, step=context)
    result = predict(subject.shape, subject.weights, setting, device=kind)
    if kind == "cpu":
        result = _with_logits(result, 4 * context * vocab)
    elif found["measured"] < subject.weights.on_device(runtime) * _SOME:
        raise Unsupported(
            f"{subject.path}: {found['by']}, but only {found['measured']} bytes more were in use "
            f"on {device}: this build of {runtime} computes on the CPU; install one with CUDA, or "
            "measure with --device cpu"
        )
    elif found["whole_device"]:
        result = replace(result, assumptions=(*result.assumptions, _WHOLE_DEVICE))
    return _measurement(result, found, device)


def _with_logits(result: VramResult, nbytes: int) -> VramResult:
    """With the logits of all tokens, which the engine keeps, and which are copied out of it."""
    return replace(
        result,
        low=result.low + nbytes,
        high=result.high + 2 * nbytes,
        parts={**result.parts, "logits": result.parts["logits"] + 2 * nbytes},
        assumptions=(*result.assumptions, "logits of every token, kept and copied"),
    )


def _without_context(result: VramResult) -> VramResult:
    """Where no driver says what a CUDA context takes, it is left out of both."""
    from qconv.memory._working import CONTEXT

    return replace(
        result,
        low=result.low - CONTEXT[0],
        high=result.high - CONTEXT[1],
        parts={**result.parts, "device_context": 0},
        assumptions=(*result.assumptions, "the CUDA context is in neither figure"),
    )


def _held(subject: Subject, nbytes: int) -> Weights:
    """Packed tensors as stored, the others in the dtype that is computed in."""
    source = subject.source
    if source is None:
        return subject.weights
    encoded = getattr(source, "encoded", {})
    parts = {part for tensor in encoded.values() for part in tensor.parts}
    packed = {name: size for name, size in subject.weights.nbytes.items() if name in parts}
    floats = {
        name: nbytes * info.numel
        for name, info in source.model.tensors.items()
        if name not in encoded
    }
    return Weights(nbytes={**packed, **floats})


def _measurement(result: VramResult, found: Mapping[str, Any], device: str) -> Measurement:
    told = {"by": str(found["by"]), "figures": found["parts"]}
    return Measurement(result=result.beside(int(found["measured"]), device=device, **told))


def _run(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Run the worker in a fresh interpreter.

    Raises:
        QconvError: what it raised; NotEnoughResources where the system ended it.
    """
    device = str(asked["device"])
    if device != "cpu":
        asked = {**asked, "driver_name": driver_name(int(device.partition(":")[2] or 0))}
    done = subprocess.run(
        [sys.executable, "-m", "qconv.memory._worker"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env={**os.environ, **_ENVIRONMENT},
        check=False,
    )
    found = _answer(done.stdout)
    if found is None:
        raise NotEnoughResources(_died(asked, done.returncode, done.stderr))
    if "error" in found:
        kind = getattr(qconv.errors, str(found["error"]), QconvError)
        raise kind(found["message"])
    return found


def _answer(said: str) -> Mapping[str, Any] | None:
    """The last line, if it is a document: libraries may print before it."""
    lines = said.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _died(asked: Mapping[str, Any], code: int, said: str) -> str:
    last = said.strip().splitlines()[-1:] or ["it said nothing"]
    return (
        f"{asked['path']}: the process that was to run {asked['context']} tokens on "
        f"{asked['device']} ended with {code} ({last[0]}); ask for a shorter --context"
    )
