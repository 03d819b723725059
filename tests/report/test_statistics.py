"""Every statistic against a truth of another origin: closed forms, scipy's other functions, and
simulations of the null."""

from itertools import combinations, product

import numpy as np
import pytest
from null_simulation import (
    composite_rate,
    family_wise_rate,
    mirrored,
    normal,
    null_check_rate,
    size_against_random,
    skewed,
)
from scipy import stats

from mda.analysis.enrichment import heavy_tail, label_enrichment
from mda.analysis.null import null_check
from mda.analysis.statistics import (
    NO_INTERVAL,
    NO_TEST,
    Seed,
    benjamini_hochberg,
    bootstrap_interval,
    equivalence_p,
    holm,
    label_p,
    least_p,
    paired_effect,
)

SIDES = ("two-sided", "less", "greater")


def pairs(differences) -> list[Seed]:
    """One run against one in each seed."""
    return [Seed((d,), (0.0,)) for d in differences]


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 2)])
def test_the_smallest_p_is_that_of_runs_that_all_agree(shape):
    arm, reference = shape
    for n in (2, 4):
        agreeing = [Seed((9.0,) * arm, (0.0,) * reference)] * n
        assert label_p(agreeing)[1] == pytest.approx(least_p(agreeing))
    assert least_p(pairs([1.0] * 40)) == pytest.approx(label_p(pairs([1.0] * 40))[1])


def sign_flip_p(differences, alternative="two-sided") -> float:
    less, greater = label_p(pairs(differences))
    return {"less": less, "greater": greater, "two-sided": min(1, 2 * min(less, greater))}[
        alternative
    ]


@pytest.mark.parametrize("n", [2, 5, 8])
def test_differences_of_one_sign_give_the_smallest_p(n):
    d = np.random.default_rng(n).uniform(0.5, 2, n)
    assert sign_flip_p(d, "greater") == pytest.approx(2.0**-n)
    assert sign_flip_p(-d, "less") == pytest.approx(2.0**-n)
    assert sign_flip_p(d, "two-sided") == pytest.approx(2.0 ** (1 - n))
    assert sign_flip_p(d, "less") == 1


@pytest.mark.parametrize("side", SIDES)
def test_sign_flip_of_signed_ranks_is_wilcoxons_test(side):
    rng = np.random.default_rng(0)
    for n in (5, 7, 10):
        d = rng.permutation(np.arange(1.0, n + 1)) * rng.choice([-1, 1], n)
        expected = stats.wilcoxon(d, alternative=side, method="exact").pvalue  # pyright: ignore
        assert sign_flip_p(d, side) == pytest.approx(expected)


def test_sign_flip_by_counting_sign_patterns():
    d = np.array([0.3, -0.1, 0.25, 0.7])
    means = [np.dot(d, signs) / 4 for signs in product([-1, 1], repeat=4)]
    expected = np.mean([m >= d.mean() - 1e-12 for m in means])
    assert sign_flip_p(d, "greater") == pytest.approx(expected)


def test_many_differences_are_sampled_close_to_the_normal_approximation():
    d = np.random.default_rng(1).normal(0.3, 1, 40)
    z = d.sum() / np.sqrt((d**2).sum())
    assert sign_flip_p(d, "greater") == pytest.approx(stats.norm.sf(z), rel=0.15)
    assert sign_flip_p(d, "greater") == sign_flip_p(d, "greater")


def test_sign_flip_keeps_its_level_under_the_null():
    rng = np.random.default_rng(0)
    hits = sum(sign_flip_p(rng.standard_t(3, 8)) <= 0.05 for _ in range(600))
    attainable = 6 / 128  # two-sided p-values of 8 pairs are multiples of 1/128
    assert stats.binomtest(hits, 600, attainable).pvalue > 0.001


