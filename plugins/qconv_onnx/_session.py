"""Opens graphs in onnxruntime, and says why one does not open, and what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from qconv.errors import BrokenPlugin, UnreadableInput, Unsupported

_CUDA = "CUDAExecutionProvider"
_ON_CPU = ["CPUExecutionProvider"]

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


def open_session(
    file: Path | bytes,
    *,
    name: str | None = None,
    options: Any = None,  # noqa: ANN401
    device: str = "cpu",
) -> Any:  # noqa: ANN401
    """An ``onnxruntime.InferenceSession`` of ``file``.

    name: what messages call it; None: the file
    options: ``onnxruntime.SessionOptions``; None: the plain ones
    device: ``cpu``, ``cuda``, ``cuda:n``, or ``auto``: CUDA where onnxruntime can use it

    Raises:
        BrokenPlugin: onnxruntime is missing, spoilt by a second one, or cannot use the device.
        Unsupported: it is too old for the graph, or knows an operator of it not.
        UnreadableInput: it refuses the graph for another reason.
    """
    runtime = _runtime()
    wanted = plain_options() if options is None else options
    providers = _providers(runtime, device)
    try:
        session = _opened(runtime, file, wanted, providers)
    except Exception as error:  # onnxruntime raises errors of classes of its own, under no base
        if device == "auto" and providers != _ON_CPU:
            return open_session(file, name=name, options=options, device="cpu")
        raise _told(name or str(file), str(error), runtime.__version__, device) from error
    if device.startswith("cuda") and device_of(session) == "cpu":
        raise BrokenPlugin(
            f"onnxruntime {runtime.__version__} cannot load its CUDA provider for device {device}: "
            f"{_why_no_cuda(runtime)}; or compute on the CPU (--device cpu)"
        )
    return session


def _opened(
    runtime: Any,  # noqa: ANN401
    file: Path | bytes,
    options: Any,  # noqa: ANN401
    providers: list[Any],
) -> Any:  # noqa: ANN401
    """A session that fails where a provider does: left to itself, it goes on on the CPU."""
    return runtime.InferenceSession(file, options, providers=providers, enable_fallback=0)


def device_of(session: Any) -> str:  # noqa: ANN401
    """Where an ``onnxruntime.InferenceSession`` computes: ``cpu``, ``cuda:0``."""
    if _CUDA not in session.get_providers():
        return "cpu"
    options = session.get_provider_options().get(_CUDA, {})
    return f"cuda:{options.get('device_id', 0)}"


def _providers(runtime: Any, device: str) -> list[Any]:  # noqa: ANN401
    """What a session is to use, the best first; the CPU computes what CUDA has no kernel for.

    onnxruntime lists its CUDA provider wherever it was built with it, and falls back to the CPU
    where its libraries or a driver are missing; so ``auto`` asks torch for a device, too.
    """
    if device == "cpu" or _CUDA not in runtime.get_available_providers():
        return _ON_CPU
    if device == "auto" and not _sees_cuda():
        return _ON_CPU
    if hasattr(runtime, "preload_dlls"):  # CUDA and cuDNN of torch, or of NVIDIA's wheels
        runtime.preload_dlls()
    number = int(device.partition(":")[2] or 0)
    return [(_CUDA, {"device_id": number, "use_tf32": 0}), *_ON_CPU]


def _sees_cuda() -> bool:
    """Whether torch finds a device."""
    import torch

    return torch.cuda.is_available()


def _why_no_cuda(runtime: Any) -> str:  # noqa: ANN401
    if _CUDA not in runtime.get_available_providers():
        return "this build has none; pip uninstall -y onnxruntime, then pip install onnxruntime-gpu"
    return (
        "the driver, CUDA or cuDNN that it was built for is missing; "
        "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )


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


def _told(
    file: str, said: str, version: str, device: str
) -> UnreadableInput | Unsupported | BrokenPlugin:
    """The error that onnxruntime's stands for. device: which was asked for."""
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
    line = " ".join(said.split())[:300]
    if device.startswith("cuda"):  # what a device and what a graph is to blame for read alike
        return BrokenPlugin(
            f"{file}: onnxruntime {version} does not open it on {device}: {line}; choose a device "
            "that is there and has room, or compute on the CPU (--device cpu)"
        )
    return UnreadableInput(f"{file}: onnxruntime {version} refuses it: {line}; write it again")
