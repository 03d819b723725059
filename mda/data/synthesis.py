"""Rows of tokens made from motifs, and the rows that they must be compared with.

    motif       each row is records of one motif, with names that no sample has
    shuffled    the same tokens in an order that repeats nothing
    random      rows of the corpus, drawn at random
    repetition  blocks of independently drawn tokens, repeated: nothing but repetition

All kinds give the same number of rows and tokens. Equal arguments give equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from mda.data.errors import DataError
from mda.data.motif_file import FRESH, Motif, Slot
from mda.data.packing import apportion
from mda.data.stream import Corpus
from mda.data.tokenizer import opened

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GRAM = 13  # tokens in a row that count as copied, as in Brown et al. 2020 (2005.14165), C
COPIED = 0.5  # share of a row's tokens that may be copied from held-out text
TRIES = 20  # for a row that is no such copy
BLOCK = (1 / 8, 1 / 2)  # of a row, length of the blocks of `repetition`


@dataclass(frozen=True)
class Synthetic:
    """Rows from outside the corpus, each with its label and source."""

    tokens: np.ndarray  # [rows, T + 1], in the type of the corpus
    labels: np.ndarray  # int32 [rows], index into names
    names: tuple[str, ...]
    sources: tuple[str, ...]  # for each row: motif_2, or sample 1234
    copied: np.ndarray  # float64 [rows], share of tokens that held-out text has too
    redrawn: int  # rows that were too near to held-out text


def synthesize(
    kind: str, corpus: Corpus, motifs: Sequence[Motif], n_rows: int, seed: int
) -> Synthetic:
    """Returns `n_rows` rows of a kind.

    Of `motif` and `shuffled` each motif has its share of the samples.

    Raises DataError where a motif gives nothing but copies of held-out text, and where the corpus
    has fewer rows.
    """
    rng = Random(f"{seed}:{kind if kind != 'shuffled' else 'motif'}")
    held_out = grams(corpus.rows(corpus.held_out).numpy())
    if kind == "random":
        kept = np.setdiff1d(np.arange(len(corpus.tokens)), corpus.held_out)
        if n_rows > len(kept):
            raise DataError(f"synthesis.rows={n_rows}; expected at most the corpus' {len(kept)}")
        ids = np.array(rng.sample(range(len(kept)), n_rows))
        tokens = corpus.rows(kept[ids]).numpy()
        sources = [f"sample {i}" for i in kept[ids]]
        labels, names, redrawn = np.zeros(n_rows, np.int32), ("random",), 0
    elif kind == "repetition":
        tokens = np.stack([_repeated(corpus, rng) for _ in range(n_rows)])
        labels, names, redrawn = np.zeros(n_rows, np.int32), ("repetition",), 0
        sources = ["the tokens' frequencies"] * n_rows
    else:
        tokens, labels, redrawn = _from_motifs(corpus, motifs, n_rows, held_out, rng)
        names = tuple(one.name for one in motifs)
        sources = [names[label] for label in labels]
        if kind == "shuffled":
            order = list(range(tokens.size))
            rng.shuffle(order)
            tokens = tokens.ravel()[order].reshape(tokens.shape)
            labels, names = np.zeros(n_rows, np.int32), ("shuffled",)
            sources = ["all rows of the motifs"] * n_rows
    copied = copied_share(tokens, held_out)
    typed = tokens.astype(corpus.tokens.dtype)
    return Synthetic(typed, labels, names, tuple(sources), copied, redrawn)


def records(motif: Motif, rng: Random) -> Iterator[str]:
    """Yields endless records of one made-up sample, whose names are drawn once and used again.

    A fresh value is the beginning of one of the slot's values and the end of another, so that it
    looks like them; identifiers and numbers of all slots are one cast.
    """
    n_cast = rng.randint(*motif.cast)
    named = [slot for slot in motif.slots if slot.kind in ("identifier", "number")]
    several = [slot for slot in named if slot.distinct[1] > 1]
    cast = {
        kind: [_fresh(rng.choice(slots), rng) for _ in range(n_cast)]
        for kind in ("identifier", "number")
        if (slots := [slot for slot in several if slot.kind == kind])
    }
    choices = [_choices(slot, cast, rng) for slot in motif.slots]
    origin = [n if slot.repeat_of is None else slot.repeat_of for n, slot in enumerate(motif.slots)]
    while True:
        drawn = [rng.choice(values) for values in choices]
        yield "".join(
            part if isinstance(part, str) else drawn[origin[part]] for part in motif.skeleton
        )


def grams(tokens_NS: np.ndarray) -> set[bytes]:
    """Returns all runs of `GRAM` tokens; rows shorter than that have none."""
    wide = np.ascontiguousarray(tokens_NS, dtype="<u4")
    return {row[i : i + GRAM].tobytes() for row in wide for i in range(wide.shape[1] - GRAM + 1)}


def copied_share(tokens_NS: np.ndarray, known: set[bytes]) -> np.ndarray:
    """Returns the share of each row's tokens inside a run of `GRAM` known tokens, float64 [N]."""
    wide = np.ascontiguousarray(tokens_NS, dtype="<u4")
    covered = np.zeros(wide.shape, dtype=bool)
    for row, marks in zip(wide, covered, strict=True):
        for i in range(wide.shape[1] - GRAM + 1):
            if row[i : i + GRAM].tobytes() in known:
                marks[i : i + GRAM] = True
    return covered.mean(1)


