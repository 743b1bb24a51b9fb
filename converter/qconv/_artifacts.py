"""What reads and runs an artifact once it is written. Public by way of :mod:`qconv.plugin`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from qconv.plugin import TensorInfo


class ArtifactReader(Protocol):
    """An artifact opened for reading, by a reader independent of the writer.

    One that knows what inputs of weights are rounded with beforehand says so by a property
    ``activation_parameters``: by artifact name, what :meth:`qconv.grids.ActivationGrid.layout`
    states.
    """

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The artifact's tensors by artifact name."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """Decode one tensor to float32, shape as in the artifact."""
        ...


class Runtime(Protocol):
    """An artifact loaded into the engine that people will run it with. A context manager.

    A backend that has one gives it from ``runtime(path, context, device)``. context: the most
    tokens at once; device: ``cpu``, ``cuda`` or ``cuda:n``, which the engine must then compute on,
    or ``auto``, whatever it computes on best here. That raises BrokenPlugin, with what to install,
    where the engine is missing or cannot use the device, and UnreadableInput where the engine
    refuses the file.
    """

    @property
    def engine(self) -> str:
        """The engine's name, e.g. ``llama.cpp``."""
        ...

    @property
    def version(self) -> str:
        """The engine's version."""
        ...

    @property
    def device(self) -> str:
        """Where it computes: ``cpu``, ``cuda:0``, or ``gpu`` where the engine alone knows which."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a prompt, begun as the artifact says; ``<s>`` and the like are known."""
        ...

    def converse(self, prompt: str) -> list[int]:
        """Token ids of a user's message as the chat template writes it, up to the answer.

        Raises:
            Unsupported: there is no chat template, or it refuses the message.
        """
        ...

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids; control tokens are left out."""
        ...

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Logits after every token: (len(ids), vocabulary) float32.

        Raises:
            UsageError: no tokens, or more than ``context``.
        """
        ...

    def generate(self, ids: Sequence[int], max_tokens: int) -> list[int]:
        """Go on with the likeliest token each time, until one ends the text; that one is left out.

        Raises:
            UsageError: no tokens, or all together more than ``context``.
        """
        ...

    def close(self) -> None:
        """Let go of the artifact."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
