"""Cuts encoded documents into candidate windows, and chooses among them."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

#: A window of one token predicts nothing.
SHORTEST = 2


@dataclass(frozen=True, slots=True)
class Encoded:
    """A document as token ids."""

    tokens: list[int]
    document: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A window that may be taken. documents: digests of those it holds tokens of."""

    tokens: tuple[int, ...]
    documents: tuple[str, ...]


def pack(
    documents: Iterable[Encoded], length: int, separator: Sequence[int]
) -> Iterator[Candidate]:
    """Full windows of documents one after the other; what does not fill the last one is left."""
    tokens: list[int] = []
    owners: list[str] = []
    for document in documents:
        added = [*document.tokens, *separator]
        tokens += added
        owners += [document.document] * len(added)
        start = 0
        while len(tokens) - start >= length:
            stop = start + length
            yield Candidate(tuple(tokens[start:stop]), tuple(dict.fromkeys(owners[start:stop])))
            start = stop
        del tokens[:start], owners[:start]


def one_each(documents: Iterable[Encoded], length: int) -> Iterator[Candidate]:
    """The beginning of every document as a window of its own."""
    for document in documents:
        if len(document.tokens) >= SHORTEST:
            yield Candidate(tuple(document.tokens[:length]), (document.document,))


def balanced(documents: Sequence[Encoded]) -> list[Encoded]:
    """Documents of every length in turn. Lengths are alike when they have the same power of 2."""
    by_length: dict[int, list[Encoded]] = defaultdict(list)
    for document in documents:
        by_length[len(document.tokens).bit_length()].append(document)
    turns = zip_longest(*(by_length[key] for key in sorted(by_length)))
    return [document for turn in turns for document in turn if document is not None]


def shuffled(count: int, key: str) -> list[int]:
    """The numbers up to ``count`` in an order that ``key`` decides, the same on every machine."""
    return sorted(range(count), key=lambda number: _hash(f"{key}:{number}"))


def most_diverse(candidates: Sequence[Candidate], count: int) -> list[int]:
    """Indices of ``count`` candidates that cover rare tokens, best first.

    Greedy: the next one gains ``sum over its tokens t of idf(t) / (1 + taken windows with t)``.
    Gains only fall as more are taken (the sum is submodular), so that one whose gain, counted
    anew, is still the highest of all old gains is the best.
    """
    contents = [frozenset(candidate.tokens) for candidate in candidates]
    holders = Counter(token for content in contents for token in content)
    rarity = {token: math.log1p(len(candidates) / held) for token, held in holders.items()}
    covered: Counter[int] = Counter()

    def gain(index: int) -> float:
        return math.fsum(rarity[token] / (1 + covered[token]) for token in contents[index])

    heap = [(-gain(index), index) for index in range(len(candidates))]
    heapq.heapify(heap)
    taken: list[int] = []
    while heap and len(taken) < count:
        _, index = heapq.heappop(heap)
        now = (-gain(index), index)
        if heap and now > heap[0]:
            heapq.heappush(heap, now)
            continue
        taken.append(index)
        covered.update(contents[index])
    return taken


def hardest(losses: Sequence[float], count: int) -> list[int]:
    """Indices of the ``count`` highest losses, after leaving out the highest twentieth.

    What is hardest of all is mostly noise: garbled text, tables of numbers, another language.
    """
    order = sorted(range(len(losses)), key=lambda index: (-losses[index], index))
    spared = min(len(order) // 20, max(0, len(order) - count))
    return order[spared : spared + count]


def quotas(shares: Sequence[float], available: Sequence[int], count: int) -> list[int]:
    """How many of ``count`` windows each source gives: by its share, at most what it has.

    What one lacks the others give, by their shares. Largest remainders; ties go to the first.
    """
    count = min(count, sum(available))
    taken = [0] * len(shares)
    while missing := count - sum(taken):
        open_ = [index for index in range(len(shares)) if taken[index] < available[index]]
        whole = math.fsum(shares[index] for index in open_)
        exact = {index: missing * shares[index] / whole for index in open_}
        for index in open_:
            taken[index] += min(int(exact[index]), available[index] - taken[index])
        rest = count - sum(taken)
        if rest and rest < len(open_) + 1:
            _add_remainders(taken, available, exact, rest)
    return taken


def _add_remainders(
    taken: list[int], available: Sequence[int], exact: dict[int, float], rest: int
) -> None:
    order = sorted(exact, key=lambda index: (int(exact[index]) - exact[index], index))
    for index in [each for each in order if taken[each] < available[each]][:rest]:
        taken[index] += 1


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
