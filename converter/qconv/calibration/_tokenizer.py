"""The checkpoint's own tokenizer and chat template."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconv.errors import BrokenPlugin, UnreadableInput, Unsupported

if TYPE_CHECKING:
    from qconv.calibration._document import Document
    from qconv.plugin import ModelInfo

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


class ModelTokenizer:
    """Turns documents into token ids as the model expects them.

    templates_failed: conversations that the template refused, which went in as plain text
    """

    def __init__(self, model: ModelInfo) -> None:
        self._tokenizer = _load(model)
        self._name = model.name
        self._size = vocabulary_size(model)
        self.templates_failed = 0

    @property
    def has_template(self) -> bool:
        """Whether the checkpoint says how a conversation is written."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    @property
    def begin(self) -> int | None:
        """The token that the tokenizer puts before every text, or None."""
        first = self._ids("a", special=True)[0]
        return first if first == self._tokenizer.bos_token_id else None

    @property
    def words(self) -> list[int]:
        """All ids that stand for text, sorted."""
        marks = set(self._tokenizer.all_special_ids)
        known = {int(each) for each in self._tokenizer.get_vocab().values()}
        return sorted(each for each in known - marks if self._size is None or each < self._size)

    def encode(self, document: Document, *, chat_template: bool) -> list[int]:
        """Token ids of a document, marked where it begins and ends, once.

        Plain text is marked as the tokenizer does it, a conversation as the template does.

        Raises:
            Unsupported: an id is beyond the model's vocabulary.
        """
        rendered = None
        if document.messages and chat_template and self.has_template:
            rendered = self._rendered(document)
        if rendered is None:
            return self._ids(document.text, special=True)
        return self._ids(rendered, special=False)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, marked where the tokenizer marks it."""
        return self._ids(text, special=True)

    def bare(self, text: str) -> list[int]:
        """Token ids of a text, with nothing put around it; ``<s>`` and the like are known."""
        return self._ids(text, special=False)

    @property
    def marks(self) -> list[str]:
        """Special tokens that stand for themselves wherever they are in a text, by id."""
        known = getattr(self._tokenizer, "added_tokens_decoder", {})
        return [
            each.content
            for _, each in sorted(known.items())
            if each.special and not (each.lstrip or each.rstrip or each.single_word)
        ]

    def question(self, prompt: str) -> list[int] | None:
        """Token ids of :meth:`written`; None where that is."""
        said = self.written(prompt)
        return None if said is None else self._ids(said, special=False)

    def written(self, prompt: str) -> str | None:
        """A user's message as the template writes it, up to the answer; None where it does not."""
        if not self.has_template:
            return None
        asked = [{"role": "user", "content": prompt}]
        return self._templated(asked, add_generation_prompt=True)

    def rendered(self, messages: Sequence[Mapping[str, str]]) -> str | None:
        """A conversation as the template writes it; None where there is none, or it refuses."""
        if not self.has_template:
            return None
        return self._templated(list(messages))

    def plain(self, document: Document) -> list[list[int]]:
        """Token ids of what the document says, message by message, with nothing added."""
        texts = [content for _, content in document.messages] or [document.text]
        return [self._ids(text, special=False) for text in texts]

    def separator(self) -> list[int]:
        """What stands between documents: nothing if they are marked, otherwise an empty line."""
        marked = self._ids("a", special=True) != self._ids("a", special=False)
        return [] if marked else self._ids("\n\n", special=False)

    def _rendered(self, document: Document) -> str | None:
        return self._templated(
            [{"role": role, "content": content} for role, content in document.messages]
        )

    def _templated(self, messages: Sequence[Mapping[str, str]], **options: bool) -> str | None:
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **options))
        except ImportError as error:
            raise BrokenPlugin(
                f"{self._name}: its chat template cannot be rendered: {error}; "
                "pip install 'qconv[calibration]', or use --no-chat-template"
            ) from error
        except Exception:  # noqa: BLE001 - a template is a program of the publisher's
            self.templates_failed += 1
            return None

    def _ids(self, text: str, *, special: bool) -> list[int]:
        # verbose: no warning that a text is longer than the context; it is cut into windows
        ids = self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        largest = max(ids, default=0)
        if self._size is not None and largest >= self._size:
            raise Unsupported(
                f"{self._name}: the tokenizer gives token {largest}, but the model's vocabulary "
                f"has {self._size} tokens; the tokenizer belongs to another model, put the right "
                "files beside the weights"
            )
        return [int(each) for each in ids]


def vocabulary_size(model: ModelInfo) -> int | None:
    """Tokens that the model's config knows; None when it does not say."""
    return _from_config(model.config, ("vocab_size",))


def context_length(model: ModelInfo) -> int | None:
    """The most tokens of a window that the model's config allows; None when it does not say."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
    return _from_config(model.config, names)


def _from_config(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """The first of ``names`` that the config, or the text part of it, gives."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        for name in names:
            if type(value := part.get(name)) is int and value > 0:
                return int(value)
    return None


def _load(model: ModelInfo) -> Any:  # noqa: ANN401 - transformers has no type for all of them
    if not any(name in model.files for name in _TOKENIZER_FILES):
        raise Unsupported(
            f"{model.name}: no {', '.join(_TOKENIZER_FILES)} beside the weights, and text becomes "
            "tokens only with the model's own tokenizer; put its files there, or pass a "
            "calibration file"
        )
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise BrokenPlugin(
            f"calibration text becomes tokens with transformers, which cannot be imported: {error};"
            " pip install 'qconv[calibration]'"
        ) from error
    with tempfile.TemporaryDirectory(prefix="qconv-tokenizer-") as folder:
        for name, data in model.files.items():
            Path(folder, name).write_bytes(data)
        try:
            return AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # transformers raises many kinds for files of strangers
            raise UnreadableInput(
                f"{model.name}: its tokenizer files cannot be loaded: {type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else 'no reason given'}; get them anew"
            ) from error
