"""What was looked at of an artifact before it got its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.errors import BrokenPlugin

if TYPE_CHECKING:
    from qconv.conversion._json import CheckedJson


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What the check after a conversion looked at, and found in order.

    tensors: accounted for
    decoded: of them, those of which rows were decoded and are, bit for bit, what was encoded
    share: of the values of all tensors, those compared so; 0 to 1
    unseen: kinds of tensors of which none was decoded: names, with ``*`` for numbers
    warnings: what a user should look at, and is no proof that the artifact is wrong
    reason: why nothing was looked at; None when it was
    """

    target: str
    tensors: int = 0
    decoded: int = 0
    share: float = 0.0
    unseen: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    reason: str | None = None

    def to_json(self) -> CheckedJson:
        """As JSON-able data."""
        return {
            "target": self.target,
            "tensors": self.tensors,
            "tensors_decoded": self.decoded,
            "share_decoded": self.share,
            "kinds_not_decoded": list(self.unseen),
            "warnings": list(self.warnings),
            "reason": self.reason,
        }


class Unread(BrokenPlugin):
    """An artifact cannot be read back: whether it is sound is not known, so it is kept unnamed."""
