"""BM25 of the probe's tokens in each sample: the lexical baseline that influence must beat.

The query is the tokens of the unit's measurement, the documents are the window's samples, and a
sample's score is the mean over the probe's M sequences of

    sum over their tokens q of  idf(q) f (k1 + 1) / (f + k1 (1 - b + b |D| / mean |D|))

with f the number of times that q occurs in the sample, |D| its tokens, and idf(q) = ln(1 + (N - n +
1/2) / (n + 1/2)) for a token that n of the N samples have (Robertson and Zaragoza 2009, The
Probabilistic Relevance Framework; the 1 keeps common tokens positive). Special tokens do not count.
Samples are packed to one length, so b matters only where special tokens fill a part of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mda.data.stream import Corpus
from mda.estimator.estimator import TokenScorer, Work
from mda.estimator.lexical import ROWS, Lexical
from mda.estimator.score import batches
from mda.schema import Bm25Config


class Bm25(Lexical):
    """BM25 of the measurement's tokens."""

    bar = "BM25"

    def __init__(self, settings: Bm25Config) -> None:
        self.settings = settings

    def target_influence(self, work: Work) -> TokenScorer:
        """Returns scores of single losses: position t has the part of token t + 1."""
        index, rows = Index.of(work.corpus, work.sample_ids), work.corpus.rows
        query, n_vocab = (
            np.concatenate([np.asarray(sequence) for sequence in work.query]),
            index.idf_V.size,
        )
        counts_V = np.bincount(query, minlength=n_vocab) / len(work.query)
        weights_V = counts_V * index.idf_V
        k1, b = self.settings.k1, self.settings.b
        return lambda ids: torch.from_numpy(index.terms(rows(ids).numpy(), weights_V, k1, b))


@dataclass(frozen=True)
class Index:
    """The statistics of all documents that BM25 needs."""

    idf_V: np.ndarray  # 0 for special tokens
    counted_V: np.ndarray  # bool, tokens that are not special
    mean_length: float

    @classmethod
    def of(cls, corpus: Corpus, sample_ids: np.ndarray) -> Index:
        """Returns the index of these samples' predicted tokens."""
        counted_V = np.ones(corpus.vocab_size, dtype=bool)
        counted_V[list(corpus.special_ids)] = False
        having_V, n_tokens = np.zeros(corpus.vocab_size, dtype=np.int64), 0
        for ids in batches(sample_ids, ROWS):
            tokens_BT = corpus.rows(ids).numpy()[:, 1:]
            distinct, _ = _occurrences(tokens_BT, corpus.vocab_size)
            having_V += np.bincount(distinct, minlength=corpus.vocab_size)
            n_tokens += int(counted_V[tokens_BT].sum())
        idf_V = np.log1p((len(sample_ids) - having_V + 0.5) / (having_V + 0.5))
        return cls(idf_V * counted_V, counted_V, max(n_tokens, 1) / max(len(sample_ids), 1))

    def terms(self, rows_BS: np.ndarray, weights_V: np.ndarray, k1: float, b: float) -> np.ndarray:
        """Returns each predicted token's part of its document's score, [B, T], which sum to it.

        `weights_V` is how often the query has a token, times its idf.
        """
        tokens_BT = rows_BS[:, 1:]
        _, times_BT = _occurrences(tokens_BT, len(weights_V))
        length_B1 = self.counted_V[tokens_BT].sum(1, keepdims=True)
        norm_B1 = k1 * (1 - b + b * length_B1 / self.mean_length)
        return weights_V[tokens_BT] * (k1 + 1) / (times_BT + norm_B1)


def _occurrences(tokens_BT: np.ndarray, n_vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct tokens of each row in turn, and their counts in the row, [B, T]."""
    keys = tokens_BT.astype(np.int64) + n_vocab * np.arange(len(tokens_BT))[:, None]
    distinct, place, times = np.unique(keys, return_inverse=True, return_counts=True)
    return distinct % n_vocab, times[place].reshape(tokens_BT.shape)
