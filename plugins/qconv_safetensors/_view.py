"""A checkpoint of any kind, seen as the Hugging Face checkpoint that is to be written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from qconv.plugin import Dropped, ModelInfo, RowOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewTensor:
    """A tensor as transformers names it.

    source: the tensor of the checkpoint that it is
    shape: as transformers has it, outermost first
    row_order: which row of the source each row is; None: as they come
    """

    name: str
    source: str
    shape: tuple[int, ...]
    row_order: RowOrder | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFaceView:
    """What a Hugging Face checkpoint of the model holds.

    config: ``config.json``
    files: other companions by name
    tensors: in the source's order
    dropped: source tensors that have no place in it
    """

    config: Mapping[str, Any]
    files: Mapping[str, bytes]
    tensors: tuple[ViewTensor, ...]
    dropped: tuple[Dropped, ...] = ()


def view_of(model: ModelInfo, read: Callable[[str], torch.Tensor] | None = None) -> HuggingFaceView:
    """The checkpoint as it is; a GGUF file under the names that transformers has for it.

    read: a tensor of the source, whole; None where none can be read

    Raises:
        Unsupported: a GGUF file of an architecture whose names are not known.
    """
    if model.kind == "gguf":
        from ._gguf import as_hugging_face

        return as_hugging_face(model, read)
    tensors = tuple(
        ViewTensor(name=info.name, source=info.name, shape=info.shape)
        for info in model.tensors.values()
    )
    return HuggingFaceView(config=model.config, files=model.files, tensors=tensors)
