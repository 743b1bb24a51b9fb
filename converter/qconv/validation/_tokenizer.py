"""Tokenizer parity: the artifact turns text into the tokens that the source does.

Equal files prove it. Where they differ, or where a GGUF keeps the tokenizer in its metadata, the
vocabulary is compared in order, then merges, special tokens and chat template; and where both sides
have files, probe strings and rendered conversations are tokenized by both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from qconv.checkpoint import open_checkpoint
from qconv.errors import QconvError
from qconv.validation._tokenizer_facts import TokenizerFacts, facts_of_files, facts_of_gguf

if TYPE_CHECKING:
    from pathlib import Path

    from qconv.plugin import ModelInfo

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

#: Files without which nothing can be tokenized.
_NEEDED = ("tokenizer.json", "tokenizer.model", "vocab.json")

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


def tokenizer_faults(path: Path, source: ModelInfo) -> tuple[str, ...]:
    """What is wrong with the tokenizer of the artifact at ``path``; empty when nothing is.

    Nothing can be wrong where the source has no tokenizer.
    """
    files = _files_beside(path)
    if files:
        return tuple(_faults_of_files(files, source))
    theirs = _facts(source)
    if theirs is None:
        return ()
    gguf = _gguf(path)
    mine = None if gguf is None else facts_of_gguf(gguf.metadata)
    if mine is None:
        return ("it holds no tokenizer, and the source has one",)
    return tuple(_compared(mine, theirs))


def _faults_of_files(files: Mapping[str, bytes], source: ModelInfo) -> Iterator[str]:
    """Files with the source's bytes agree; only where some differ is anything parsed."""
    for name in _missing(files, source.files):
        yield f"{name} is missing"
    differing = list(_differing_files(files, source.files))
    if not differing:
        return
    mine, theirs = facts_of_files(files), _facts(source)
    compared = [] if mine is None or theirs is None else list(_compared(mine, theirs))
    yield from compared or list(_probed(files, source)) or list(_unknown(differing, mine))


def _facts(source: ModelInfo) -> TokenizerFacts | None:
    if source.kind == "gguf":
        return facts_of_gguf(source.metadata)
    return facts_of_files(source.files)


def _files_beside(path: Path) -> dict[str, bytes]:
    """The tokenizer's files of an artifact that is a folder, or a file in one; not of a GGUF."""
    if path.suffix.lower() == ".gguf":
        return {}
    folder = path if path.is_dir() else path.parent
    found = {name: folder / name for name in FILES}
    return {name: each.read_bytes() for name, each in found.items() if each.is_file()}


def _gguf(path: Path) -> ModelInfo | None:
    try:
        with open_checkpoint(path, require_config=False) as opened:
            return opened.model if opened.model.kind == "gguf" else None
    except QconvError:
        return None  # told where the tensors are read


def _differing_files(mine: Mapping[str, bytes], theirs: Mapping[str, bytes]) -> Iterator[str]:
    for name in FILES:
        if name in mine and mine[name] != theirs.get(name):
            yield name


def _missing(mine: Mapping[str, bytes], theirs: Mapping[str, bytes]) -> Iterator[str]:
    for name in FILES:
        if name in theirs and name not in mine:
            yield name


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
        if kind in mine.special and mine.special[kind] != token:
            yield f"{kind} is token {mine.special[kind]}, but the source's is {token}"
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


def _unknown(differing: list[str], mine: TokenizerFacts | None) -> Iterator[str]:
    """Files that differ and were compared by no other means."""
    if mine is None:
        yield f"{', '.join(differing)}: not the source's, and what differs cannot be told"


def _probed(files: Mapping[str, bytes], source: ModelInfo) -> Iterator[str]:
    """Tokenize probes with both; nothing is told where transformers is not there."""
    if not any(name in source.files for name in _NEEDED):
        return
    from dataclasses import replace

    from qconv.calibration._tokenizer import ModelTokenizer

    try:
        theirs = ModelTokenizer(source)
        mine = ModelTokenizer(replace(source, files={**source.files, **files}))
        for text in PROBES:
            one, other = mine.ids(text), theirs.ids(text)
            if one != other:
                yield f"{text!r} becomes tokens {one[:12]}, but the source makes it {other[:12]}"
                return
        said, meant = mine.rendered(CONVERSATION), theirs.rendered(CONVERSATION)
        if said != meant:
            yield f"a conversation is rendered as {said!r:.80}, but by the source as {meant!r:.80}"
    except QconvError as error:
        yield f"it cannot be loaded: {error}"
