"""Depth ``runtime``: text becomes the tokens in the engine that the source's tokenizer makes of it.

Metadata may be right and the engine make something else of it: a pre-tokenizer by another name, a
token of another kind. Texts are compared without what is put around them, which is compared once.
What engines do to every sound artifact is no fault of this one: where a vocabulary has a space put
before a text, llama.cpp also puts one before a text that begins with one, and after special tokens,
where transformers does not (https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp,
``llama_vocab::impl::tokenize``, LLAMA_VOCAB_TYPE_SPM).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.errors import QconvError, Unsupported

if TYPE_CHECKING:
    from qconv.calibration._tokenizer import ModelTokenizer
    from qconv.plugin import ModelInfo, Runtime
    from qconv.validation._planned import Companions

#: Plain text. All of it is as Unicode's NFKC leaves it: what a tokenizer normalizes away beforehand
#: no engine need do as well.
TEXTS = (
    "Hello, world! The quick brown fox jumps over 13 lazy dogs.",
    "a  b   c    d\t\te\n\n\nf \n \n  g\r\n\r\nh",
    " leading and trailing  ",
    "1 12 123 1234 12345 1234567890 3.14159 1,000,000 50% 0x1F",
    "I'm you're he's they'll we've I'd don't 'quoted' I'M YOU'RE 'Tis o'clock ''",
    "def f(x):\n    return {k: v**2 for k, v in x.items()}  # comment\n\n\tpass",
    "!?.,;:-_=+*/\\|@#$%^&~`\"'<>()[]{} ====---->>> ......",
    "CamelCaseWords mixedUPPERlower ALLCAPS snake_case https://example.org/a?b=c&d=1",
    "Über die Straße, naïve café, señor, œuvre, Ångström, İstanbul",
    "Съешь же ещё этих мягких французских булок",
    "Ελληνικά κείμενα και λέξεις",
    "أكتب هذا النص بالعربية",
    "שלום עולם",
    "हिन्दी में एक वाक्य",
    "ภาษาไทยไม่มีช่องว่าง",
    "我想在apple工作1314151天 日本語の文章です。한국어도 있습니다",
    "\N{ROCKET}\N{ROCKET} \N{WAVING HAND SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4}",
    "\N{MAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER} \N{RAINBOW}",
)
QUESTION = "What is 7 * 6?  \n\nShow your work, don't guess: I'm learning."

#: Special tokens that are looked for inside a text, at most.
_MARKS = 6

#: Faults told one by one; ids shown on either side of the first difference.
_TOLD, _BEFORE, _AFTER = 3, 3, 6

_ADDS_BEGIN, _ADDS_END = "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensFound:
    """What comparing gave. reason: why nothing was compared, where something should have been."""

    faults: tuple[str, ...] = ()
    reason: str | None = None


def compare_tokens(runtime: Runtime, source: ModelInfo, planned: Companions | None) -> TokensFound:
    """Hold an engine to the source's tokenizer; nothing is found where the source has none.

    planned: what the backend says it writes; where that is not what the source's tokenizer puts
        around a text, it is what the engine is held to
    """
    from qconv.calibration._tokenizer import ModelTokenizer

    try:
        tokenizer = ModelTokenizer(source)
    except Unsupported:
        return TokensFound()  # there are no files of one
    except QconvError as error:
        return TokensFound(reason=f"the source's tokenizer cannot be used: {error}")
    try:
        return TokensFound(faults=tuple(_faults(_Both(runtime, tokenizer, planned))))
    except Exception as error:  # noqa: BLE001 - engines raise what they like
        told = error if isinstance(error, QconvError) else f"{type(error).__name__}: {error}"
        return TokensFound(reason=f"tokens of {runtime.engine} cannot be compared: {told}")


@dataclass(frozen=True, slots=True)
class _Both:
    """An engine and the source's tokenizer."""

    runtime: Runtime
    tokenizer: ModelTokenizer
    planned: Companions | None

    def around(self) -> tuple[list[int], list[int]]:
        """What the engine puts before and after every text."""
        return _split(self.runtime.tokenize(""), self.runtime.tokenize("a"))

    def around_source(self) -> tuple[list[int], list[int]]:
        """What the source's tokenizer does."""
        return _split(self.tokenizer.ids(""), self.tokenizer.ids("a"))


