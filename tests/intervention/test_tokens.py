"""Which tokens are masked, against a plain sort; and what the stream then says."""

import numpy as np
import pytest

from mda.intervention.changes import mask_tokens
from mda.intervention.edit import edit
from mda.intervention.tokens import matched_tokens, random_tokens, top_tokens
from mda.types import Stream

N, T = 30, 7


def pairs(tokens):
    return list(zip(*(side.tolist() for side in tokens), strict=True))


def scores(seed=0, ties=False):
    values = np.random.default_rng(seed).normal(size=(N, T)).astype(np.float32)
    return np.round(values, 0 if ties else 6)


@pytest.mark.parametrize("size", [1, 4, 30])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("select", ["top", "bottom"])
def test_top_tokens_are_those_of_a_plain_stable_sort(size, ties, select):
    values = scores(ties=ties)
    sign = -1 if select == "bottom" else 1
    order = np.argsort(-sign * values.ravel(), kind="stable")[:19]
    parts = [values[i : i + size] for i in range(0, N, size)]
    assert pairs(top_tokens(parts, 19, None, select)) == sorted(
        (i // T, i % T) for i in order.tolist()
    )


def test_a_pool_leaves_the_other_rows_alone():
    values, pool = scores(), np.array([3, 17, 29])
    inside = np.full_like(values, -np.inf)
    inside[pool] = values[pool]
    order = np.argsort(-inside.ravel(), kind="stable")[:10]
    found = top_tokens([values[:11], values[11:]], 10, pool)
    assert pairs(found) == sorted((i // T, i % T) for i in order.tolist())


def test_random_tokens_are_seeded_distinct_and_of_the_pool():
    one, again, other = (random_tokens(N, T, 40, seed, None) for seed in (1, 1, 2))
    assert pairs(one) == pairs(again) != pairs(other)
    assert len(set(pairs(one))) == 40
    assert set(random_tokens(N, T, 14, 0, np.array([5, 2]))[0].tolist()) == {2, 5}
    counts = np.zeros((N, T))
    for seed in range(300):
        rows, positions = random_tokens(N, T, 21, seed, None)
        counts[rows, positions] += 1
    assert abs(counts / 300 - 0.1).max() < 5 * (0.1 * 0.9 / 300) ** 0.5


def test_matched_tokens_are_as_many_of_each_sample_and_none_of_the_targeted():
    targeted = top_tokens([scores()], 19)
    found = matched_tokens(targeted, T, seed=4)
    assert np.array_equal(found[0], targeted[0])
    assert not set(pairs(found)) & set(pairs(targeted))
    assert len(set(pairs(found))) == 19
    assert set(pairs(matched_tokens(targeted, T, 4, exclude=False))) & set(pairs(targeted))
    whole = (np.repeat(0, T), np.arange(T))
    with pytest.raises(ValueError, match="match_targeted=allow"):
        matched_tokens(whole, T, 0)
    assert pairs(matched_tokens(whole, T, 0, exclude=False)) == pairs(whole)


def test_what_can_not_be_chosen_is_said():
    with pytest.raises(ValueError, match="211 tokens are wanted; there are 210"):
        top_tokens([scores()], N * T + 1)
    with pytest.raises(ValueError, match="1 scores of tokens are not finite"):
        top_tokens([np.where(np.arange(N * T).reshape(N, T) == 3, np.nan, scores())], 5)
    with pytest.raises(ValueError, match="select='band'"):
        top_tokens([scores()], 5, None, "band")


def base() -> Stream:
    offsets, ids = np.array([0, 4, 8, 12]), np.array([7, 3, 9, 1, 0, 2, 11, 4, 5, 6, 8, 10])
    return Stream(100, 4, offsets, ids, np.ones(12, np.float32))


def test_masked_tokens_stand_at_their_samples_steps_and_nothing_else_changes():
    ids, steps = np.array([11, 3, 3, 5]), np.array([101, 100, 100, 102])
    changes = mask_tokens(ids, steps, np.array([0, 6, 2, 4]), 100, 103)
    assert (changes.n_samples, changes.by_token) == (3, True)
    out = edit(changes, base())
    for name in ("offsets", "sample_ids", "weights"):
        assert np.array_equal(getattr(out, name), getattr(base(), name))
    assert out.masked_at(100).tolist() == [[1, 2], [1, 6]]
    assert out.masked_at(101).tolist() == [[2, 0]]
    assert out.masked_at(102).tolist() == [[0, 4]]
    assert base().masked_at(101).tolist() == []


def test_a_token_that_is_not_there_or_listed_twice_is_refused():
    with pytest.raises(ValueError, match="position 2 of sample 3 at step 100 twice"):
        edit(mask_tokens(np.array([3, 3]), np.full(2, 100), np.array([2, 2]), 100, 103), base())
    with pytest.raises(ValueError, match="sample 3 is not in the stream's step 101"):
        edit(mask_tokens(np.array([3]), np.array([101]), np.array([2]), 100, 103), base())
    with pytest.raises(ValueError, match="names no position of sample 3"):
        edit(mask_tokens(np.array([3]), np.array([100]), np.array([-1]), 100, 103), base())
