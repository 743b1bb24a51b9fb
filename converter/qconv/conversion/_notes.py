"""What a conversion meets on its way that its user should know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qconv.calibration import Seen, check_tokens

if TYPE_CHECKING:
    from qconv.conversion._blockwise import Passes
    from qconv.conversion._json import CalibratedJson
    from qconv.statistics import Statistics


@dataclass(slots=True)
class Notes:
    """Filled block by block. seen: the tokens that came through each distinct linear input."""

    seen: list[Seen] = field(default_factory=list)

    def take(self, statistics: Mapping[str, Statistics], least: int | None) -> None:
        """Count the tokens of a block's inputs.

        statistics: by source name of the linear weight; one object for those that share an input

        Raises:
            GateFailed: a linear weight saw fewer than ``least``.
        """
        sharing: dict[int, list[str]] = {}
        for name, each in sorted(statistics.items()):
            sharing.setdefault(id(each), []).append(name)
        new = []
        for names in sharing.values():
            each = statistics[names[0]]
            new.append(
                Seen(
                    linears=tuple(names),
                    tokens=each.tokens,
                    features=each.features,
                    gram=each.gram_sum is not None,
                )
            )
        check_tokens(new, least)
        self.seen += new

    @property
    def warnings(self) -> tuple[str, ...]:
        """Inputs that saw too few tokens for their statistics to mean much."""
        return check_tokens(self.seen)

    def on(self, passes: Passes | None) -> CalibratedJson | None:
        """The calibration as it was."""
        if passes is None:
            return None
        model = passes.model
        return {
            "windows": len(passes.windows),
            "tokens": sum(len(window) for window in passes.windows),
            "digest": passes.digest,
            "device": str(model.device) if model else None,
            "dtype": str(model.dtype).removeprefix("torch.") if model else None,
            "least_tokens": min((each.tokens for each in self.seen), default=None),
        }
