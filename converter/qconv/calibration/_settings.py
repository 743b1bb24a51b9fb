"""What to calibrate on: the settings, checked when they are made."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from qconv.errors import UsageError

Sampling = Literal["random", "diverse", "length", "perplexity"]

SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)
#: Sources that are no files.
BUILTIN, SELF = "builtin", "self"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One source of text. share: of the windows, 0 to 1; all shares make 1."""

    name: str
    share: float

    @property
    def label(self) -> str:
        """The name without directories: artifacts must not tell where a file lay."""
        return self.name if self.name in {BUILTIN, SELF} else Path(self.name).name


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The text a model is calibrated on, and how it is cut into windows.

    source: one or several of ``builtin`` (qconv's own text), ``self`` (sampled from the model),
        a ``.txt``, ``.jsonl`` or ``.parquet`` file, a folder of such files, or a calibration file
        that ``qconv calibrate`` wrote; ``path=0.3`` gives it that share of the windows; for an ONNX
        graph a ``.npz`` of samples by input, too
    windows: how many; None takes all that the text gives
    window_length: tokens of a window; without packing, at most
    sampling: which windows are taken when the text gives more:
        ``random`` keeps the mixture of the text as it is, so that means over the windows estimate
        means over the text without bias, which is what statistics are; it is the default for that.
        ``diverse`` covers rare tokens first, ``length`` balances short and long documents,
        ``perplexity`` takes the windows the model finds hard (it runs the model on all candidates)
    packing: fill every window with document after document; otherwise one document per window,
        windows as long as their documents
    seed: of every choice; equal seeds give equal windows
    chat_template: render conversations with the checkpoint's template; otherwise their text alone
    min_tokens_per_expert: fewer for any expert of a mixture is an error
    """

    source: str | Path | Sequence[str | Path] = BUILTIN
    windows: int | None = 64
    window_length: int = 512
    sampling: Sampling = "random"
    packing: bool = True
    seed: int = 0
    chat_template: bool = True
    min_tokens_per_expert: int | None = None

    def __post_init__(self) -> None:
        given = [self.source] if isinstance(self.source, (str, Path)) else self.source
        object.__setattr__(self, "source", tuple(str(each) for each in given))
        _check_sampling(self.sampling)
        if not self.source:
            raise UsageError("calibration has no source; give one, e.g. builtin or a .txt file")
        _check_whole("windows", self.windows, 1, optional=True)
        _check_whole("window_length", self.window_length, 2)
        _check_whole("seed", self.seed, 0)
        _check_whole("min_tokens_per_expert", self.min_tokens_per_expert, 1, optional=True)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources and their shares of the windows.

        Raises:
            UsageError: shares that are not positive or do not fit together.
        """
        split = [_split(str(each)) for each in self.source]  # type: ignore[union-attr]
        names = [name for name, _ in split]
        if len(set(names)) != len(names):
            raise UsageError(f"a calibration source is given twice: {', '.join(names)}")
        weights = [weight for _, weight in split]
        if self.windows is None and any(weight is not None for weight in weights):
            raise UsageError(
                "shares of sources need a number of windows to be shares of; "
                "give windows, or leave the shares out"
            )
        shares = _shares(weights)
        return tuple(
            Source(name=name, share=share) for name, share in zip(names, shares, strict=True)
        )


def _check_sampling(sampling: str) -> None:
    if sampling in SAMPLINGS:
        return
    close = difflib.get_close_matches(str(sampling), SAMPLINGS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(SAMPLINGS)}"
    raise UsageError(f"sampling {sampling!r} is not one of {', '.join(SAMPLINGS)}; {hint}")


def _check_whole(name: str, value: object, least: int, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"calibration {name} {value!r} must be a whole number of at least {least}")


def _split(text: str) -> tuple[str, float | None]:
    """The name and weight of ``path=0.3``; a file that is really called so goes first."""
    name, equals, tail = text.rpartition("=")
    if not equals or Path(text).exists():
        return text, None
    try:
        weight = float(tail)
    except ValueError:
        return text, None
    if not (math.isfinite(weight) and weight > 0 and name):
        raise UsageError(f"calibration source {text!r}: the share {tail} must be more than 0")
    return name, weight


def _shares(weights: Sequence[float | None]) -> list[float]:
    """Weights made to sum to 1; sources without one divide what the others leave of 1."""
    given = math.fsum(weight for weight in weights if weight is not None)
    missing = sum(weight is None for weight in weights)
    if not missing:
        return [(weight or 0.0) / given for weight in weights]
    if given >= 1:
        raise UsageError(
            f"the calibration shares given sum to {given:g}, which leaves nothing for the sources "
            "without one; give all of them a share, or smaller ones"
        )
    return [(1 - given) / missing if weight is None else weight for weight in weights]
