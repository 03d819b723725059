"""Motifs: records that samples repeat, found from their text alone.

A sample is cut into words (letters, digits, underscores), blanks, and single signs. With every word
replaced by one symbol this is its shape, and a record is the shortest piece of the shape that
follows itself for the longest stretch (`tandem`). Samples with the same record share a motif; words
that they share are skeleton, others are slots:

    skeleton    one word in 90 % of the records
    repeat      in 90 % of the records the same as an earlier slot
    number      digits only in 90 % of the records
    word        at least half of the records have a word that is common in the window
    identifier  every other slot

A sample half of which is one block of tokens over and over is a plain repeat, a motif of its own,
unless its shape repeats itself for longer.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mda.data.motif_file import Motif, Slot
from mda.data.stream import Corpus
from mda.data.tokenizer import opened
from mda.schema import MotifsConfig
from mda.types import Scores

COPIES = 2  # of a record, at least
LONGEST = 256  # words, blanks and signs, or tokens of a plain repeat, in a record
RECORDS_COVER = 1 / 3  # of a sample, at least
REPEATS_COVER = 1 / 2
ALMOST_ALL = 0.9  # of the records
COMMON = (
    10,
    0.001,
)  # a word is common in the window if it is in so many samples, and this share
WINDOW = 20_000  # samples that shares of the window are estimated from
VALUES = 100  # of a slot that are kept, the most frequent
BATCH = 2048
_LEXEME = re.compile(r"\w+|\s+|[^\w\s]")
_WORD, _GAP = "\0", "\1"  # in a shape: any word; a place that nothing equals, as between documents
SPAN = (_WORD,)  # the shape of a plain repeat


@dataclass(frozen=True)
class Found:
    """The words of one sample, and the record that it repeats, if there is one."""

    words: frozenset[str]
    shape: tuple[str, ...] = ()  # of the record; empty where there is none
    copies: tuple[tuple[str, ...], ...] = ()  # the words of each copy
    text: str = ""  # the first copy


@dataclass(frozen=True)
class Mined:
    """Motifs, and the number of samples; `covered` is the share of these that has a motif."""

    motifs: tuple[Motif, ...]
    samples: int
    window: int  # samples that the shares of the window are from
    covered: float


def mine(
    corpus: Corpus,
    scores: Scores,
    unit: str,
    settings: MotifsConfig,
    bar: Callable[[Iterable[Found], int], Iterable[Found]] = lambda record_at, n: record_at,
) -> Mined:
    """Returns the motifs of the samples that the settings choose by the unit's scores.

    Of a window of more than `WINDOW` samples a random part represents the whole.
    """
    values, n = scores.of(unit), len(scores.sample_ids)
    chosen = _chosen(values, settings)
    window = np.arange(n)
    if n > WINDOW:
        window = np.sort(np.random.default_rng(0).choice(n, WINDOW, replace=False))
    needed = np.union1d(window, chosen)
    of = records(corpus, scores.sample_ids[needed])
    record_at = dict(zip(needed.tolist(), bar(of, len(needed)), strict=True))
    least = max(2, math.ceil(settings.least * len(chosen)))
    picked, all_of_them = ([record_at[i] for i in at.tolist()] for at in (chosen, window))
    motifs = motifs_of(picked, scores.sample_ids[chosen], all_of_them, least)
    covered = sum(motif.samples for motif in motifs) / len(chosen)
    return Mined(motifs, len(chosen), len(window), covered)


def _chosen(values: np.ndarray, settings: MotifsConfig) -> np.ndarray:
    """Returns the positions of the chosen samples."""
    n = min(settings.samples, len(values))
    if settings.select == "random":
        return np.random.default_rng(settings.seed).choice(len(values), n, replace=False)
    order = np.argsort(-values, kind="stable")
    return order[:n] if settings.select == "top" else order[::-1][:n]


def tandem(symbols_NL: np.ndarray, copies: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns each row's longest repeating stretch: start, period and length, int64 [N].

    A stretch has period p where each symbol equals the one p before it, and counts if it holds p
    at least `copies` times and p is at most `LONGEST`. Of equally long ones it is that of the
    shortest period; 0 for none.
    """
    n, length = symbols_NL.shape
    start, period, covered = (np.zeros(n, dtype=np.int64) for _ in range(3))
    rows = np.arange(n)
    for p in range(1, min(LONGEST, length // copies) + 1):
        same = symbols_NL[:, p:] == symbols_NL[:, :-p]
        count = np.cumsum(same, 1)
        runs = count - np.maximum.accumulate(np.where(same, 0, count), 1)
        last = runs.argmax(1)
        best = runs[rows, last]
        better = (best >= (copies - 1) * p) & (best + p > covered)
        covered[better], period[better] = (best + p)[better], p
        start[better] = (last - best + 1)[better]
    return start, period, covered


def records(corpus: Corpus, sample_ids: np.ndarray) -> Iterator[Found]:
    """Returns the record that each sample repeats. Needs a corpus with a tokenizer."""
    for first in range(0, len(sample_ids), BATCH):
        tokens = corpus.rows(sample_ids[first : first + BATCH]).numpy()
        lexemes = [_lexemes(corpus, row) for row in tokens]
        plain = zip(*tandem(tokens, COPIES), strict=True)
        shaped = zip(*tandem(_symbols(lexemes), COPIES), strict=True)
        for row, words, block, record in zip(tokens, lexemes, plain, shaped, strict=True):
            vocabulary = frozenset(filter(_is_word, words))
            repeats, follows = block[2] / len(row), record[2] / len(words)
            if repeats >= max(REPEATS_COVER, ALMOST_ALL * follows):
                text = _text(corpus, row[block[0] : block[0] + block[1]])
                yield Found(vocabulary, SPAN, ((text,),) * int(block[2] // block[1]), text)
            elif follows >= RECORDS_COVER:
                yield Found(vocabulary, *_record(words, *map(int, record)))
            else:
                yield Found(vocabulary)


def motifs_of(
    chosen: Sequence[Found], sample_ids: np.ndarray, window: Sequence[Found], least: int
) -> tuple[Motif, ...]:
    """Returns the motifs that at least `least` of the samples share, most frequent first.

    `chosen` are the records of the chosen samples, `window` those of the window's, or of a random
    part of them.
    """
    by_shape: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for position, record in enumerate(chosen):
        if record.shape:
            by_shape[record.shape].append(position)
    in_window = Counter(record.shape for record in window)
    seen = Counter(word for record in window for word in record.words)
    common = {word for word, n in seen.items() if n >= max(COMMON[0], COMMON[1] * len(window))}
    motifs: list[Motif] = []
    for shape, at in sorted(by_shape.items(), key=lambda item: (-len(item[1]), item[0])):
        of_shape = [chosen[position] for position in at]
        skeleton, slots, cast = _generalise(shape, [record.copies for record in of_shape], common)
        if len(at) < least or not slots:
            continue
        share, overall = len(at) / len(chosen), in_window[shape] / max(1, len(window))
        motifs.append(
            Motif(
                name=f"motif_{len(motifs)}",
                title="",
                skeleton=skeleton,
                slots=slots,
                example=of_shape[0].text,
                cast=cast,
                copies=_middle([len(record.copies) for record in of_shape]),
                samples=len(at),
                share=round(share, 6),
                share_window=round(overall, 6),
                enrichment=round(share / overall, 4) if overall else None,
                sample_ids=tuple(sample_ids[at].tolist()),
            )
        )
    return tuple(motifs)


def _lexemes(corpus: Corpus, row: np.ndarray) -> list[str]:
    special = np.isin(row, corpus.special_ids)
    words: list[str] = []
    for piece in np.split(np.arange(len(row)), np.flatnonzero(special)):
        words += [_GAP, *_LEXEME.findall(_text(corpus, row[piece][~special[piece]]))]
    return words


def _text(corpus: Corpus, tokens: np.ndarray) -> str:
    assert corpus.tokenizer is not None
    return opened(corpus.tokenizer).decode(tokens.tolist(), skip_special_tokens=False)


def _symbols(lexemes: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns shapes as int64 [N, L]: equal numbers are equal symbols, and gaps equal nothing."""
    numbers: dict[str, int] = {}
    length = max(map(len, lexemes))
    out = np.broadcast_to(-1 - np.arange(length), (len(lexemes), length)).copy()
    for row, words in zip(out, lexemes, strict=True):
        for i, word in enumerate(words):
            if word != _GAP:
                symbol = _WORD if _is_word(word) else word
                row[i] = numbers.setdefault(symbol, len(numbers))
    return out


def _record(
    words: Sequence[str], start: int, period: int, length: int
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], str]:
    """Returns shape, copies and text of a record, starting after a line's end if possible.

    Returns None for words and blanks alone, which are prose.
    """
    shape = [_WORD if _is_word(word) else word for word in words[start : start + length]]
    if not any("\n" in symbol or not (symbol == _WORD or symbol.isspace()) for symbol in shape):
        return (), (), ""
    turned = [(tuple(shape[i : i + period]), i) for i in range(period)]
    lines = [turn for turn in turned if "\n" in turn[0][-1]]
    record, first = min(lines or turned)
    begins = range(start + first, start + length - period + 1, period)
    whole = [words[i : i + period] for i in begins]
    return record, tuple(tuple(filter(_is_word, copy)) for copy in whole), "".join(whole[0])


def _is_word(lexeme: str) -> bool:
    return lexeme[0] == "_" or lexeme[0].isalnum()


def _generalise(
    shape: tuple[str, ...], samples: Sequence[Sequence[tuple[str, ...]]], common: set[str]
) -> tuple[tuple[str | int, ...], tuple[Slot, ...], tuple[int, int]]:
    """Returns skeleton, slots and cast of the records of all samples with this shape."""
    columns = [
        [[copy[j] for copy in of_sample] for of_sample in samples]
        for j in range(shape.count(_WORD))
    ]
    filled: list[str | int] = []  # for each place its one word, or the slot's number
    slots: list[Slot] = []
    origin: dict[int, list[list[str]]] = {}  # slot -> its words, of those that repeat no other
    for column in columns:
        flat = [word for words in column for word in words]
        word, count = Counter(flat).most_common(1)[0]
        if shape != SPAN and count >= ALMOST_ALL * len(flat):
            filled.append(word)
            continue
        filled.append(len(slots))
        earlier = next((k for k, other in origin.items() if _agree(other, column)), None)
        if earlier is None:
            origin[len(slots)] = column
            values = _kept_blocks(column) if shape == SPAN else _kept(flat)
            slots.append(Slot(_kind(shape, flat, common), None, _distinct(column), values))
        else:
            slots.append(Slot("repeat", earlier))
    fresh = [origin[k] for k in origin if slots[k].kind in ("identifier", "number")]
    cast = [len({word for column in fresh for word in column[i]}) for i in range(len(samples))]
    places = iter(filled)
    parts: list[str | int] = []
    for symbol in shape:
        part = next(places) if symbol == _WORD else symbol
        before = parts[-1] if parts else 0
        if isinstance(part, str) and isinstance(before, str):
            parts[-1] = before + part
        else:
            parts.append(part)
    return tuple(parts), tuple(slots), _middle(cast)


def _kind(shape: tuple[str, ...], flat: Sequence[str], common: set[str]) -> str:
    if shape == SPAN:
        return "span"
    if sum(word.isdigit() for word in flat) >= ALMOST_ALL * len(flat):
        return "number"
    return "word" if 2 * sum(word in common for word in flat) >= len(flat) else "identifier"


def _kept(flat: Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(flat).items(), key=lambda item: (-item[1], item[0]))[:VALUES])


def _kept_blocks(column: Sequence[Sequence[str]]) -> dict[str, int]:
    """Returns each sample's block once, because short blocks repeat more often.

    Too many are thinned out evenly by length, which keeps the distribution of lengths.
    """
    blocks = sorted({words[0] for words in column}, key=lambda block: (len(block), block))
    places = np.linspace(0, len(blocks) - 1, min(VALUES, len(blocks))).round().astype(int)
    return {blocks[place]: 1 for place in places}


def _distinct(column: Sequence[Sequence[str]]) -> tuple[int, int]:
    return _middle([len(set(words)) for words in column])


def _agree(a: Sequence[Sequence[str]], b: Sequence[Sequence[str]]) -> bool:
    pairs = [
        (x, y) for ours, theirs in zip(a, b, strict=True) for x, y in zip(ours, theirs, strict=True)
    ]
    return sum(x == y for x, y in pairs) >= ALMOST_ALL * len(pairs)


def _middle(counts: Sequence[int]) -> tuple[int, int]:
    """Returns the range of the middle 80 %."""
    low, high = np.quantile(counts, [0.1, 0.9])
    return max(1, round(float(low))), max(1, round(float(high)))
