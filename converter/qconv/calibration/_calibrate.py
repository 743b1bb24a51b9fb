"""``qconv calibrate``: windows, and the statistics of one pass over them, kept in a file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from qconv.calibration._adding import added
from qconv.calibration._build import build_windows
from qconv.calibration._file import FILE_SUFFIX, Kind, load_calibration, save_calibration
from qconv.calibration._running import (
    InputStatistics,
    Progress,
    Seen,
    check_tokens,
    collect_statistics,
    silent,
)
from qconv.calibration._settings import Calibration
from qconv.errors import OutputExists, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from qconv.calibration._json import CalibrationJson
    from qconv.calibration._windows import Windows, WindowsReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A calibration file that was written.

    digest: SHA-256, as hex, of the token ids of all windows
    statistics: ``full``, ``diagonal`` or ``none``
    inputs: how many tokens each distinct linear input saw
    seconds: wall time
    """

    path: Path
    nbytes: int
    digest: str
    report: WindowsReport
    statistics: Kind
    inputs: tuple[Seen, ...]
    warnings: tuple[str, ...]
    seconds: float

    def to_json(self) -> CalibrationJson:
        """As JSON-able data; ``schemas/calibration.schema.json`` describes it."""
        report = self.report
        return {
            "path": str(self.path),
            "nbytes": self.nbytes,
            "digest": self.digest,
            "windows": report.windows,
            "tokens": report.tokens,
            "lengths": {
                "shortest": report.shortest,
                "median": report.median,
                "longest": report.longest,
            },
            "distinct_tokens": report.distinct_tokens,
            "vocabulary": report.vocabulary,
            "sources": [asdict(source) for source in report.sources],  # type: ignore[misc]
            "statistics": self.statistics,
            "inputs": [
                {"linears": list(each.linears), "tokens": each.tokens, "features": each.features}
                for each in self.inputs
            ],
            "warnings": list(self.warnings),
            "seconds": self.seconds,
        }


def calibrate(
    model: str | Path,
    out: str | Path,
    calibration: Calibration | None = None,
    *,
    statistics: Kind = "full",
    device: str = "auto",
    dtype: str = "auto",
    max_ram: int | None = None,
    shard: tuple[int, int] = (1, 1),
    force: bool = False,
    progress: Progress = silent,
) -> Calibrated:
    """Make a model's calibration file, to be used by any number of conversions.

    model: as :func:`qconv.convert` takes it
    out: the file, ``*.safetensors``
    statistics: ``full``: the Gram matrix of every linear input; ``diagonal``: what needs no
        matrix; ``none``: windows only
    device, dtype, max_ram: of the forward pass, as :func:`qconv.model.open_model` takes them
    shard: run on part ``i`` of ``n`` of the windows, from (1, 1) on; :func:`add_calibrations`
        makes one file of all parts, equal to one pass up to the rounding of sums
    force: replace a file that exists

    Raises:
        qconv.errors.QconvError: its subclass and message say what is wrong and what to do.
    """
    from qconv._host import load_plugins
    from qconv._sources import open_source
    from qconv.model import exact_arithmetic, open_model

    began = time.monotonic()
    calibration = calibration or Calibration()
    path = _checked(Path(out), statistics, force=force)
    number, parts = _checked_shard(shard)
    with open_source(model, load_plugins()) as checkpoint:
        opened = None
        if statistics != "none":
            opened = open_model(checkpoint, device=device, dtype=dtype, max_ram=max_ram)
        with exact_arithmetic(None if opened is None else opened.device):
            windows = build_windows(calibration, checkpoint, model=opened, progress=progress)
            start, stop = (len(windows) * each // parts for each in (number - 1, number))
            windows = windows.part(start, stop) if parts > 1 else windows
            seen: list[Seen] = []
            inputs: Iterable[InputStatistics] = ()
            if opened is not None:
                gram = statistics == "full"
                inputs = collect_statistics(opened, windows, gram=gram, progress=progress)
            save_calibration(
                path,
                windows,
                checkpoint.model,
                options=[calibration],
                inputs=_noted(inputs, seen),
                kind=statistics,
                dtype="" if opened is None else str(opened.dtype).removeprefix("torch."),
                least=calibration.min_tokens_per_expert,
            )
    return _calibrated(path, windows, statistics, seen, began)


def add_calibrations(
    model: str | Path,
    out: str | Path,
    files: Sequence[str | Path],
    *,
    force: bool = False,
    min_tokens_per_expert: int | None = None,
    progress: Progress = silent,
) -> Calibrated:
    """Make one calibration file of several with disjoint windows: statistics add up.

    Raises:
        UsageError: a file of another model, files that do not belong together, or share a window.
        UnreadableInput: a file is missing or damaged.
    """
    from qconv._host import load_plugins
    from qconv._sources import open_source

    began = time.monotonic()
    if not files:
        raise UsageError("no calibration files to add; name at least one with --add")
    path = _checked(Path(out), "full", force=force)
    with open_source(model, load_plugins()) as checkpoint:
        opened = [load_calibration(each, checkpoint.model) for each in files]
        both = added(opened)
        kind = opened[0].metadata.statistics
        seen: list[Seen] = []
        total = len(opened[0].linears)
        save_calibration(
            path,
            both.windows,
            checkpoint.model,
            options=[each for file in opened for each in file.metadata.options],
            inputs=_noted(both.inputs(), seen, progress, total),
            kind=kind,
            dtype=opened[0].metadata.dtype,
            least=min_tokens_per_expert,
        )
    return _calibrated(path, both.windows, kind, seen, began)


def _checked(path: Path, statistics: str, *, force: bool) -> Path:
    if statistics not in get_args(Kind):
        raise UsageError(
            f"statistics {statistics!r} must be one of {', '.join(get_args(Kind))}; "
            "full serves every method"
        )
    if path.suffix != FILE_SUFFIX:
        raise UsageError(f"{path}: a calibration file's name ends in {FILE_SUFFIX}; name it so")
    if path.exists() and not (force and path.is_file()):
        raise OutputExists(f"{path} exists already; use --force to replace it, or another name")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a folder; create it, or write elsewhere with -o")
    return path


def _checked_shard(shard: tuple[int, int]) -> tuple[int, int]:
    number, parts = shard
    if not 1 <= number <= parts:
        raise UsageError(
            f"shard {number}/{parts} is not one of 1/{parts} to {parts}/{parts}; write e.g. 1/2"
        )
    return shard


def _noted(
    inputs: Iterable[InputStatistics], seen: list[Seen], progress: Progress = silent, total: int = 0
) -> Iterator[InputStatistics]:
    """``inputs``, noting in ``seen`` what they saw."""
    done = 0
    for each in inputs:
        progress(each.linears[0], done, total)
        done += len(each.linears)
        seen.append(
            Seen(
                linears=each.linears,
                tokens=each.statistics.tokens,
                features=each.statistics.features,
                gram=each.statistics.gram_sum is not None,
            )
        )
        yield each


def _calibrated(
    path: Path, windows: Windows, kind: str, seen: Sequence[Seen], began: float
) -> Calibrated:
    return Calibrated(
        path=path,
        nbytes=path.stat().st_size,
        digest=windows.digest,
        report=windows.report,
        statistics=cast("Kind", kind),
        inputs=tuple(seen),
        warnings=(*windows.report.warnings, *check_tokens(seen)),
        seconds=time.monotonic() - began,
    )
