"""What was looked at of an artifact before it got its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qconv.conversion._json import CheckedJson


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What the short form of validation looked at, and found in order.

    tensors: accounted for
    decoded: of them, those decoded and compared
    share: of the values that were decoded, 0 to 1
    reason: why nothing was looked at; None when it was
    """

    target: str
    tensors: int = 0
    decoded: int = 0
    share: float = 0.0
    reason: str | None = None

    def to_json(self) -> CheckedJson:
        """As JSON-able data."""
        return {
            "target": self.target,
            "tensors": self.tensors,
            "tensors_decoded": self.decoded,
            "share_decoded": self.share,
            "reason": self.reason,
        }
