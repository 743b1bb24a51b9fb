"""Memory on the device: predicted from the artifact's sizes and, where asked for, measured.

Measured in a process of its own, as ``qconv fit --measure`` does. What that cannot measure is told;
it is no reason to lose everything else that was found out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qconv.errors import QconvError
from qconv.memory import measure, predict_artifact

if TYPE_CHECKING:
    from pathlib import Path

    from qconv.memory import VramResult
    from qconv.validation._results import RuntimeResult


def asks_to_measure(asked: bool | None, depth: str, device: str) -> bool:  # noqa: FBT001 - of three
    """Whether memory is measured.

    asked: None: nobody said; then it is at depth ``runtime`` on CUDA, where people expect it
    """
    if asked is not None or depth != "runtime":
        return bool(asked)
    from qconv.model import resolve_device

    try:
        return resolve_device(device).type == "cuda"
    except QconvError:
        return False  # told where the model is run


def device_memory(
    path: Path, *, context: int, device: str, measured: bool, asked: bool = True
) -> tuple[VramResult | None, str]:
    """Memory that serving the artifact takes; or why that is not known.

    context: tokens of a sequence
    device: what to measure on: ``auto``, ``cpu``, ``cuda`` or ``cuda:n``
    asked: somebody wants it measured; otherwise what is predicted stands where measuring fails
    """
    try:
        predicted = predict_artifact(path, context=context)
    except QconvError as error:
        return None, f"memory on the device cannot be predicted: {error}"
    if not measured:
        return predicted, ""
    try:
        _make_room()
        return measure(path, context=context, device=device).result, ""
    except (QconvError, OSError) as error:
        reason = f"memory cannot be measured: {error}"
        if not asked:
            return replace(predicted, assumptions=(*predicted.assumptions, reason)), ""
        return replace(predicted, reason=reason), reason


def _make_room() -> None:
    """Give back what torch keeps of a GPU for later, to the process that is measured on it."""
    import torch

    torch.cuda.empty_cache()  # does nothing where CUDA was not used


def with_peak(runtime: RuntimeResult, vram: VramResult | None) -> RuntimeResult:
    """The engine with the memory that it took, where it was the one that was measured."""
    if vram is None or vram.measured is None or vram.runtime != runtime.engine:
        return runtime
    return replace(runtime, peak_bytes=vram.measured)
