"""The short form of validation that follows every conversion, before an artifact gets its name.

Every tensor is accounted for by name and shape, the tokenizer compared whole, and a sample of the
weights decoded and compared with the source, of the first tensor of every kind, then of the last,
as far as a budget goes. That takes a fraction of the conversion's time; ``qconv validate`` does all
of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qconv.conversion import Checked
from qconv.errors import BrokenPlugin, GateFailed, QconvError
from qconv.validation._bytes import check_bytes
from qconv.validation._matching import Match
from qconv.validation._planned import companions_of
from qconv.validation._stored import open_stored
from qconv.validation._tokenizer import tokenizer_faults

if TYPE_CHECKING:
    from pathlib import Path

    from qconv._host import Host
    from qconv._sources import OpenedSource
    from qconv.planning import TargetPlan
    from qconv.plugin import ArtifactReader

#: Values to decode and compare: about a quarter of a second on one core.
_BUDGET = 24_000_000

#: Faults told in a message; the rest is counted.
_LISTED = 5


@dataclass(frozen=True, slots=True)
class QuickCheck:
    """Checks artifacts as they are made.

    plain: no step of the method rescales channels
    nearest: it rounds to nearest, without statistics
    checked: what was looked at so far
    """

    source: OpenedSource
    host: Host
    plain: bool
    nearest: bool
    checked: list[Checked] = field(default_factory=list)

    def __call__(self, target: TargetPlan, path: Path) -> None:
        """Check the whole artifact at ``path``.

        Raises:
            GateFailed: it is not what was planned; names the tensors.
            BrokenPlugin: the backend's reader fails.
        """
        try:
            reader = _opened(target, path, self.host)
        except NotImplementedError:
            reason = "its backend does not read it back"
            self.checked.append(Checked(target=target.label, reason=reason))
            return
        match = Match(path=path, target=target, reader=reader, exact=True)
        found = check_bytes(
            match,
            self.source,
            progress=_unseen,
            budget=_BUDGET,
            plain=self.plain,
            nearest=self.nearest,
        )
        faults = [
            f"tensor {each.name!r}: {each.faults[0]}" for each in found.tensors if each.faults
        ]
        faults = [*found.faults, *faults]
        planned = companions_of(target.layout)
        wrong = tokenizer_faults(path, self.source.model, planned)
        faults += [f"tokenizer: {each}" for each in wrong]
        if faults:
            raise GateFailed(_message(target.label, faults))
        decoded = [each for each in found.tensors if each.sampled]
        values = sum(reader.tensors[each.name].numel * each.sampled for each in decoded)
        self.checked.append(
            Checked(
                target=target.label,
                tensors=len(found.tensors),
                decoded=len(decoded),
                share=values / max(1, target.weights),
            )
        )


def _opened(target: TargetPlan, path: Path, host: Host) -> ArtifactReader:
    """The artifact, opened by the host where it knows the container, which is faster.

    Raises:
        BrokenPlugin: it cannot be opened, although it was just written.
        NotImplementedError: the backend has no reader.
    """
    try:
        return open_stored(path, host) or target.backend.open(path)
    except QconvError as error:
        raise BrokenPlugin(
            f"{target.label}: what was written cannot be read back: {error}; report this to the "
            "author of the backend, or pass --no-validate"
        ) from error


def _message(label: str, faults: list[str]) -> str:
    more = f"; and {len(faults) - _LISTED} more faults" if len(faults) > _LISTED else ""
    return (
        f"{label}: the artifact is not what was planned, so it was thrown away: "
        f"{'; '.join(faults[:_LISTED])}{more}; this is a fault of the method or the backend, "
        "please report it; --no-validate keeps the artifact"
    )


def _unseen(*_: object) -> None:
    """Progress that nobody looks at."""
