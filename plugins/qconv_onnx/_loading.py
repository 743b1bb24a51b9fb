"""As which parameters transformers loads the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def loaded_as(
    module: nn.Module, names: Iterable[str]
) -> Iterator[tuple[str, str, tuple[str, Any] | None]]:
    """Of every tensor: its name, the parameter, and what joins it with others; None: nothing does.

    That is a pattern of names, and the ``WeightConverter`` of transformers that it is of.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    rules: Any = get_model_conversion_mapping(module)  # type: ignore[arg-type]
    renamings = [each for each in rules if isinstance(each, WeightRenaming)]
    converters = [each for each in rules if isinstance(each, WeightConverter)]
    of = {pattern: each for each in converters for pattern in each.source_patterns}
    state, prefix = module.state_dict(), str(module.base_model_prefix)
    for name in names:
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        yield name, target, None if pattern is None else (pattern, of[pattern])
