"""transformers itself as the runtime of a checkpoint, on the CPU, in the dtype it is stored in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qconv.errors import BrokenPlugin, UnreadableInput, Unsupported, UsageError

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self


class Transformers:
    """A checkpoint loaded by ``from_pretrained``. A context manager.

    Memory: the weights as transformers holds them, which decompresses some quantized ones.
    """

    def __init__(self, path: Path, *, context: int = 512) -> None:
        """Load the folder ``path``, or the folder of a file in it. context: most tokens at once.

        Raises:
            BrokenPlugin: transformers, or the library that the quantization needs, is missing.
            UnreadableInput: transformers refuses the checkpoint.
        """
        self._folder = path if path.is_dir() else path.parent
        self._context = context
        try:
            import transformers
        except ImportError as error:
            raise BrokenPlugin(
                "transformers is needed here but missing: pip install 'qconv[calibration]'"
            ) from error
        self._library: Any = transformers
        given = {"trust_remote_code": False, "local_files_only": True}
        with _quiet(transformers), self._refusals():
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(self._folder, **given)
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(self._folder, **given)
        self._model = model.eval()
        self._ends = _ends(self._model)

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """Whatever transformers raises, as an error that names the checkpoint."""
        try:
            yield
        except ImportError as error:
            raise BrokenPlugin(
                f"{self._folder}: transformers lacks a library: {_line(error)}; install it"
            ) from error
        except Exception as error:
            raise UnreadableInput(
                f"{self._folder}: transformers {self.version} refuses it: {_line(error)}; "
                "run it in an engine that its format is for"
            ) from error

    @property
    def engine(self) -> str:
        """The engine's name."""
        return "transformers"

    @property
    def version(self) -> str:
        """That of the library."""
        return str(self._library.__version__)

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

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Logits after every token: (len(ids), vocabulary) float32.

        Raises:
            UsageError: no tokens, or more than ``context``.
        """
        import torch

        self._check(ids, 0)
        with torch.inference_mode():
            found: torch.Tensor = self._model(torch.tensor([list(ids)]), use_cache=False).logits
        return found[0].float()

    def generate(self, ids: Sequence[int], max_tokens: int) -> list[int]:
        """Go on with the likeliest token each time, until one ends the text; that one is left out.

        Only where texts end is taken from the checkpoint's generation config.

        Raises:
            UsageError: no tokens, or all together more than ``context``.
        """
        import torch

        self._check(ids, max_tokens)
        if max_tokens == 0:
            return []
        config = self._library.GenerationConfig(
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=min(self._ends, default=0),
        )
        given = torch.tensor([list(ids)])
        with torch.inference_mode(), _quiet(self._library):
            self._model.generation_config = config
            found = self._model.generate(given, attention_mask=torch.ones_like(given))
        made = [int(token) for token in found[0, len(ids) :]]
        return made[:-1] if made and made[-1] in self._ends else made

    def _check(self, ids: Sequence[int], more: int) -> None:
        if not 0 < len(ids) <= self._context - more:
            raise UsageError(
                f"{len(ids)} tokens and {more} more, but between 1 and {self._context} can be "
                "computed; raise the context or give fewer"
            )

    def close(self) -> None:
        """Let go of the model."""
        self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _ends(model: Any) -> frozenset[int]:  # noqa: ANN401 - any transformers model
    """The tokens that end a text."""
    found = model.generation_config.eos_token_id
    return frozenset([found] if isinstance(found, int) else found or [])


def _line(error: Exception) -> str:
    """An exception's first words, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def _quiet(library: Any) -> Iterator[None]:  # noqa: ANN401 - the transformers module
    """Without progress bars and advice."""
    log = library.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
