"""Overlap of a sample's n-grams with the probe's: the baseline that a search for copies would give.

With G the n-grams of the probe's sequences, the score of a sample x of T + 1 tokens is

    |{t : (x[t-n+1], .., x[t]) in G}| / |{t}|,    t from max(n - 1, 1) to T,

the share of its n-grams that the probe has, from 0 to 1. It is the n-gram precision of BLEU
without clipping (Papineni et al. 2002, P02-1040) and the overlap by which training data are checked
for test sets (Brown et al. 2020, arXiv 2005.14165). An n-gram with a special token does not count,
on either side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mda.estimator.estimator import TokenScorer, Work
from mda.estimator.lexical import Lexical
from mda.schema import NgramConfig

NONE = -1  # in place of a token that does not count, or of an n-gram that is not there
LAST = np.iinfo(np.int64).max  # ends every table, so that each has an entry


class Ngram(Lexical):
    """The share of a sample's n-grams that the probe has."""

    bar = "n-grams"

    def __init__(self, settings: NgramConfig) -> None:
        self.settings = settings

    def target_influence(self, work: Work) -> TokenScorer:
        """Returns parts of single losses: position t has that of the n-gram ending at t + 1."""
        special, rows = work.corpus.special_ids, work.corpus.rows
        sequences = (np.asarray(sequence) for sequence in work.query)
        ngrams = Ngrams.of(sequences, self.settings.n, work.corpus.vocab_size, special)
        return lambda ids: torch.from_numpy(ngrams.shares(rows(ids).numpy()))


@dataclass(frozen=True)
class Ngrams:
    """The n-grams of some sequences: `tables[k - 1]` are the sorted codes of their k-grams.

    The code of a k-gram is V times the place of its first k - 1 tokens in the table before, plus
    its last token: exact for any n.
    """

    tables: Sequence[np.ndarray]
    n_vocab: int
    special_ids: Sequence[int]

    @classmethod
    def of(
        cls, sequences: Iterable[np.ndarray], n: int, n_vocab: int, special_ids: Sequence[int]
    ) -> Ngrams:
        """Returns the n-grams of sequences of any lengths."""
        ends = [np.append(sequence, NONE) for sequence in sequences]  # none goes over an end
        tokens_1S = _counted(np.concatenate(ends)[None], special_ids)
        tables: list[np.ndarray] = []
        places_1S = np.zeros_like(tokens_1S)
        for _ in range(n):
            codes_1S = _codes(places_1S, tokens_1S, n_vocab)
            tables.append(np.append(np.unique(codes_1S[codes_1S >= 0]), LAST))
            places_1S = _after(_find(tables[-1], codes_1S))
        return cls(tables, n_vocab, special_ids)

    def shares(self, rows_BS: np.ndarray) -> np.ndarray:
        """Returns each predicted token's part of its row's score, [B, T], float64."""
        tokens_BS = _counted(rows_BS, self.special_ids)
        places_BS, counted_BS = np.zeros_like(tokens_BS), np.ones(tokens_BS.shape, dtype=bool)
        found_BS, whole_BS = places_BS, counted_BS
        for table in self.tables:
            found_BS = _find(table, _codes(places_BS, tokens_BS, self.n_vocab))
            whole_BS = counted_BS & (tokens_BS >= 0)
            places_BS, counted_BS = _after(found_BS), _after(whole_BS, False)
        n_B1 = whole_BS[:, 1:].sum(1, keepdims=True)
        return (found_BS >= 0)[:, 1:] / np.maximum(n_B1, 1)


def _counted(tokens_BS: np.ndarray, special_ids: Sequence[int]) -> np.ndarray:
    """Returns the tokens, int64, with NONE in place of special ones."""
    return np.where(np.isin(tokens_BS, list(special_ids)), NONE, tokens_BS.astype(np.int64))


def _codes(places_BS: np.ndarray, tokens_BS: np.ndarray, n_vocab: int) -> np.ndarray:
    """Returns the codes of the k-grams that end at each token, with places of what is before."""
    there = (places_BS >= 0) & (tokens_BS >= 0)
    return np.where(there, places_BS * n_vocab + tokens_BS, NONE)


def _find(table: np.ndarray, codes_BS: np.ndarray) -> np.ndarray:
    """Returns the place of each code in a table, NONE where it is not in it."""
    at = np.searchsorted(table, codes_BS)
    return np.where(table[at] == codes_BS, at, NONE)


def _after(values_BS: np.ndarray, first: int | bool = NONE) -> np.ndarray:
    """Returns what stood at the token before, `first` at the first one."""
    return np.concatenate((np.full_like(values_BS[:, :1], first), values_BS[:, :-1]), 1)
