"""What engines have in common: devices by name, and transformers' tokenizer in their folder.

A backend's :class:`qconv.plugin.Runtime` may build on it; importing this imports no library.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qconv.errors import BrokenPlugin, NotEnoughResources, Unsupported, UsageError

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

__all__ = ["TokenizedRuntime", "check_device", "engine_label", "resolve_device"]


def engine_label(engine: str | None, version: str | None, device: str | None) -> str:
    """``onnxruntime 1.32.0 on cuda:0``, for people; the CPU is not named."""
    place = "" if device in (None, "cpu") else f"on {device}"
    return " ".join(filter(None, (engine, version, place)))


def check_device(device: str) -> None:
    """Refuse what names no device; whether it is there is not asked.

    Raises:
        UsageError: says what there is.
    """
    kind, _, number = device.partition(":")
    if device not in ("auto", "cpu") and (kind != "cuda" or not (number or "0").isdecimal()):
        raise UsageError(f"--device {device}: must be auto, cpu, cuda or cuda:NUMBER")


def resolve_device(device: str) -> torch.device:
    """The device of ``auto``, ``cpu``, ``cuda`` or ``cuda:n``; ``auto`` is the first GPU, if any.

    Raises:
        UsageError: another word.
        NotEnoughResources: CUDA is asked for and absent.
    """
    import torch

    check_device(device)
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= found:
        raise NotEnoughResources(
            f"--device {device}: {found} CUDA devices are usable here; use --device cpu, "
            "or install a torch build for CUDA and its driver"
        )
    return torch.device("cuda", int(number or 0))


class TokenizedRuntime:
    """Text to tokens and back; a context manager. ``logits``, ``generate``: whoever builds on it.

    folder: where the tokenizer's files are
    context: most tokens at once
    tokenizer: of transformers, read from the folder
    device: where it computes: ``cpu``, ``cuda:0``
    """

    def __init__(
        self,
        folder: Path,
        context: int,
        tokenizer: Any,  # noqa: ANN401
        device: str = "cpu",
    ) -> None:
        self._folder = folder
        self._context = context
        self._tokenizer = tokenizer
        self._device = device

    @property
    def device(self) -> str:
        """Where it computes: ``cpu``, ``cuda:0``."""
        return self._device

    def tokenize(self, text: str) -> list[int]:
        """Token ids, begun as the tokenizer does."""
        return list(self._tokenizer(text)["input_ids"])

    def converse(self, prompt: str) -> list[int]:
        """Token ids of a user's message as the chat template writes it, up to the answer.

        Raises:
            BrokenPlugin: jinja2 is not installed.
            Unsupported: there is no chat template, or it refuses the message.
        """
        if not self._tokenizer.chat_template:
            raise Unsupported(
                f"{self._folder}: there is no chat template; give the prompt as plain text"
            )
        try:
            rendered = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
        except ImportError as error:
            raise BrokenPlugin(
                f"{self._folder}: its chat template cannot be written: {error}; "
                "pip install 'qconv[calibration]'"
            ) from error
        except Exception as error:
            raise Unsupported(
                f"{self._folder}: the chat template refuses a user's message ({error}); give the "
                "prompt as plain text"
            ) from error
        return list(self._tokenizer(rendered, add_special_tokens=False)["input_ids"])

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens are left out."""
        return str(
            self._tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def check_room(self, ids: Sequence[int], more: int) -> None:
        """Refuse no tokens at all, and what the context has no room for.

        Raises:
            UsageError: says how many tokens can be computed.
        """
        if not 0 < len(ids) <= self._context - more:
            raise UsageError(
                f"{len(ids)} tokens and {more} more, but between 1 and {self._context} can be "
                "computed; raise the context or give fewer"
            )

    def close(self) -> None:
        """Let go of what the engine holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