def _split(alone: list[int], beside: list[int]) -> tuple[list[int], list[int]]:
    """What is around nothing, taken apart by how it is around a letter."""
    for count in range(len(alone), -1, -1):
        before, after = alone[:count], alone[count:]
        if beside[:count] == before and beside[len(beside) - len(after) :] == after:
            return before, after
    return [], []


def _faults(both: _Both) -> Iterator[str]:
    before, after = both.around()
    yield from _framing(both, before, after)
    marks = both.tokenizer.marks[:_MARKS]
    texts = [*TEXTS, *(f"a{mark}b{mark}" for mark in marks)]
    told = []
    for text in texts:
        ids = both.runtime.tokenize(text)
        found = ids[len(before) : len(ids) - len(after)]
        fault = _difference(text, found, both.tokenizer, marks)
        told += [] if fault is None else [fault]
    yield from told[:_TOLD]
    if len(told) > _TOLD:
        yield f"and {len(told) - _TOLD} more of {len(texts)} texts become other tokens"
    yield from _conversation(both, marks)


def _framing(both: _Both, before: list[int], after: list[int]) -> Iterator[str]:
    theirs = both.around_source()
    metadata = {} if both.planned is None else both.planned.metadata or {}
    sides = (("begins", before, theirs[0], _ADDS_BEGIN), ("ends", after, theirs[1], _ADDS_END))
    for verb, mine, other, key in sides:
        meant = metadata.get(key)
        if mine != other and (meant is None or bool(meant.value) != bool(mine)):
            yield f"it {verb} every text with tokens {mine}, but the source's with {other}"


def _difference(
    text: str, found: list[int], tokenizer: ModelTokenizer, marks: Sequence[str]
) -> str | None:
    expected = tokenizer.bare(text)
    if found == expected or any(found == tokenizer.bare(each) for each in _spaced(text, marks)):
        return None
    return f"{text!r} becomes {_shown(found, expected)}"


def _spaced(text: str, marks: Sequence[str]) -> Iterator[str]:
    """The text with spaces where engines put some of their own."""
    if text.startswith(" "):
        yield f" {text}"
    within = [mark for mark in marks if mark in text]
    if within:
        pattern = "|".join(re.escape(each) for each in sorted(within, key=len, reverse=True))
        yield re.sub(f"({pattern})(?=.)", r"\1 ", text, flags=re.DOTALL)


def _conversation(both: _Both, marks: Sequence[str]) -> Iterator[str]:
    expected = both.tokenizer.question(QUESTION)
    try:
        found: list[int] | None = both.runtime.converse(QUESTION)
    except Unsupported as error:
        found, refusal = None, str(error)
        if expected is not None:
            yield f"a conversation cannot be written, but by the source's template: {refusal}"
    if found is None or found == expected:
        return
    if expected is None:
        yield "it writes a conversation, but the source has no chat template that does"
        return
    text = both.tokenizer.written(QUESTION) or ""
    if not any(found == both.tokenizer.bare(each) for each in _spaced(text, marks)):
        yield f"a user's message, written as {text!r:.100}, becomes {_shown(found, expected)}"


def _shown(found: list[int], expected: list[int]) -> str:
    """Both lists around their first difference."""
    pairs = zip(found, expected, strict=False)
    same = (at for at, (one, other) in enumerate(pairs) if one != other)
    at = next(same, min(len(found), len(expected)))
    return (
        f"tokens {_part(found, at)}, but the source makes it {_part(expected, at)}: the first "
        f"difference is token number {at}"
    )


def _part(ids: list[int], at: int) -> str:
    start, stop = max(0, at - _BEFORE), at + _AFTER
    shown = [str(each) for each in ids[start:stop]]
    shown = [*(["..."] if start else []), *shown, *(["..."] if stop < len(ids) else [])]
    return f"[{', '.join(shown)}]"
