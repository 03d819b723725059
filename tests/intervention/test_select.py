"""Selections are exact sets: checked against sorting by hand and against each other."""

import numpy as np
import pytest

from mda.intervention.select import amount, choose, loss_groups, matched_random, ranked
from mda.types import Scores

LABELS = ("code", "latex", "prose")


def make_scores(n=200, seed=0, first_step=10, per_step=4) -> Scores:
    rng = np.random.default_rng(seed)
    return Scores(
        sample_ids=rng.permutation(np.arange(1000, 1000 + n)),
        steps=first_step + np.arange(n) // per_step,
        values=rng.normal(size=(n, 2)).astype(np.float32),
        units=("L0H1", "mechanism"),
        losses=rng.gamma(2.0, size=n).astype(np.float32),
    )


def labels_for(scores: Scores) -> list[str]:
    return [LABELS[i % 3] for i in scores.sample_ids]


def ranked_ids(scores: Scores, unit: str) -> list[int]:
    pairs = zip((-scores.of(unit)).tolist(), range(len(scores.steps)), strict=True)
    return [int(scores.sample_ids[i]) for _, i in sorted(pairs)]


def test_top_and_bottom_are_the_ends_of_the_ranking():
    scores = make_scores()
    ranked = ranked_ids(scores, "L0H1")
    assert set(choose(scores, "L0H1", "top", fraction=0.1)) == set(ranked[:20])
    assert set(choose(scores, "L0H1", "bottom", count=7)) == set(ranked[-7:])
    assert set(choose(scores, "mechanism", "top", count=20)) != set(ranked[:20])


def test_samples_are_taken_from_the_highest_score_down_or_from_the_lowest_up():
    scores = make_scores()
    order = ranked_ids(scores, "L0H1")
    assert scores.sample_ids[ranked(scores, "L0H1", "top")].tolist() == order
    assert scores.sample_ids[ranked(scores, "L0H1", "bottom")].tolist() == order[::-1]


@pytest.mark.parametrize("n", [200, 203, 10, 17])
def test_deciles_partition_the_window_from_bottom_to_top(n):
    scores = make_scores(n)
    bands = [choose(scores, "L0H1", "band", lower=d / 10, upper=(d + 1) / 10) for d in range(10)]
    assert sorted(np.concatenate(bands)) == sorted(scores.sample_ids)
    value = dict(zip(scores.sample_ids.tolist(), scores.of("L0H1").tolist(), strict=True))
    means = [np.mean([value[i] for i in band]) for band in bands]
    assert means == sorted(means)


def test_the_end_deciles_are_the_top_and_the_bottom_tenth():
    scores = make_scores(200)
    top = choose(scores, "L0H1", "top", fraction=0.1)
    bottom = choose(scores, "L0H1", "bottom", fraction=0.1)
    assert np.array_equal(top, choose(scores, "L0H1", "band", lower=0.9, upper=1.0))
    assert np.array_equal(bottom, choose(scores, "L0H1", "band", lower=0.0, upper=0.1))


def test_every_selection_is_in_stream_order():
    scores = make_scores()
    place = {sample: i for i, sample in enumerate(scores.sample_ids.tolist())}
    for select in ("top", "bottom", "random"):
        chosen = choose(scores, "L0H1", select, fraction=0.3)
        assert [place[i] for i in chosen] == sorted(place[i] for i in chosen)


def test_of_equal_scores_the_earlier_sample_ranks_higher():
    scores = make_scores(8)
    scores.values[:] = 0
    scores.values[4:] = -1
    assert np.array_equal(choose(scores, "L0H1", "top", count=3), scores.sample_ids[:3])
    assert np.array_equal(choose(scores, "L0H1", "bottom", count=3), scores.sample_ids[5:])


@pytest.mark.parametrize("select", ["top", "bottom", "band"])
@pytest.mark.parametrize("value", [0.0, 2.5])
def test_equal_scores_have_no_top_and_no_bottom(select, value):
    """A unit that no gradient reaches has scores of zero: the stream's order is not a ranking."""
    scores = make_scores()
    scores.values[:, 1] = value
    amount = {"lower": 0.9, "upper": 1.0} if select == "band" else {"fraction": 0.1}
    with pytest.raises(ValueError, match=f"all 200 scores of mechanism are {value:g}"):
        choose(scores, "mechanism", select, **amount)
    assert len(choose(scores, "L0H1", select, **amount)) == 20
    assert len(choose(scores, "mechanism", "random", fraction=0.1)) == 20


def test_equal_scores_within_a_class_are_refused_there_only():
    scores = make_scores()
    labels = labels_for(scores)
    scores.values[[label == "latex" for label in labels], 0] = 0
    chosen = {"fraction": 0.1, "labels": labels}
    with pytest.raises(ValueError, match="scores of L0H1 are 0"):
        choose(scores, "L0H1", "top", label="latex", **chosen)
    assert len(choose(scores, "L0H1", "top", label="code", **chosen))
    one = make_scores(1)
    assert np.array_equal(choose(one, "L0H1", "top", count=1), one.sample_ids)


