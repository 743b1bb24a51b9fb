"""Windows to calibrate on and windows to measure on, and the proof that they share nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from qconv.calibration import (
    Calibration,
    Origin,
    Windows,
    WindowsReport,
    build_windows,
    evaluation_windows,
)
from qconv.checkpoint import Checkpoint, open_checkpoint

#: Tokens of a run that no held-out window may share with a calibration window; runs of at most
#: three distinct tokens (rulers, blank space) say nothing of where they come from.
RUN, PLAIN = 13, 3


def read_windows(path: Path) -> tuple[torch.Tensor, ...]:
    """Windows of a file: of peers/make_windows.py (`tokens`) or of `qconv calibrate`."""
    tensors = load_file(path)
    if "tokens" in tensors:
        return tuple(tensors["tokens"].long())
    if "windows" in tensors:
        return tuple(tensors["windows"].long().split(tensors["lengths"].tolist()))
    raise SystemExit(f"{path} holds neither 'tokens' nor 'windows'; its tensors are {[*tensors]}")


def calibration_tokens(
    given: str, count: int, length: int, checkpoint: Checkpoint
) -> tuple[torch.Tensor, ...]:
    """The windows that `--calibration given --windows count` stands for."""
    if given.endswith(".safetensors"):
        return read_windows(Path(given))
    settings = Calibration(source=given, windows=count, window_length=length)
    return build_windows(settings, checkpoint).tokens


def held_out(
    model: Path,
    sources: Sequence[str],
    calibrated: Sequence[torch.Tensor],
    *,
    count: int | None,
    length: int,
) -> torch.Tensor:
    """Windows of text that no calibration window has a run of: (windows, length) int64."""
    # no template: its default system prompt would be in every conversation, calibrated on or not
    settings = Calibration(source=sources, windows=count, window_length=length, chat_template=False)
    with open_checkpoint(model) as checkpoint:
        found = evaluation_windows(settings, checkpoint, as_windows(calibrated))
    windows = torch.stack([window for window in found.tokens if len(window) == length])
    shared = shared_runs(windows, calibrated)
    if shared:
        raise SystemExit(f"{shared} runs of {RUN} held-out tokens are in calibration windows")
    dropped = sum(source.overlapping for source in found.report.sources)
    print(
        f"held out: {len(windows)} windows of {length} tokens, digest {found.digest[:16]}; no run "
        f"of {RUN} tokens is in any of {len(calibrated)} calibration windows ({dropped} documents "
        "dropped for that)"
    )
    return windows


def as_windows(tokens: Sequence[torch.Tensor]) -> Windows:
    """Tokens from elsewhere as qconv takes them."""
    lengths = sorted(len(window) for window in tokens) or [0]
    report = WindowsReport(
        windows=len(tokens),
        tokens=sum(lengths),
        shortest=lengths[0],
        median=lengths[len(lengths) // 2],
        longest=lengths[-1],
        distinct_tokens=len(set(torch.cat(list(tokens)).tolist())) if tokens else 0,
        vocabulary=None,
        sources=(),
    )
    origins = tuple(Origin(source="peers", documents=()) for _ in tokens)
    return Windows(tokens=tuple(tokens), origins=origins, report=report)


def digest_of(windows: torch.Tensor) -> str:
    """What tells one set of held-out windows from another."""
    return as_windows(tuple(windows)).digest


def shared_runs(held: Sequence[torch.Tensor], calibrated: Sequence[torch.Tensor]) -> int:
    """Runs of RUN tokens that both have, counted by comparing the tokens themselves."""
    return len(_runs(held) & _runs(calibrated))


def _runs(windows: Sequence[torch.Tensor]) -> set[tuple[int, ...]]:
    found = set()
    for window in windows:
        tokens = window.tolist()
        for start in range(len(tokens) - RUN + 1):
            run = tuple(tokens[start : start + RUN])
            if len(set(run)) > PLAIN:
                found.add(run)
    return found