def test_the_interval_is_near_students_where_that_holds():
    x = np.random.default_rng(0).normal(2, 3, 400)
    low, high = bootstrap_interval(x)
    student = stats.t.interval(0.95, 399, x.mean(), stats.sem(x))
    assert (low, high) == pytest.approx(student, abs=0.04)
    assert bootstrap_interval(x) == (low, high)


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for i in range(300):
        low, high = bootstrap_interval(rng.exponential(size=40), 0.9, 499, seed=i)
        inside += low <= 1 <= high
    assert 0.84 < inside / 300 < 0.94


def test_the_interval_is_skewed_like_the_data():
    x = np.random.default_rng(3).exponential(size=30)
    low, high = bootstrap_interval(x)
    assert high - x.mean() > x.mean() - low
    means = np.random.default_rng(4).choice(x, (20_000, 30)).mean(1)
    percentile = np.quantile(means, [0.025, 0.975])
    assert low > percentile[0] + 0.01 and high > percentile[1] + 0.01  # BCa corrects the skew


def test_equal_differences_give_a_point():
    effect = paired_effect(pairs([0.1, 0.1, 0.1]), resamples=99)
    assert effect.low == effect.high == pytest.approx(0.1) and effect.sd == pytest.approx(0)
    assert paired_effect(pairs([0.0, 0.0])).p == 1


def test_one_seed_is_no_test_and_says_so():
    effect = paired_effect(pairs([0.25]))
    assert effect.mean == 0.25 and effect.note == NO_TEST
    assert effect.p is effect.p_less is effect.low is effect.sd is None
    assert paired_effect(pairs([])).note == "no pair of runs"


def test_two_seeds_are_a_test_without_an_interval():
    effect = paired_effect(pairs([0.25, 0.3]))
    assert effect.p_greater == 0.25 and effect.note == NO_INTERVAL
    assert effect.low is effect.high is None


def test_paired_effect_puts_the_parts_together():
    d = [-0.05, -0.02, 0.01, -0.04, -0.03]
    effect = paired_effect(pairs(d))
    assert effect.mean == pytest.approx(np.mean(d)) and effect.sd == pytest.approx(stats.tstd(d))
    assert effect.n == 5 and effect.p_less == sign_flip_p(d, "less")
    assert effect.low is not None and effect.high is not None and effect.mean is not None
    assert effect.low < effect.mean < effect.high


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="not nan"):
        paired_effect(pairs([0.1, float("nan")]))
    with pytest.raises(ValueError, match="two seeds or more, not 1"):
        sign_flip_p([0.1])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == [] and holm([None, 0.2, None]) == [None, 0.2, None]


def test_holm_is_the_closure_of_bonferroni():
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.uniform(size=4) ** 2
        closed = [
            max(
                min(1.0, size * min(p[list(subset)]))
                for size in range(1, 5)
                for subset in combinations(range(4), size)
                if i in subset
            )
            for i in range(4)
        ]
        assert holm(p.tolist()) == pytest.approx(closed)


def test_holm_keeps_the_familywise_rate():
    rng = np.random.default_rng(0)
    hits = sum(min(holm(rng.uniform(size=10).tolist())) <= 0.05 for _ in range(4000))  # pyright: ignore
    assert stats.binomtest(hits, 4000, 1 - 0.995**10).pvalue > 0.001


def test_enrichment_is_the_permutation_test():
    labels = np.array(["latex"] * 30 + ["code"] * 70)
    chosen = np.r_[0:8, 40:52]
    row = next(r for r in label_enrichment(labels.tolist(), chosen) if r.label == "latex")
    assert (row.chosen, row.share_chosen, row.share_all) == (8, 0.4, 0.3)
    assert row.ratio == pytest.approx(4 / 3)
    rng = np.random.default_rng(0)
    counts = [(rng.permutation(labels)[chosen] == "latex").sum() for _ in range(20_000)]
    assert row.p_enriched == pytest.approx(np.mean(np.array(counts) >= 8), abs=0.01)
    assert row.p_depleted == pytest.approx(np.mean(np.array(counts) <= 8), abs=0.01)


def test_enrichment_is_fishers_exact_test():
    labels = ["a"] * 12 + ["b"] * 28
    row = next(r for r in label_enrichment(labels, np.arange(4, 16)) if r.label == "a")
    table = [[8, 4], [4, 24]]
    assert row.p_enriched == pytest.approx(stats.fisher_exact(table, alternative="greater").pvalue)  # pyright: ignore


