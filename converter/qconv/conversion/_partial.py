"""The hidden folder an artifact grows in: its name, its lock, and how it goes away.

Whoever holds the lock may do anything in the folder; nobody else may. The lock lies in the folder
itself, so taking it must bear with a folder that its holder is just removing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from typing import TYPE_CHECKING

from qconv.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import TextIO

FILES = "files"
FINGERPRINT = "fingerprint"
JOURNAL = "journal.jsonl"
#: A folder artifact that --force replaces, until the new one has its name.
REPLACED = "replaced"
_LOCK = "lock"


def partial_path(final: Path) -> Path:
    """The folder in which the artifact ``final`` grows."""
    return final.with_name(f".{final.name}.qconv-partial")


def partial_nbytes(final: Path) -> int:
    """Bytes of disk that an unfinished run of this artifact holds already."""
    partial = partial_path(final)
    if not partial.is_dir():
        return 0
    # st_blocks: a file is given its full length at once, but holds only what was written
    return sum(
        getattr(path.stat(), "st_blocks", 0) * 512 for path in partial.rglob("*") if path.is_file()
    )


@contextlib.contextmanager
def claimed(partial: Path, final: Path) -> Iterator[None]:
    """Create the folder and hold it; the system lets go of it even after ``kill -9``.

    Raises:
        UsageError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks in the standard library's portable part
        partial.mkdir(exist_ok=True)
        yield
        return
    while True:
        if not _made(partial):
            continue
        try:
            file = (partial / _LOCK).open("w")
        except FileNotFoundError:  # its holder has just removed the folder
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"another qconv is writing {str(final)!r} right now; wait for it or choose "
                    "another directory with --out"
                ) from None
            except OSError:  # a file system without locks; as on Windows
                pass
            if _still_there(file, partial / _LOCK):
                yield
                return


def _made(partial: Path) -> bool:
    """Make sure that the folder is there; False when its holder has just removed it."""
    try:
        partial.mkdir(exist_ok=True)
    except FileExistsError:  # a file, unless it was a folder that went before it was looked at
        if _is_folder_or_gone(partial):
            return False
        raise
    return True


def _is_folder_or_gone(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return True


def _still_there(file: TextIO, path: Path) -> bool:
    """Whether the file that was locked is the one others will try to lock."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def remove_claimed(partial: Path) -> None:
    """Remove the folder, its lock last: from then on it may be another process's.

    Never fails: what it is called after is done already.
    """
    for name in (FILES, REPLACED):
        shutil.rmtree(partial / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        for name in (JOURNAL, FINGERPRINT, _LOCK):
            (partial / name).unlink(missing_ok=True)
        partial.rmdir()
