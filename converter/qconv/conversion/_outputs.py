"""Where artifacts go, and what must not be overwritten there."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from qconv.conversion._partial import partial_path
from qconv.conversion._refusals import told_apart
from qconv.errors import BrokenPlugin, OutputExists, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qconv.planning import TargetPlan


def final_path(out: Path, target: TargetPlan) -> Path:
    """What the artifact is called when whole: its only file, or the directory of all its files."""
    top = {PurePosixPath(file.path).parts[0] for file in target.layout.files}
    if len(top) != 1:
        raise BrokenPlugin(
            f"plugin author: {target.label} writes {sorted(top)}; put several files into one folder"
        )
    return out / top.pop()


def check_outputs(out: Path, targets: Sequence[TargetPlan], source: Path, *, force: bool) -> None:
    """Refuse outputs that would overwrite the source, one another, or, unforced, anything.

    Raises:
        OutputExists: names the path and the way out.
        UsageError: two targets write the same path, or ``out`` cannot hold them.
    """
    with told_apart(out):
        if out.exists() and not out.is_dir():
            raise UsageError(
                f"output directory {str(out)!r} is a file; choose a directory with --out"
            )
        seen: dict[Path, str] = {}
        for target in targets:
            path = final_path(out, target)
            if path in seen:
                raise UsageError(
                    f"targets {seen[path]} and {target.label} both write {str(path)!r}; "
                    "convert them into different directories"
                )
            seen[path] = target.label
            _check_output(path, target, source, force=force)


def _check_output(path: Path, target: TargetPlan, source: Path, *, force: bool) -> None:
    partial_path(path).exists()  # the longest name there will be: too long is told now
    if _same_place(path, source):
        raise OutputExists(
            f"output {str(path)!r} is the input itself; choose another directory with --out"
        )
    refuse_existing(path, force=force)
    is_folder = path.is_dir() and not path.is_symlink()
    if os.path.lexists(path) and is_folder != _writes_folder(path, target):
        there, needed = ("directory", "file") if is_folder else ("file", "directory")
        raise OutputExists(
            f"output {str(path)!r} is a {there}, where a {needed} is to be written, so not even "
            "--force replaces it; move it away or choose another directory with --out"
        )


def refuse_existing(path: Path, *, force: bool) -> None:
    """Refuse a path that is taken, be it by a link that leads nowhere.

    Raises:
        OutputExists: names the path and the way out.
    """
    if not force and os.path.lexists(path):
        raise OutputExists(
            f"output {str(path)!r} exists; pass --force to replace it once the new one is whole"
        )


def _writes_folder(path: Path, target: TargetPlan) -> bool:
    return any(file.path != path.name for file in target.layout.files)


def _same_place(path: Path, source: Path) -> bool:
    """Whether ``path`` is the source or holds it, also by another spelling or a link."""
    resolved, origin = Path(os.path.realpath(path)), Path(os.path.realpath(source))
    if resolved == origin or resolved in origin.parents:
        return True
    # a file system may not tell upper from lower case
    return path.exists() and any(
        place.exists() and path.samefile(place) for place in (origin, *origin.parents)
    )
