"""Comparisons within seeds: labels permuted, intervals, and correction for many tests.

A seed fixes initial weights and data order, so the runs of one seed differ by the edit alone. Where
the edit does nothing they are exchangeable: whichever of a seed's runs is called the arm, its
difference to the others is as likely. Every p-value comes from permuting that label.

These tests are exact for the sharp null hypothesis, that the edit changes no seed's outcome beyond
the shift that is tested. Of the weaker one, that its mean effect is zero, they reject more often
than they say where effects differ between seeds and are skewed: .15 to .20 at a level of .05 and 5
to 12 seeds (tests/report/null_simulation.py).

Verdicts rest on p-values alone. Intervals are shown beside them: Student's of means over seeds. The
studies that were finished before keep the bootstrap's, with which they were published (Student's is
wider, and would move 440 of their 4,828 intervals onto or off 0). Rank correlations of the
benchmark have a bootstrap over bands of sets, which are no independent values
(`mda.analysis.truth`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np

DRAWS = 2**17  # labellings of all seeds together that are gone through; of more, so many are drawn
NO_TEST = "one seed: no test"
NO_INTERVAL = "two seeds: no interval"


@dataclass(frozen=True)
class Seed:
    """One seed of a comparison: the metric in the arm's runs and in the reference's."""

    arm: tuple[float, ...]
    reference: tuple[float, ...]

    @property
    def difference(self) -> float:
        """The mean of the arm's runs minus the mean of the reference's."""
        return float(np.mean(self.arm) - np.mean(self.reference))

    def relabelled(self, shift: float = 0.0) -> np.ndarray:
        """Returns the differences under every choice of the arm's runs, the true one first.

        Of A + B runs any A may be the arm: C(A + B, A) differences. With one run each these are
        d and -d, the sign flip. `shift` is taken from the arm's runs first: the labels are
        exchangeable where the edit's effect is exactly the shift.
        """
        values = np.array([*(np.asarray(self.arm) - shift), *self.reference])
        return _labellings(len(self.arm), len(self.reference)) @ values


@dataclass(frozen=True)
class Effect:
    """A mean paired difference. None for a number that n seeds do not allow."""

    n: int
    mean: float | None
    sd: float | None  # over seeds, n - 1 in the denominator
    low: float | None  # confidence interval of the mean
    high: float | None
    p: float | None  # two-sided
    p_less: float | None  # small where the differences are below 0
    p_greater: float | None
    note: str  # why a number is missing; else empty


def paired_effect(
    seeds: Sequence[Seed], confidence: float = 0.95, resamples: int | None = None, seed: int = 0
) -> Effect:
    """Returns the mean of the seeds' differences with an interval and label-permutation p-values.

    The interval is Student's, in the units of the differences. With `resamples` it is the
    bias-corrected and accelerated bootstrap's (Efron 1987), which is too narrow with few seeds (for
    normal differences a 95 % interval covers 85 % at n = 5, 88 % at n = 8, 92 % at n = 12). With
    one difference there is an effect but no test, with two no interval, and the note says so.
    """
    d = _finite([pair.difference for pair in seeds])
    if len(d) == 0:
        return Effect(0, None, None, None, None, None, None, None, "no pair of runs")
    mean = float(d.mean())
    if len(d) == 1:
        return Effect(1, mean, None, None, None, None, None, None, NO_TEST)
    low = high = None
    if len(d) > 2:  # two say next to nothing of their spread
        low, high = (
            student_interval(d, confidence)
            if resamples is None
            else bootstrap_interval(d, confidence, resamples, seed)
        )
    less, greater = label_p(seeds, seed=seed)
    note = "" if low is not None else NO_INTERVAL
    p = min(1.0, 2 * min(less, greater))
    return Effect(len(d), mean, float(d.std(ddof=1)), low, high, p, less, greater, note)


def label_p(
    seeds: Sequence[Seed], shift: float = 0.0, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """Returns one-sided p-values (less, greater) of the summed differences under permuted labels.

    The label "arm" is permuted among the runs of each seed, and seeds independently:
        p_greater = share of labellings whose sum of differences is at least the true one's
    Exact where there are at most `draws` labellings (for one run against R others (R + 1)^n), else
    over `draws` seeded ones with the true one counted in, which keeps the level at any number.
    H0: the arm's runs, less `shift`, are exchangeable with the reference's, however skewed the
    noise. Raises ValueError below two seeds.
    """
    if len(seeds) < 2:
        raise ValueError(f"a permutation test needs two seeds or more, not {len(seeds)}")
    options = [pair.relabelled(shift) for pair in seeds]
    for values in options:
        _finite(values)
    observed = float(sum(values[0] for values in options))
    if math.prod(len(values) for values in options) <= draws:
        sums = np.zeros(1)
        for values in options:
            sums = np.add.outer(sums, values).ravel()
        extra = 0
    else:
        rng = np.random.default_rng(seed)
        sums = np.zeros(draws)
        for values in options:
            sums += values[rng.integers(len(values), size=draws)]
        extra = 1
    slack = 1e-9 * max(1e-300, float(sum(np.abs(values).max() for values in options)))
    less, greater = (sums <= observed + slack).sum(), (sums >= observed - slack).sum()
    count = len(sums) + extra
    return float((less + extra) / count), float((greater + extra) / count)


def least_p(seeds: Sequence[Seed]) -> float:
    """Returns the smallest p-value that `label_p` can give for so many seeds and runs."""
    ways = math.prod(math.comb(len(s.arm) + len(s.reference), len(s.arm)) for s in seeds)
    return 1 / (ways if ways <= DRAWS else DRAWS + 1)


def equivalence_p(seeds: Sequence[Seed], margin: float, draws: int = DRAWS, seed: int = 0) -> float:
    """Returns the p-value of two one-sided tests that the effect is within +-margin.

    H0: |effect| >= margin (Schuirmann 1987). The larger of the p-values against effect <= -margin
    and against effect >= margin, each by `label_p` with the margin as shift.
    """
    above = label_p(seeds, -margin, draws, seed)[1]
    below = label_p(seeds, margin, draws, seed)[0]
    return max(above, below)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the BCa bootstrap interval of the mean; equal values give length 0."""
    from scipy import stats  # takes half a second, and most comparisons need none of it

    x = _finite(values)
    if np.ptp(x) <= 1e-12 * np.abs(x).max():
        return float(x.mean()), float(x.mean())
    rng = np.random.default_rng(seed)
    interval = stats.bootstrap(
        (x,), np.mean, confidence_level=confidence, n_resamples=resamples, method="BCa", rng=rng
    ).confidence_interval
    return float(interval.low), float(interval.high)


