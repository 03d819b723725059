"""Repeated spans of a sample and their replacements.

A token is repeated if it is part of an n-gram that the sample contains more than once, the first
occurrence included; a span is a run of such tokens. Two edits of the same tokens separate the
effect of the samples from that of their repetitions:

fresh      every repeated token becomes a draw of its own: nothing repeats any more
renamed    every repeated token becomes another one, the same everywhere: the sample
           repeats itself exactly as often and in the same places, with other words

Both draw from one distribution, that of the tokens that are replaced in all samples together, so
that the edited stream has each token about as often as before. `renamed` draws without repetition
in a sample, so that different tokens stay different, and frequent ones get a little rarer.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from mda.intervention.choice import Choice
from mda.schema import RemoveConfig
from mda.types import Changes

TRIES = 1000  # draws before a sample is given up
SPANS = 2  # the number of these draws; random scores of tokens have 1, of samples none


def replacement(config: RemoveConfig, choice: Choice) -> Changes:
    """Plans `intervention.mode=spans`: repeated spans of the first samples by score.

    It edits up to the settings' amount of tokens. Except for the distribution of the replaced
    tokens, which the new ones are drawn from, a sample's new tokens depend only on the seed and its
    id: `SPANS` keeps them independent of a random score.
    """
    scores, corpus, order = choice.scores, choice.corpus, choice.order()
    choice.fetch(scores.sample_ids)
    rows = (corpus.rows(scores.sample_ids[[at]])[0].numpy() for at in order)
    chosen = within_budget(rows, config.ngram, choice.n_tokens, corpus.special_ids)
    marks = {at: marked for at, marked in zip(order, chosen, strict=False) if marked.any()}
    places = np.array(sorted(marks))
    marked, ids = np.stack([marks[at] for at in places]), scores.sample_ids[places]
    old = corpus.rows(ids).numpy()
    counts = np.bincount(old[marked], minlength=corpus.vocab_size)
    draw, seed = {"fresh": fresh, "renamed": renamed}[config.spans], choice.seed(SPANS)
    new = np.stack([
        draw(row, mark, counts / counts.sum(), config.ngram, _generator(seed, sample))
        for row, mark, sample in zip(old, marked, ids, strict=True)
    ])  # fmt: skip
    at, positions = np.nonzero(marked)
    return choice.rewritten(ids[at], positions, new[at, positions])


def _generator(seed: int, sample_id: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, int(sample_id)]))


def repeated(tokens_S: np.ndarray, n: int) -> np.ndarray:
    """Returns the tokens of a row that are in an n-gram repeated in it, as a mask, bool [S]."""
    if len(tokens_S) < n:
        return np.zeros(len(tokens_S), dtype=bool)
    grams = sliding_window_view(np.asarray(tokens_S), n)
    _, which, counts = np.unique(grams, axis=0, return_inverse=True, return_counts=True)
    return _covered(counts[which.reshape(-1)] > 1, n)


def fresh(
    tokens_S: np.ndarray,
    replaced_S: np.ndarray,
    probabilities_V: np.ndarray,
    n: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Returns the row with independent draws at the marked places, [S]: no n-gram there repeats.

    Draws that create a repetition are drawn again. Raises ValueError after too many attempts.
    """
    row, again = np.array(tokens_S), np.array(replaced_S)
    for _ in range(TRIES):
        row[again] = rng.choice(len(probabilities_V), int(again.sum()), p=probabilities_V)
        again = repeated(row, n) & replaced_S
        if not again.any():
            return row
    raise ValueError(_hopeless(replaced_S, probabilities_V, n))


def renamed(
    tokens_S: np.ndarray,
    replaced_S: np.ndarray,
    probabilities_V: np.ndarray,
    n: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Returns the row with its marked tokens renamed, [S]; equal n-grams stay equal.

    Different tokens get different names. Names that create a new repetition are drawn again. Raises
    ValueError after too many attempts.
    """
    names = np.unique(tokens_S[replaced_S])
    before = repeated(tokens_S, n)
    for _ in range(TRIES):
        row, new = np.array(tokens_S), np.arange(len(probabilities_V))
        new[names] = rng.choice(len(new), len(names), replace=False, p=probabilities_V)
        row[replaced_S] = new[tokens_S[replaced_S]]
        if np.array_equal(repeated(row, n), before):
            return row
    raise ValueError(_hopeless(replaced_S, probabilities_V, n))


def within_budget(
    samples: Iterable[np.ndarray], n: int, budget: int, kept: Iterable[int] = ()
) -> list[np.ndarray]:
    """Returns the repeated tokens of the first samples with at most `budget` of them in total.

    `kept` are tokens that are not edited, such as the ends of documents. The samples are read up to
    the first that does not fit. Raises ValueError where none of them has a repeated token within
    the budget, or all together have fewer than the budget.
    """
    chosen, total, keep = [], 0, np.fromiter(kept, np.int64)
    for tokens_S in samples:
        marked = repeated(tokens_S, n) & ~np.isin(tokens_S, keep)
        if total + marked.sum() > budget:
            break
        chosen.append(marked)
        total += int(marked.sum())
    else:
        if total < budget:
            raise ValueError(f"{budget} tokens are to be replaced; the samples repeat {total}")
    if not total:
        raise ValueError(f"{budget} tokens are too few: the first sample that repeats has more")
    return chosen


def _covered(starts: np.ndarray, n: int) -> np.ndarray:
    """Returns the tokens that are covered by the n-grams which begin at the marked places."""
    covered = np.zeros(len(starts) + n - 1, dtype=bool)
    for shift in range(n):
        covered[shift : shift + len(starts)] |= starts
    return covered


def _hopeless(replaced_S: np.ndarray, probabilities_V: np.ndarray, n: int) -> str:
    kinds = int((probabilities_V > 0).sum())
    return (
        f"{int(replaced_S.sum())} tokens of a sample can't be drawn from {kinds} kinds of tokens "
        f"without other repetitions of {n} tokens; expected a larger intervention.ngram"
    )
