"""The check that follows every conversion, before an artifact gets its name.

Every tensor is accounted for by name and shape, and of the first and the last tensor of every kind
some rows are decoded and compared, bit for bit, with what the method had made of them. So it finds
what goes wrong between the method and the file, refuses nothing that is only unusual, and takes a
fraction of the conversion's time. How good the artifact is, ``qconv validate`` tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qconv.conversion import Checked, Remembered, Unread
from qconv.conversion._ahead import torch_threads
from qconv.errors import GateFailed
from qconv.validation._exact import Look, look_at
from qconv.validation._planned import companions_of
from qconv.validation._stored import open_stored
from qconv.validation._tokenizer import tokenizer_faults

if TYPE_CHECKING:
    from pathlib import Path

    from qconv._host import Host
    from qconv._sources import OpenedSource
    from qconv.planning import TargetPlan
    from qconv.plugin import ArtifactReader

#: Faults told in a message; the rest is counted.
_LISTED = 5


@dataclass(frozen=True, slots=True)
class QuickCheck:
    """Checks artifacts as they are made.

    remembered: what their rows decode to, filled while they are encoded
    checked: what was looked at so far
    """

    source: OpenedSource
    host: Host
    remembered: Remembered = field(default_factory=Remembered)
    checked: list[Checked] = field(default_factory=list)

    def __call__(self, target: TargetPlan, path: Path) -> None:
        """Check the whole artifact at ``path``.

        Raises:
            GateFailed: it does not hold what was encoded; names the tensors.
            Unread: the backend's reader fails.
        """
        with torch_threads(1):  # idle OpenMP threads would spin for longer than the work takes
            look = self._by_host(target, path) or self._by_backend(target, path)
            if look is None:
                reason = "its backend does not read it back"
                self.checked.append(Checked(target=target.label, reason=reason))
                return
            if look.faults:
                raise GateFailed(_message(target.label, look.faults))
            self.checked.append(
                Checked(
                    target=target.label,
                    tensors=look.tensors,
                    decoded=look.decoded,
                    share=look.values / max(1, target.weights),
                    unseen=look.unseen,
                    warnings=(*look.warnings, *self._tokenizer(target, path)),
                )
            )

    def _by_host(self, target: TargetPlan, path: Path) -> Look | None:
        """By the host's own reader, which reads rows on demand; None where it finds no agreement.

        Whoever brings a format knows better than the host how to read it.
        """
        kept = self.remembered.of(target.label)
        try:
            reader = open_stored(path, self.host)
            if reader is None:
                return None
            with _closing(reader):
                look = look_at(target, reader, kept)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - source plugins run here; the backend's reader decides
            return None
        return look if look.exact and not look.faults else None

    def _by_backend(self, target: TargetPlan, path: Path) -> Look | None:
        """By the backend's own reader; None where it has none."""
        try:
            reader = target.backend.open(path)
        except NotImplementedError:
            return None
        except MemoryError:
            raise
        except Exception as error:
            raise _unread(target.label, error) from error
        try:
            with _closing(reader):
                return look_at(target, reader, self.remembered.of(target.label))
        except MemoryError:
            raise
        except Exception as error:
            raise _unread(target.label, error) from error

    def _tokenizer(self, target: TargetPlan, path: Path) -> tuple[str, ...]:
        """What seems to be wrong with the tokenizer: files that a backend may rightly leave out."""
        try:
            planned = companions_of(target.layout)
            found = tokenizer_faults(path, self.source.model, planned)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - of libraries that read it, on whatever they find
            found = (f"it cannot be compared: {type(error).__name__}: {error}",)
        return tuple(f"tokenizer: {each}" for each in found)


@contextmanager
def _closing(reader: ArtifactReader) -> Iterator[None]:
    """A reader need not have ``close``."""
    try:
        yield
    finally:
        close: Any = getattr(reader, "close", None)
        if close is not None:
            close()


def _unread(label: str, error: Exception) -> Unread:
    return Unread(
        f"{label}: what was written cannot be read back: {type(error).__name__}: {error}; report "
        "this to the author of the backend; the artifact is kept unnamed: the same command with "
        "--no-validate gives it its name, and computes nothing again"
    )


def _message(label: str, faults: list[str]) -> str:
    more = f"; and {len(faults) - _LISTED} more faults" if len(faults) > _LISTED else ""
    return (
        f"{label}: the artifact does not hold what was encoded, so it was thrown away: "
        f"{'; '.join(faults[:_LISTED])}{more}; this is a fault of the backend, please report it; "
        "with --no-validate it is written unchecked"
    )
