"""``qconv convert``: write artifacts."""

from __future__ import annotations

from pathlib import Path

from . import _options as given
from ._calibration import WINDOW_LENGTH, WINDOWS, chosen_calibration
from ._output import results_only, warn, write_json
from ._sizes import parse_share, parse_size


def convert(
    *,
    model: given.Model,
    to: given.To,
    out: given.Out = Path(),
    method: given.Method = "rtn",
    calibration: given.CalibrationSources = None,
    windows: given.Windows = WINDOWS,
    window_length: given.WindowLength = WINDOW_LENGTH,
    sampling: given.SamplingOption = given.Sampling.random,
    no_packing: given.NoPacking = False,
    seed: given.Seed = 0,
    min_tokens_per_expert: given.MinTokensPerExpert = None,
    statistics: given.StatisticsOption = None,
    device: given.Device = "auto",
    dtype: given.Dtype = given.Dtypes.auto,
    search: given.SearchOption = given.Search.default,
    max_fallback: given.MaxFallback = None,
    allow_unused: given.AllowUnused = False,
    force: given.Force = False,
    threads: given.Threads = None,
    max_ram: given.MaxRam = None,
    no_resume: given.NoResume = False,
    no_validate: given.NoValidate = False,
    report: given.ErrorReport = None,
    quiet: given.Quiet = False,
    as_json: given.Json = False,
    debug: given.Debug = False,  # noqa: ARG001 - read before parsing, so that it always works
) -> None:
    """Convert a checkpoint, all targets in one read of its weights.

    Nothing appears under its final name before it is whole and was read back: all tensors
    accounted for, the tokenizer compared, a sample of the weights decoded and compared. What is
    interrupted resumes. 'qconv validate' measures the rest.
    """
    import qconv

    from ._kept import kept_in
    from ._progress import Progress, warned_of

    share = None if max_fallback is None else parse_share(max_fallback, "--max-fallback")
    nbytes = None if max_ram is None else parse_size(max_ram, "--max-ram")
    text = chosen_calibration(
        calibration,
        windows=windows,
        window_length=window_length,
        sampling=sampling,
        no_packing=no_packing,
        seed=seed,
        min_tokens_per_expert=min_tokens_per_expert,
    )
    with kept_in(report), results_only(), Progress(quiet=quiet) as progress:
        conversion = qconv.convert(
            model,
            to,
            out=out,
            method=method,
            calibration=text,
            statistics=statistics.value if statistics else None,
            device=device,
            dtype=dtype.value,
            force=force,
            max_fallback=share,
            allow_unused=allow_unused,
            search=search.value,
            threads=threads,
            max_ram=nbytes,
            resume=not no_resume,
            validate=not no_validate,
            observer=warned_of(progress),
        )
    warn(conversion.notes)
    if as_json:
        return write_json(conversion.to_json())
    from ._render import render_conversion

    return render_conversion(conversion)