def _from_motifs(
    corpus: Corpus, motifs: Sequence[Motif], n_rows: int, held_out: set[bytes], rng: Random
) -> tuple[np.ndarray, np.ndarray, int]:
    assert corpus.tokenizer is not None
    tokenizer, length = opened(corpus.tokenizer), corpus.seq_len + 1
    shares = {f"{i:06d}": motif.samples for i, motif in enumerate(motifs)}
    rows, labels, redrawn = [], [], 0
    for index, n in enumerate(apportion(n_rows, shares).values()):
        for _ in range(n):
            for tried in range(TRIES):
                row = _row(motifs[index], tokenizer, length, rng)
                if copied_share(row[None], held_out)[0] <= COPIED:
                    break
                redrawn += 1
                if tried == TRIES - 1:
                    raise DataError(
                        f"{motifs[index].name} gives copies of held-out text only; give its slots "
                        "more values or delete it from the motif file"
                    )
            rows.append(row)
            labels.append(index)
    order = list(range(n_rows))
    rng.shuffle(order)
    return np.stack(rows)[order], np.array(labels, dtype=np.int32)[order], redrawn


def _row(motif: Motif, tokenizer: Tokenizer, length: int, rng: Random) -> np.ndarray:
    made, text = records(motif, rng), ""
    while True:
        while len(text) < 2 * length:  # a token is seldom less than two characters
            text += next(made)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) >= length:
            return np.array(ids[:length], dtype=np.int64)
        text += "".join(next(made) for _ in range(max(1, len(text) // 8)))


def _repeated(corpus: Corpus, rng: Random) -> np.ndarray:
    length = corpus.seq_len + 1
    n = rng.randint(*(max(1, round(share * length)) for share in BLOCK))
    weights = corpus.counts.copy()
    weights[list(corpus.special_ids)] = 0
    block = rng.choices(range(corpus.vocab_size), weights.tolist(), k=n)
    return np.resize(np.array(block, dtype=np.int64), length)


def _choices(slot: Slot, cast: dict[str, list[str]], rng: Random) -> list[str]:
    """Returns the values of a slot in the records of one sample; each record takes one of them."""
    if slot.kind == "word":
        words = slot.values or {}
        n = rng.randint(*slot.distinct)
        return rng.choices(list(words), list(words.values()), k=n)
    if slot.kind in cast and slot.distinct[1] > 1:
        return cast[slot.kind]
    return [_fresh(slot, rng)] if slot.kind in FRESH else [""]


def _fresh(slot: Slot, rng: Random) -> str:
    values = list(slot.values or {})
    for _ in range(TRIES):
        one, other, at = rng.choice(values), rng.choice(values), rng.random()
        new = one[: round(at * len(one))] + other[round(at * len(other)) :]
        if new and new not in (slot.values or {}):
            return new
    return rng.choice(values)
