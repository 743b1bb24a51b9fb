"""Opens graphs in onnxruntime, and says why one does not open, and what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from qconv.errors import BrokenPlugin, UnreadableInput, Unsupported

_BOTH = (
    "onnxruntime and onnxruntime-gpu are both installed, and each overwrites files of the other; "
    "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'qconv[onnx]'"
)

#: What onnxruntime says of a graph that it is too old for, or lacks operators of.
_OPSET = re.compile(
    r"Opset (?P<found>\d+) is under development.*till opset (?P<known>\d+)", re.DOTALL
)
_IR = re.compile(r"Unsupported model IR version: (?P<found>\d+), max supported \w+ version: (\d+)")
_CUSTOM = re.compile(r"Fatal error: (?P<domain>[^\s:]+):(?P<name>\w+)\(-?\d+\) is not a registered")
_STANDARD = re.compile(r"No Op registered for (?P<name>\w+) with domain_version of (?P<opset>\d+)")


def plain_options() -> Any:  # noqa: ANN401
    """``onnxruntime.SessionOptions`` that print errors only.

    Raises:
        BrokenPlugin: as :func:`open_session`.
    """
    options = _runtime().SessionOptions()
    options.log_severity_level = 3
    return options


def open_session(file: Path | bytes, *, name: str | None = None, options: Any = None) -> Any:  # noqa: ANN401
    """An ``onnxruntime.InferenceSession`` of ``file``, on the CPU.

    name: what messages call it; None: the file
    options: ``onnxruntime.SessionOptions``; None: the plain ones

    Raises:
        BrokenPlugin: onnxruntime is missing, or spoilt by a second one.
        Unsupported: it is too old for the graph, or knows an operator of it not.
        UnreadableInput: it refuses the graph for another reason.
    """
    runtime = _runtime()
    wanted = plain_options() if options is None else options
    try:
        return runtime.InferenceSession(file, wanted, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises errors of classes of its own, under no base
        raise _told(name or str(file), str(error), runtime.__version__) from error


def _runtime() -> Any:  # noqa: ANN401
    try:
        import onnxruntime
    except ImportError as error:
        raise BrokenPlugin(
            f"onnxruntime cannot be imported: {error}; pip install 'qconv[onnx]'"
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise BrokenPlugin(_BOTH if _both() else "onnxruntime is empty; install it anew")
    return onnxruntime


def _both() -> bool:
    """Whether the builds with and without CUDA are both installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("onnxruntime")
        version("onnxruntime-gpu")
    except PackageNotFoundError:
        return False
    return True


def _told(file: str, said: str, version: str) -> UnreadableInput | Unsupported:
    newer = "pip install --upgrade onnxruntime, or write the graph for an older one"
    if match := _OPSET.search(said):
        return Unsupported(
            f"{file}: it is of opset {match['found']}, and onnxruntime {version} knows opsets up "
            f"to {match['known']}; {newer}"
        )
    if match := _IR.search(said):
        return Unsupported(
            f"{file}: its format has IR version {match['found']}, and onnxruntime {version} reads "
            f"up to {match[2]}; {newer}"
        )
    if match := _CUSTOM.search(said):
        own = match["domain"] == "com.microsoft"
        then = newer if own else "libraries of custom operators are never loaded: convert it anew"
        return Unsupported(
            f"{file}: operator {match['name']!r} of domain {match['domain']!r} is unknown to "
            f"onnxruntime {version}; {then}"
        )
    if match := _STANDARD.search(said):
        return Unsupported(
            f"{file}: operator {match['name']!r} of opset {match['opset']} is unknown to "
            f"onnxruntime {version}; {newer}"
        )
    return UnreadableInput(
        f"{file}: onnxruntime {version} refuses it: {' '.join(said.split())[:300]}; write it again"
    )
