"""Sets that are drawn to be removed: of the whole window, and within bands of scores."""

import numpy as np
import pytest

from mda.intervention.subsets import AT_RANDOM, draw_subsets

IDS = np.random.default_rng(0).permutation(1000)[:120]
SCORES = {"a": np.arange(120.0), "b": -(np.arange(120.0) ** 2)}


def drawn(n=16, fractions=(0.05, 0.3), bands_of=SCORES, seed=0):
    return draw_subsets(IDS, n, fractions, bands_of, 3, seed)


def test_shares_take_turns_and_samples_are_those_of_the_window_once_each_in_stream_order():
    for i, one in enumerate(drawn()):
        assert one.fraction == (0.05, 0.3)[i % 2]
        assert len(one.sample_ids) == (6, 36)[i % 2]
        places = [IDS.tolist().index(sample) for sample in one.sample_ids]
        assert places == sorted(set(places))


def test_every_second_set_of_a_share_lies_within_a_band_and_the_bands_take_turns():
    of_one_share = drawn()[::2]
    draws = [one.draw for one in of_one_share]
    assert draws[0::2] == [AT_RANDOM] * 4
    assert draws[1::2] == ["a 3/3", "b 3/3", "a 1/3", "b 1/3"]
    for one in of_one_share[1::2]:
        name, band = one.draw.split()
        ranks = np.argsort(np.argsort(SCORES[name]))[np.isin(IDS, one.sample_ids)]
        third = int(band[0]) - 1
        assert ranks.min() >= 40 * third and ranks.max() < 40 * (third + 1)


def test_more_sets_leave_the_first_ones_as_they_are_and_another_seed_does_not():
    for a, b in zip(drawn(4), drawn(16), strict=False):
        assert a.draw == b.draw and np.array_equal(a.sample_ids, b.sample_ids)
    assert not np.array_equal(drawn(1)[0].sample_ids, drawn(1, seed=1)[0].sample_ids)
    assert len({tuple(one.sample_ids) for one in drawn()}) == 16


def test_without_bands_all_are_drawn_from_the_whole_window():
    assert {one.draw for one in drawn(bands_of={})} == {AT_RANDOM}
    counts = np.zeros(120)
    for one in drawn(400, bands_of={}):
        counts[np.isin(IDS, one.sample_ids)] += 1
    assert counts.min() > 40 and counts.max() < 105  # 70 expected, standard deviation below 8


def test_a_share_that_no_band_holds_is_refused():
    with pytest.raises(ValueError, match=r"0\.4 does not fit into one of 3 bands"):
        drawn(fractions=(0.4,))
