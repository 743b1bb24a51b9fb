"""Tokenizer parity: the artifact turns text into the tokens that the source does.

Equal files prove it. Where they differ, or where a GGUF keeps the tokenizer in its metadata, the
vocabulary is compared in order, then merges, special tokens and chat template; and where both sides
have files, probe strings and rendered conversations are tokenized by both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qconv.checkpoint import open_checkpoint
from qconv.errors import BrokenPlugin, QconvError
from qconv.validation._tokenizer_facts import (
    TokenizerFacts,
    facts_of_files,
    facts_of_gguf,
    template_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from qconv.plugin import ModelInfo
    from qconv.validation._planned import Companions

#: What says how text becomes tokens.
FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)

#: Text that tokenizers disagree on, where they do.
PROBES = (
    "a  b   c    d\t\te\n\n\nf",
    " leading and trailing ",
    "1234567890 3.14159 1,000,000",
    "\N{CJK UNIFIED IDEOGRAPH-6F22}\N{CJK UNIFIED IDEOGRAPH-5B57} \N{HANGUL SYLLABLE HAN}",
    "\N{WAVING HAND SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4} \N{RAINBOW}",
    "def f(x):\n    return {k: v**2 for k, v in x.items()}  # ~!@#$%^&*()",
    "na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve \N{CYRILLIC CAPITAL LETTER EM} it's DON'T",
)
CONVERSATION = (
    {"role": "user", "content": "What is 7 * 6?  \n\nShow your work."},
    {"role": "assistant", "content": "7 * 6 = 42."},
    {"role": "user", "content": "Thanks!"},
)


def tokenizer_faults(
    path: Path, source: ModelInfo, planned: Companions | None = None
) -> tuple[str, ...]:
    """What is wrong with the tokenizer of the artifact at ``path``; empty when nothing is.

    Looks at what the backend writes of a tokenizer, and nothing can be wrong where that is nothing,
    as with a backend that writes weights only, or where the source has no tokenizer.

    planned: what the backend says it writes; None: not known, so that nothing can be missing
    """
    if not path.is_dir():
        return tuple(_faults_of_gguf(path, source, planned))
    names = FILES if planned is None else [name for name in FILES if name in planned.files]
    found = {name: path / name for name in names}
    files = {name: each.read_bytes() for name, each in found.items() if each.is_file()}
    missing = [] if planned is None else [name for name in names if name not in files]
    faults = _faults_of_files(files, source, {} if planned is None else planned.files)
    return (*(f"{name} is missing" for name in missing), *faults)


def _faults_of_gguf(path: Path, source: ModelInfo, planned: Companions | None) -> Iterator[str]:
    """A GGUF's metadata beside the source's tokenizer, or beside the plan where that is no data."""
    gguf = _gguf(path)
    if gguf is None:
        return
    expected = None if planned is None else facts_of_gguf(planned.metadata or {})
    mine, theirs = facts_of_gguf(gguf.metadata), _facts(source) or expected
    if mine is None and expected is not None:
        yield "it holds no tokenizer, and its backend writes one"
    if mine is not None and theirs is not None:
        yield from _compared(mine, theirs)


def _faults_of_files(
    files: Mapping[str, bytes], source: ModelInfo, planned: Mapping[str, bytes]
) -> Iterator[str]:
    """Files with the source's bytes agree; only where some differ is anything parsed."""
    differing = [name for name, data in files.items() if data != source.files.get(name)]
    if not differing:
        return
    mine, theirs = facts_of_files(files), _facts(source)
    known = mine is not None and theirs is not None
    compared = [] if mine is None or theirs is None else list(_compared(mine, theirs))
    if compared:
        yield from compared
        return
    probed = _probed(files, source)
    if probed is not None:
        yield from probed
    elif not known:
        yield from _unknown([name for name in differing if files[name] != planned.get(name)])


def _facts(source: ModelInfo) -> TokenizerFacts | None:
    if source.kind == "gguf":
        return facts_of_gguf(source.metadata)
    return facts_of_files(source.files)


def _gguf(path: Path) -> ModelInfo | None:
    try:
        with open_checkpoint(path, require_config=False) as opened:
            return opened.model if opened.model.kind == "gguf" else None
    except QconvError:
        return None  # told where the tensors are read


def _compared(mine: TokenizerFacts, theirs: TokenizerFacts) -> Iterator[str]:
    wrong = [at for at, text in theirs.tokens.items() if mine.tokens.get(at) != text]
    if wrong:
        first = min(wrong)
        yield (
            f"vocabulary: token {first} is {mine.tokens.get(first)!r}, but the source's is "
            f"{theirs.tokens[first]!r} ({len(wrong)} of {len(theirs.tokens)} tokens differ)"
        )
    if mine.merges is not None and theirs.merges is not None and mine.merges != theirs.merges:
        yield f"merges: {_first_difference(mine.merges, theirs.merges)}"
    for kind, token in theirs.special.items():
        if mine.states_special and mine.special.get(kind) != token:
            yield f"{kind} is token {mine.special.get(kind)}, but the source's is {token}"
    if mine.template != theirs.template:
        yield f"chat template: {_first_line(mine.template, theirs.template)}"


def _first_difference(mine: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    for at, (one, other) in enumerate(zip(mine, theirs, strict=False)):
        if one != other:
            return f"number {at} is {one!r}, but the source's is {other!r}"
    return f"there are {len(mine)}, but the source has {len(theirs)}"


def _first_line(mine: str | None, theirs: str | None) -> str:
    if mine is None or theirs is None:
        return "the artifact has none" if mine is None else "the source has none"
    lines = zip(mine.splitlines(), theirs.splitlines(), strict=False)
    for at, (one, other) in enumerate(lines):
        if one != other:
            return f"line {at + 1} is {one[:80]!r}, but the source's is {other[:80]!r}"
    return f"it has {len(mine)} characters, but the source's has {len(theirs)}"


def _unknown(differing: list[str]) -> Iterator[str]:
    """Files that are neither the source's nor as planned, and were compared by no other means."""
    if differing:
        yield f"{', '.join(differing)}: not the source's, and what differs cannot be told"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answers:
    """What a tokenizer makes of the probes; of a conversation it refuses, the template itself."""

    ids: tuple[list[int], ...]
    conversation: str | None


def _answers(model: ModelInfo) -> _Answers:
    """Answers of the tokenizer in a model's files.

    Raises:
        BrokenPlugin: transformers, or what it needs, is not installed.
        QconvError: the files cannot be loaded, or do not belong to the model.
    """
    from qconv.calibration._tokenizer import ModelTokenizer

    tokenizer = ModelTokenizer(model)
    ids = tuple(tokenizer.ids(text) for text in PROBES)
    said = tokenizer.rendered(CONVERSATION)
    return _Answers(ids=ids, conversation=template_of(model.files) if said is None else said)


def _probed(files: Mapping[str, bytes], source: ModelInfo) -> tuple[str, ...] | None:
    """Tokenize probes with both; None where that cannot be done with the source's own."""
    try:
        theirs = _answers(source)
    except QconvError:
        return None
    try:
        mine = _answers(replace(source, files={**source.files, **files}))
    except BrokenPlugin:
        return None
    except QconvError as error:
        return (f"it cannot be loaded: {error}",)
    for text, one, other in zip(PROBES, mine.ids, theirs.ids, strict=True):
        if one != other:
            return (f"{text!r} becomes tokens {one[:12]}, but the source makes it {other[:12]}",)
    said, meant = mine.conversation, theirs.conversation
    if said != meant:
        return (f"a conversation is rendered as {said!r:.80}, but by the source as {meant!r:.80}",)
    return ()