def test_enrichment_lists_the_most_enriched_first_and_absent_labels_too():
    rows = label_enrichment(["a", "b", "b", "c"], np.array([0, 1]))
    assert [r.label for r in rows] == ["a", "b", "c"]
    assert rows[-1].chosen == 0 and rows[-1].p_enriched == 1


def test_heavy_tail_of_known_distributions():
    x = np.array([0.0, 0.1, 0.25, 0.5, 1.0])
    assert heavy_tail(np.full(100, 3.0), x) == pytest.approx(x)
    exponential = -np.log((np.arange(100_000) + 0.5) / 100_000)
    closed = np.array([q * (1 - np.log(q)) if q else 0.0 for q in x])
    assert heavy_tail(exponential, x) == pytest.approx(closed, abs=1e-3)


def test_negative_scores_carry_no_positive_influence():
    scores = np.array([-5.0, 1.0, 3.0, -1.0])
    assert heavy_tail(scores, [0.25, 0.5, 1.0]) == pytest.approx([0.75, 1.0, 1.0])
    with pytest.raises(ValueError, match="no score is positive"):
        heavy_tail(-np.abs(scores), [0.5])


def test_one_arm_among_random_ones_by_counting_labels():
    rng = np.random.default_rng(5)
    values = rng.exponential(size=(3, 4))
    runs = [Seed((row[0],), tuple(row[1:])) for row in values]
    observed = np.mean([row[0] - row[1:].mean() for row in values])
    sums = [
        np.mean([row[k] - np.delete(row, k).mean() for row, k in zip(values, ks, strict=True)])
        for ks in product(range(4), repeat=3)
    ]
    less, greater = label_p(runs)
    assert greater == pytest.approx(np.mean([s >= observed - 1e-12 for s in sums]))
    assert less == pytest.approx(np.mean([s <= observed + 1e-12 for s in sums]))


def test_the_lowest_of_four_in_every_seed_gives_the_smallest_p():
    runs = [Seed((-1.0,), (0.0, 0.1, 0.2))] * 5
    assert label_p(runs)[0] == pytest.approx(4.0**-5)


def test_several_runs_of_an_arm_are_labelled_together():
    # Of four runs any three may be the arm: the lowest three give the smallest of four sums.
    runs = [Seed((0.0, 0.1, 0.2), (1.0,))] * 4
    assert label_p(runs)[0] == pytest.approx(4.0**-4)


def test_sampled_labels_are_close_to_all_labels():
    rng = np.random.default_rng(2)
    runs = [Seed((x[0] + 0.6,), tuple(x[1:])) for x in rng.normal(size=(8, 4))]
    exact, sampled = label_p(runs)[1], label_p([*runs, Seed((0.0,), (0.0,) * 3)])[1]
    assert 4**8 <= 2**17 < 4**9  # the ninth seed adds nothing to any sum, but is too many
    assert sampled == pytest.approx(exact, abs=0.005)


def test_the_shift_is_the_effect_that_is_tested():
    runs = [Seed((1.0 + e,), (0.0,)) for e in (0.01, -0.02, 0.03, -0.01, 0.02)]
    assert label_p(runs, 1.0)[1] > 0.2 and label_p(runs, 0.9)[1] == 1 / 32
    assert label_p(runs, 1.1)[0] == 1 / 32


def test_equivalence_is_two_one_sided_tests():
    near = pairs([0.01, -0.01, 0.005, -0.004, 0.008])
    assert equivalence_p(near, 0.05) == 1 / 32
    assert equivalence_p(near, 0.001) > 0.2
    d = np.array([0.03, -0.01, 0.012, 0.02, -0.015])
    expected = max(sign_flip_p(d + 0.02, "greater"), sign_flip_p(d - 0.02, "less"))
    assert equivalence_p(pairs(d), 0.02) == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "noise"),
    [
        (5, skewed),
        (8, skewed),
        *(pytest.param(*case, marks=pytest.mark.long)
          for case in ((5, normal), (8, normal), (12, normal), (12, skewed))),
    ],
)  # fmt: skip
def test_false_claims_are_supported_less_often_than_the_level(n, noise):
    rate = family_wise_rate(n, noise, studies=1000)
    assert rate < 0.05
    assert n == 5 or rate > 0  # the simulation can find something


