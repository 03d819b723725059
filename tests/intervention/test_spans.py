"""Repeated spans against plain loops, and what the two edits of them keep and destroy."""

from collections import Counter

import numpy as np
import pytest

from mda.intervention.changes import rewritten, spans
from mda.intervention.edit import edit
from mda.intervention.spans import fresh, renamed, repeated, within_budget
from mda.types import Stream

V = 60


def row_with(*copies: tuple[int, int, int], size=40, seed=0) -> np.ndarray:
    """Distinct tokens, but that `length` of them from `source` stand at `target` again."""
    row = np.random.default_rng(seed).permutation(V)[:size]
    for source, target, length in copies:
        row[target : target + length] = row[source : source + length]
    return row


def grams(row, n):
    return Counter(tuple(row[i : i + n].tolist()) for i in range(len(row) - n + 1))


def plain_repeated(row, n):
    counts = grams(row, n)
    marked = np.zeros(len(row), dtype=bool)
    for i in range(len(row) - n + 1):
        if counts[tuple(row[i : i + n].tolist())] > 1:
            marked[i : i + n] = True
    return marked


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("kinds", [2, 6, 50])
def test_repeated_tokens_are_those_of_plain_loops(n, kinds):
    for seed in range(20):
        row = np.random.default_rng(seed).integers(kinds, size=45)
        assert np.array_equal(repeated(row, n), plain_repeated(row, n))
    assert not repeated(np.arange(2), 3).any()


def test_planted_spans_are_found_at_both_places():
    marked = np.flatnonzero(repeated(row_with((2, 20, 5), (10, 33, 3)), 3)).tolist()
    assert marked == [*range(2, 7), *range(10, 13), *range(20, 25), *range(33, 36)]
    assert not repeated(row_with((2, 20, 2)), 3).any()  # shorter than the n-gram


UNIFORM = np.full(V, 1 / V)


@pytest.mark.parametrize("seed", range(10))
def test_fresh_tokens_leave_no_repetition_and_the_others_as_they_were(seed):
    row = row_with((2, 20, 5), (10, 33, 3), seed=seed)
    marked = repeated(row, 3)
    new = fresh(row, marked, UNIFORM, 3, np.random.default_rng(seed))
    assert not repeated(new, 3).any()
    assert np.array_equal(new[~marked], row[~marked])
    assert (new[marked] != row[marked]).mean() > 0.8


def test_fresh_tokens_do_not_repeat_where_few_kinds_make_that_likely():
    row = np.tile(np.arange(5), 8)
    few = np.zeros(V)
    few[:5] = 0.2
    new = fresh(row, repeated(row, 3), few, 3, np.random.default_rng(0))
    assert max(grams(new, 3).values()) == 1 and set(new) <= set(range(5))
    two = np.where(np.arange(V) < 2, 0.5, 0)  # 8 triples of 2 kinds can't fill 38 places
    with pytest.raises(ValueError, match="40 tokens of a sample can't be drawn from 2 kinds"):
        fresh(row, repeated(row, 3), two, 3, np.random.default_rng(0))


@pytest.mark.parametrize("seed", range(10))
def test_renamed_tokens_repeat_in_the_same_places_as_often(seed):
    row = row_with((2, 20, 5), (10, 33, 3), (4, 28, 4), seed=seed)
    marked = repeated(row, 3)
    new = renamed(row, marked, UNIFORM, 3, np.random.default_rng(seed))
    assert np.array_equal(repeated(new, 3), marked)
    assert sorted(grams(new, 3).values()) == sorted(grams(row, 3).values())
    assert np.array_equal(new[~marked], row[~marked])
    assert (new[marked] != row[marked]).mean() > 0.8
    same = row[marked][:, None] == row[marked]  # which tokens are equal is as it was
    assert np.array_equal(new[marked][:, None] == new[marked], same)


def test_fresh_tokens_have_the_unigram_statistics_they_are_drawn_from():
    p = np.arange(1.0, V + 1) / np.arange(1.0, V + 1).sum()
    row = row_with((2, 20, 5), (10, 33, 3))
    marked, counts, n = repeated(row, 3), np.zeros(V), 2000
    for seed in range(n):
        new = fresh(row, marked, p, 3, np.random.default_rng(seed))
        counts += np.bincount(new[marked], minlength=V)
    drawn = n * int(marked.sum())
    z = (counts - drawn * p) / np.sqrt(drawn * p * (1 - p))
    assert abs(z).max() < 4.5 and (z**2).mean() == pytest.approx(1, abs=0.6)


def test_a_budget_takes_samples_as_long_as_they_fit():
    rows = [row_with((2, 20, 5)), row_with(), row_with((0, 9, 4)), row_with((1, 20, 9))]
    assert [int(m.sum()) for m in within_budget(iter(rows), 3, 18)] == [10, 0, 8]
    assert [int(m.sum()) for m in within_budget(iter(rows), 3, 35)] == [10, 0, 8]
    assert [int(m.sum()) for m in within_budget(iter(rows), 3, 36)] == [10, 0, 8, 18]
    special = rows[0][20]
    assert int(within_budget(rows[:1], 3, 8, [special])[0].sum()) == 8
    with pytest.raises(ValueError, match="37 tokens are to be replaced; the samples repeat 36"):
        within_budget(iter(rows), 3, 37)
    with pytest.raises(ValueError, match="9 tokens are too few"):
        within_budget(iter(rows), 3, 9)


def test_rewritten_rows_stand_in_their_samples_places():
    corpus = np.arange(60).reshape(12, 5)
    ids, offsets = np.array([7, 3, 9, 1, 0, 2]), np.array([0, 3, 6])
    base = Stream(100, 3, offsets, ids, np.ones(6, np.float32))
    changes = spans(
        np.array([9, 9, 2]), np.array([100, 100, 101]), np.array([0, 4, 1]),
        np.array([81, 82, 83]), 100, 102, first_id=12,
    )  # fmt: skip
    extra = rewritten(changes, lambda wanted: corpus[wanted])
    assert extra.tolist() == [[81, 46, 47, 48, 82], [10, 83, 12, 13, 14]]
    out = edit(changes, base)
    assert out.sample_ids.tolist() == [7, 3, 12, 1, 0, 13]
    assert np.array_equal(out.weights, base.weights) and changes.n_samples == 2
