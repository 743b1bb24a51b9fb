"""What a conversion meets on its way that its user should know."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qconv.conversion._blockwise import Passes
    from qconv.conversion._json import CalibratedJson


@dataclass(slots=True)
class Notes:
    """Filled block by block.

    least_tokens: of all linear weights so far, the fewest calibration tokens that came through
    """

    warnings: list[str] = field(default_factory=list)
    least_tokens: int | None = None

    def count(self, block: str, tokens: Mapping[str, int]) -> None:
        """Count the tokens that came through each linear weight of a block."""
        if not tokens:
            return
        least = min(tokens.values())
        self.least_tokens = least if self.least_tokens is None else min(least, self.least_tokens)
        empty = [name for name, count in tokens.items() if count == 0]
        if empty:
            self._warn(
                f"{block}: no calibration token came through {len(empty)} weights of experts, "
                f"{empty[0]!r} among them: they are rounded to nearest; give more text (--windows)"
            )

    def on(self, passes: Passes | None) -> CalibratedJson | None:
        """The calibration as it was."""
        if passes is None:
            return None
        return {
            "windows": len(passes.windows),
            "tokens": sum(len(window) for window in passes.windows),
            "digest": passes.digest,
            "device": str(passes.model.device),
            "dtype": str(passes.model.dtype).removeprefix("torch."),
            "least_tokens": self.least_tokens,
        }

    def _warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
            logging.getLogger("qconv").warning(message)