def test_the_level_is_that_of_the_sharp_null_alone():
    """Effects of mean 0 that differ between seeds: with a skew the test says more than it knows."""
    symmetric, long_tail, other = (
        composite_rate(8, effects, studies=3000) for effects in (normal, skewed, mirrored)
    )
    assert stats.binomtest(round(symmetric * 3000), 3000, 0.05).pvalue > 0.001
    assert 0.1 < max(long_tail, other) < 0.22 and min(long_tail, other) < 0.05


def test_the_false_discovery_rate_is_scipys():
    rng = np.random.default_rng(0)
    for p in rng.uniform(size=(20, 7)) ** 2:
        ours = benjamini_hochberg(p.tolist(), 7)
        assert ours == pytest.approx(stats.false_discovery_control(p))
    assert benjamini_hochberg([0.01, None, 0.04], 3) == pytest.approx([0.03, None, 0.06])


def test_the_interval_of_a_mean_is_students_unless_the_bootstrap_is_asked_for():
    d = [-0.05, -0.02, 0.01, -0.04, -0.03, 0.02]
    wanted = stats.ttest_1samp(d, 0).confidence_interval(0.9)
    found = paired_effect(pairs(d), 0.9)
    assert (found.low, found.high) == pytest.approx(tuple(wanted))
    again = paired_effect(pairs(d), 0.9, 999)
    assert (again.low, again.high) == bootstrap_interval(d, 0.9, 999)


def test_skewed_noise_does_not_make_an_arm_differ_from_random_ones():
    labels, signs = size_against_random(8, skewed, studies=1500)
    assert stats.binomtest(round(labels * 1500), 1500, 0.05).pvalue > 0.001 or labels < 0.05
    assert stats.binomtest(round(signs * 1500), 1500, 0.05, "greater").pvalue < 0.001


@pytest.mark.parametrize("n", [5, 8, 12])
def test_the_null_check_is_quiet_among_random_arms_and_finds_a_smuggled_one(n):
    quiet = null_check_rate(n, skewed, studies=300)
    assert stats.binomtest(round(quiet * 300), 300, 0.05, "greater").pvalue > 0.01
    assert null_check_rate(n, skewed, smuggled=6, studies=50) > 0.95


def test_a_shifted_replicate_is_named():
    values = np.random.default_rng(0).normal(size=(8, 3))
    values[:, 1] += 100
    found = null_check(values, replicates=(4, 5, 6))
    assert next(one.replicate for one in found if one.differs) == 5
    assert found[1].p < 0.001 and found[1].p_sign_flip == 2 / 2**8
    assert found[1].difference == pytest.approx(100, abs=2)


def test_the_null_check_needs_two_seeds_and_two_replicates():
    with pytest.raises(ValueError, match="two seeds and two random arms"):
        null_check(np.zeros((4, 1)))


def test_holm_over_a_family_larger_than_its_tests():
    assert holm([0.01, None, 0.02], 5) == pytest.approx([0.05, None, 0.08])
    with pytest.raises(ValueError, match="a family of 1 tests cannot have 2"):
        holm([0.1, 0.2], 1)


@pytest.mark.parametrize("scale", [0.1, 0.7, 1e-8, 1e9])
def test_labellings_that_tie_are_counted_whatever_rounding_makes_of_their_sums(scale):
    """Sums of small whole numbers tie exactly; scaled, they tie but for the last bits."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.integers(-3, 4, (6, 3))
        whole = [Seed((float(a),), (float(b), float(c))) for a, b, c in values]
        scaled = [Seed((scale * a,), (scale * b, scale * c)) for a, b, c in values]
        assert label_p(scaled, 0.0) == label_p(whole, 0.0)