def student_interval(
    values: Sequence[float] | np.ndarray, confidence: float = 0.95
) -> tuple[float, float]:
    """Returns Student's interval of the mean of n >= 2 values.

    It is mean +- t sd / sqrt(n), with t of n - 1 degrees of freedom.
    """
    from scipy import stats

    x = _finite(values)
    tail = float(stats.t.ppf((1 + confidence) / 2, len(x) - 1))
    half = tail * float(x.std(ddof=1)) / math.sqrt(len(x))
    return float(x.mean()) - half, float(x.mean()) + half


def holm(p_values: Sequence[float | None], size: int | None = None) -> list[float | None]:
    """Applies Holm's step-down correction (Holm 1979) over a family of `size` tests.

    None means no test. Adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)), in increasing
    order of p. m is the family's size where it is given, tests that were planned and could not be
    made included, else the number of p-values.
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    m = len(tested) if size is None else size
    if m < len(tested):
        raise ValueError(f"a family of {m} tests cannot have {len(tested)} p-values")
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, (m - rank) * p))
        adjusted[i] = largest
    return adjusted


def benjamini_hochberg(p_values: Sequence[float | None], size: int) -> list[float | None]:
    """Returns p-values that bound the false discovery rate (Benjamini and Hochberg 1995).

    Adjusted p_(i) = min over j >= i of min(1, m p_(j) / j), in increasing order of p, with m =
    `size` tests, those that could not be made (None) included.
    """
    from scipy import stats

    family = [1.0 if p is None else p for p in p_values]
    family += [1.0] * (size - len(family))
    adjusted = stats.false_discovery_control(family).tolist()
    return [None if p is None else q for p, q in zip(p_values, adjusted, strict=False)]


@cache
def _labellings(a: int, b: int) -> np.ndarray:
    """Returns weights of a + b runs in mean(arm) - mean(reference), a row for each labelling."""
    rows = np.full((math.comb(a + b, a), a + b), -1 / b)
    for row, members in zip(rows, combinations(range(a + b), a), strict=True):
        row[list(members)] = 1 / a
    return rows


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if not np.isfinite(x).all():
        raise ValueError(f"values must be finite, not {x[~np.isfinite(x)][0]}")
    return x