def test_random_is_seeded_and_blind_to_scores():
    scores, others = make_scores(seed=0), make_scores(seed=0)
    others.values[:] = 0
    one = choose(scores, "L0H1", "random", fraction=0.2, seed=3)
    assert np.array_equal(one, choose(others, "L0H1", "random", fraction=0.2, seed=3))
    assert not np.array_equal(one, choose(scores, "L0H1", "random", fraction=0.2, seed=4))
    assert len(one) == 40


def test_random_takes_every_sample_equally_often():
    scores = make_scores(40)
    counts = np.zeros(40)
    for seed in range(2000):
        counts += np.isin(scores.sample_ids, choose(scores, "", "random", count=10, seed=seed))
    expected, sd = 500, (2000 * 0.25 * 0.75) ** 0.5
    assert np.abs(counts - expected).max() < 4.5 * sd


def test_a_label_restricts_the_selection():
    scores = make_scores()
    names = dict(zip(scores.sample_ids.tolist(), labels_for(scores), strict=True))
    for select in ("top", "bottom", "random"):
        chosen = choose(
            scores, "L0H1", select, fraction=0.5, label="latex", labels=labels_for(scores)
        )
        assert {names[i] for i in chosen.tolist()} == {"latex"}
        assert len(chosen) == amount(list(names.values()).count("latex"), 0.5)


def test_explicit_ids_come_back_as_they_are():
    scores = make_scores()
    wanted = [int(i) for i in scores.sample_ids[[5, 60, 2]]]
    assert set(choose(scores, "", "ids", ids=wanted)) == set(wanted)


@pytest.mark.parametrize("by", ["label", "loss"])
@pytest.mark.parametrize("exclude", [True, False])
def test_a_matched_set_has_the_targeted_sets_distribution(by, exclude):
    scores = make_scores(600)
    groups = np.array(labels_for(scores)) if by == "label" else loss_groups(scores.losses)
    targeted = choose(scores, "L0H1", "top", fraction=0.1)
    drawn = matched_random(scores.sample_ids, groups, targeted, seed=1, exclude=exclude)
    of = dict(zip(scores.sample_ids.tolist(), groups.tolist(), strict=True))
    assert sorted(of[i] for i in drawn.tolist()) == sorted(of[i] for i in targeted.tolist())
    assert len(set(drawn.tolist())) == len(targeted)
    assert not exclude or not set(drawn.tolist()) & set(targeted.tolist())
    again = matched_random(scores.sample_ids, groups, targeted, seed=1, exclude=exclude)
    assert np.array_equal(drawn, again)


def test_loss_groups_are_deciles():
    losses = np.random.default_rng(0).gamma(2.0, size=1000)
    groups = loss_groups(losses)
    edges = np.quantile(losses, np.arange(1, 10) / 10)
    assert np.array_equal(groups, np.searchsorted(edges, losses))


BAD = {
    "neither amount": ({"select": "top"}, "fraction or a count"),
    "both amounts": ({"select": "top", "fraction": 0.1, "count": 3}, "fraction=0.1 and count=3"),
    "fraction above 1": ({"select": "top", "fraction": 1.5}, "fraction=1.5"),
    "fraction of nothing": ({"select": "top", "fraction": 0.0001}, "means 0 samples"),
    "count too large": ({"select": "bottom", "count": 201}, "1 to 200"),
    "count zero": ({"select": "random", "count": 0}, "means 0 samples"),
    "unknown selection": ({"select": "best", "count": 1}, "select='best'"),
    "band without edges": ({"select": "band"}, "lower=None"),
    "band turned round": ({"select": "band", "lower": 0.5, "upper": 0.2}, "lower=0.5, upper=0.2"),
    "band without samples": ({"select": "band", "lower": 0.1, "upper": 0.101}, "holds none"),
    "empty list": ({"select": "ids", "ids": []}, "is empty"),
    "listed twice": ({"select": "ids", "ids": [1001, 1001]}, "1001 is listed twice"),
    "not of the window": ({"select": "ids", "ids": [1001, 5]}, "not in the window"),
    "label without labels": ({"select": "top", "count": 1, "label": "xml"}, "no labels"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_selections_give_one_clear_error(case):
    arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        choose(make_scores(), "L0H1", **arguments)


def test_more_bad_input():
    scores = make_scores()
    with pytest.raises(ValueError, match="label 'xml'; there are code, latex, prose"):
        choose(scores, "L0H1", count=1, label="xml", labels=labels_for(scores))
    with pytest.raises(KeyError, match="L9H9"):
        choose(scores, "L9H9", count=1)
    scores.values[3, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 200 scores of L0H1 are not finite"):
        choose(scores, "L0H1", count=1)
    with pytest.raises(ValueError, match="group a has 1 samples"):
        matched_random(np.arange(5), list("aaabb"), np.array([0, 1]), seed=0)
    with pytest.raises(ValueError, match="targeted sample 9"):
        matched_random(np.arange(5), list("aaabb"), np.array([9]), seed=0)


def test_fractions_round_to_the_nearest_whole_sample():
    assert [amount(10, fraction=f) for f in (0.14, 0.16, 0.25, 1.0)] == [1, 2, 3, 10]
