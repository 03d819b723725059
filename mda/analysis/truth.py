"""Agreement of scores with retraining: numbers of the benchmark, from plain arrays.

Linear datamodeling score (Park et al. 2023, arXiv 2303.14186), of a unit: sets of samples are
removed and the window is trained again without each. The prediction for a set is minus its
summed scores; the LDS is Spearman's rank correlation of the predictions with the unit's measured
metric. Sets of different sizes are never ranked together: their size alone would predict a part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from mda.unit.label_contrast import roc_auc

FEWEST = 8  # sets of a group below which a bootstrap knows next to nothing


class Correlation(NamedTuple):
    """A mean rank correlation over groups of sets, and its bootstrap interval."""

    n: int  # sets that count
    mean: float | None
    low: float | None
    high: float | None


class Group(NamedTuple):
    """Sets of one size, of one run and unit."""

    predicted: np.ndarray  # [N]; of two estimators [2, N]
    measured: np.ndarray  # [N]
    band: np.ndarray  # int [N]: sets of one band of scores share most of their samples
    left_out: int = 0  # sets without a finite outcome or prediction, which have no rank
    control: float = 0.0  # what is measured without an edit


class Fit(NamedTuple):
    """The change that was measured on the change that was predicted, mean over groups of sets."""

    slope: float | None = None
    intercept: float | None = None
    r2: float | None = None
    sign: float | None = None  # share of the sets that changed in the predicted direction


def rank_correlation(
    groups: Sequence[Group], confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Correlation:
    """Returns the mean of the groups' Spearman correlations, each over its own sets.

    The interval is the percentile bootstrap's: the bands of each group are drawn anew, all sets of
    a band together, since they are much alike. It covers other sets in these runs, not other runs.
    Groups of fewer than `FEWEST` bands are left out; where there are no others they have a mean,
    and no interval. Returns None where predictions or values of a group are all the same.
    """
    return _bootstrapped(groups, spearman, confidence, resamples, seed)


def rank_correlation_gain(
    first: Sequence[Group], other: Sequence[Group], confidence: float = 0.95,
    resamples: int = 9999, seed: int = 0,
) -> Correlation:  # fmt: skip
    """Returns one estimator's mean correlation minus another's over the same sets."""
    groups = [
        a._replace(predicted=np.stack([a.predicted, b.predicted]))
        for a, b in zip(first, other, strict=True)
    ]

    def gain(both: np.ndarray, measured: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return spearman(both[0], measured, counts) - spearman(both[1], measured, counts)

    return _bootstrapped(groups, gain, confidence, resamples, seed)


def fit(groups: Sequence[Group]) -> Fit:
    """Returns the least-squares fit of the change on the prediction, its mean over the groups.

    Within each group measured - control = intercept + slope * predicted. Scores in the outcome's
    own units have slope 1 and intercept 0 if they are right; those of other units have a slope in
    their units. Returns None without a group of two sets that differ in both.
    """
    fits = []
    for group in groups:
        x, y = group.predicted, group.measured - group.control
        if len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0:
            slope, intercept = np.polyfit(x, y, 1)
            r2, sign = np.corrcoef(x, y)[0, 1] ** 2, np.mean(np.sign(x) == np.sign(y))
            fits.append((slope, intercept, r2, sign))
    return Fit(*np.mean(fits, axis=0).tolist()) if fits else Fit()


def rerun_ceiling(
    groups: Sequence[Group], reruns: float = 1.0, confidence: float = 0.95, resamples: int = 9999,
    seed: int = 0,
) -> Correlation:  # fmt: skip
    """Returns the rank correlation that each set's expected outcome would reach.

    `predicted` of the groups is the mean outcome of so many `reruns` of each set.
    """

    def highest(again: np.ndarray, measured: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return ceiling(spearman(again, measured, counts), reruns)

    return _bootstrapped(groups, highest, confidence, resamples, seed)


def ceiling(r: np.ndarray, reruns: float = 1.0) -> np.ndarray:
    """Returns the correlation of one training with its expectation, from that with its reruns.

    r is the correlation of one training of each set with the mean of k = `reruns` others. Let R be
    the reliability, the share of the variance of one training that the set decides, and the noise
    independent. Then r^2 = R^2 k / (1 + (k - 1) R), and the ceiling is sqrt(R); for k = 1 it is
    sqrt(r). 0 where r is below 0. Exact for Pearson's r.
    """
    r, k = np.maximum(r, 0.0), reruns
    return np.sqrt(((k - 1) * r**2 + np.sqrt((k - 1) ** 2 * r**4 + 4 * k * r**2)) / (2 * k))


def _bootstrapped(
    groups: Sequence[Group],
    statistic: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    confidence: float,
    resamples: int,
    seed: int,
) -> Correlation:
    enough = [group for group in groups if len(set(group.band.tolist())) >= FEWEST]
    groups = enough or [group for group in groups if len(group.measured) > 1]
    n = sum(len(group.measured) for group in groups)
    if not groups:
        return Correlation(n, None, None, None)
    once = (np.ones(len(group.measured)) for group in groups)
    mean = np.mean(
        [statistic(g.predicted, g.measured, each) for g, each in zip(groups, once, strict=True)]
    )
    if not np.isfinite(mean):
        return Correlation(n, None, None, None)
    if not enough:
        return Correlation(n, float(mean), None, None)
    rng, total = np.random.default_rng(seed), np.zeros(resamples)
    for group in groups:
        bands, band_of = np.unique(group.band, return_inverse=True)
        drawn = rng.multinomial(len(bands), np.full(len(bands), 1 / len(bands)), size=resamples)
        total += statistic(group.predicted, group.measured, drawn[:, band_of])
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(total / len(groups), [tail, 1 - tail])
    return Correlation(n, float(mean), float(low), float(high))


def spearman(x_N: np.ndarray, y_N: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Returns Spearman's correlation of a sample that holds pair i counts[..., i] times.

    Returns NaN where one side is constant.
    """
    if counts is None:
        counts, ranks_of = np.ones(len(x_N)), rankdata  # a matrix of N^2 may not fit
    else:
        ranks_of = partial(_ranks, counts=counts)
    a, b = (np.asarray(ranks_of(values)) for values in (x_N, y_N))
    n = counts.sum(-1, keepdims=True)
    a, b = (ranks - (counts * ranks).sum(-1, keepdims=True) / n for ranks in (a, b))
    scale = np.sqrt((counts * a**2).sum(-1) * (counts * b**2).sum(-1))
    covariance = (counts * a * b).sum(-1)
    return np.divide(covariance, scale, out=np.full(scale.shape, np.nan), where=scale > 0)


def _ranks(values_N: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the rank of each value in a sample that holds it `counts` times.

    Ties share a mean.
    """
    below = values_N[:, None] < values_N
    return counts @ (below + (values_N[:, None] == values_N) / 2) + 0.5


def roc_area(scores_N: np.ndarray, is_cause_N: np.ndarray) -> float | None:
    """Returns the probability that a cause scores above another sample, ties counting half."""
    if not is_cause_N.any() or is_cause_N.all():
        return None
    return float(roc_auc(scores_N[:, None].astype(np.float64), is_cause_N)[0])


def recall_at(scores_N: np.ndarray, is_cause_N: np.ndarray, k: int) -> float | None:
    """Returns the share of causes among the k highest scores; ties go to the earlier sample."""
    if not is_cause_N.any():
        return None
    top = np.argsort(-scores_N, kind="stable")[:k]
    return float(is_cause_N[top].sum() / is_cause_N.sum())
