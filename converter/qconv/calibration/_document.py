"""A document of a corpus, and the cleaning that every document goes through."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass

#: Role and content of one message of a conversation.
Message = tuple[str, str]

_URL = re.compile(
    r"\b(https?://|ftp://|www\.)([^\s/?#<>\"'`)\]}]+)([/?#][^\s<>\"'`)\]}]*)?", re.IGNORECASE
)
#: Categories Cc and Cs but tab and line feed, and marks that say nothing inside a text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")
#: Columns of a table stand a few spaces apart; longer runs only spend tokens.
_INNER_RUN = re.compile(r"(?<=\S)[ \t\u00a0]{9,}(?=\S)")
#: Code is not indented deeper than this.
_LONG_INDENT = re.compile(r"^[ \t\u00a0]{81,}", re.MULTILINE)
_TRAILING = re.compile(r"[ \t\u00a0]+$", re.MULTILINE)
#: Code parts with two empty lines; more say nothing.
_BLANK_LINES = re.compile(r"\n{4,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A clean document.

    text: all of it; of a conversation, its contents with an empty line between
    messages: role and content in turn; empty for plain text
    digest: SHA-256, as hex, of the text without case, punctuation and spacing
    """

    text: str
    messages: tuple[Message, ...] = ()
    digest: str


@dataclass(slots=True, kw_only=True)
class CleaningCounts:
    """What cleaning found in all documents it saw."""

    urls_shortened: int = 0
    control_characters: int = 0


def clean_text(text: str, counts: CleaningCounts) -> str:
    """``text`` in Unicode NFC, without control characters, long runs of space, and long URLs.

    URLs keep their host: the paths and keys behind it are random characters, whose rare tokens
    would stand out in statistics. Indentation stays, for code.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text, controls = _CONTROL.subn("", text)
    counts.control_characters += controls
    text = unicodedata.normalize("NFC", text)
    text = _URL.sub(lambda match: _shortened(match, counts), text)
    text = _TRAILING.sub("", _LONG_INDENT.sub(" " * 80, _INNER_RUN.sub(" " * 8, text)))
    return _BLANK_LINES.sub("\n\n\n", text).strip("\n")


def clean_document(
    text: str, messages: tuple[Message, ...], counts: CleaningCounts
) -> Document | None:
    """The document cleaned; None when nothing is left of it."""
    if messages:
        cleaned = tuple((role, clean_text(content, counts)) for role, content in messages)
        messages = tuple((role, content) for role, content in cleaned if content.strip())
        text = "\n\n".join(content for _, content in messages)
    else:
        text = clean_text(text, counts)
    if not text.strip():
        return None
    return Document(text=text, messages=messages, digest=text_digest(text))


def text_digest(text: str) -> str:
    """SHA-256, as hex, of what :func:`normalised` leaves of ``text``."""
    return hashlib.sha256(normalised(text).encode()).hexdigest()


def normalised(text: str) -> str:
    """Letters, digits and symbols of ``text``, without case, spacing and ASCII punctuation.

    Texts that differ in layout only become equal. A text of punctuation only stays as it is.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(folded.translate(_DROPPED).split()) or "".join(folded.split()) or folded


_DROPPED = dict.fromkeys(map(ord, "!\"'(),-.:;?[]_`{}*#|~"))


def _shortened(match: re.Match[str], counts: CleaningCounts) -> str:
    if not match[3] or match[3] == "/":
        return match[0]
    counts.urls_shortened += 1
    ending = re.search(r"[.,;:!?]+$", match[3])  # punctuation of the sentence around it
    return f"{match[1]}{match[2]}{ending[0] if ending else ''}"
