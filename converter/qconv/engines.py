"""What engines have in common whose tokenizer is transformers', read from the artifact's folder.

A backend's :class:`qconv.plugin.Runtime` may build on it; importing this imports no library.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qconv.errors import BrokenPlugin, Unsupported, UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TokenizedRuntime"]


class TokenizedRuntime:
    """Text to tokens and back; a context manager. ``logits``, ``generate``: whoever builds on it.

    folder: where the tokenizer's files are
    context: most tokens at once
    tokenizer: of transformers, read from the folder
    """

    def __init__(self, folder: Path, context: int, tokenizer: Any) -> None:  # noqa: ANN401
        self._folder = folder
        self._context = context
        self._tokenizer = tokenizer

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
