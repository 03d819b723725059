"""How well scores predict what retraining does: numbers of the benchmark, from plain arrays.

Linear datamodeling score (Park et al. 2023, arXiv 2303.14186), of a unit: sets of samples are
removed and the window is trained again without each. The prediction for a set is minus its
summed scores; the LDS is Spearman's rank correlation of the predictions with the unit's measured
metric. Sets of different sizes are never ranked together: their size alone would predict a part.
"""

from __future__ import annotations

from collections.abc import Sequence
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


Group = tuple[np.ndarray, np.ndarray]
"""Predictions and measured values of sets of one size, of one run and unit."""


def rank_correlation(
    groups: Sequence[Group], confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Correlation:
    """Mean of the groups' Spearman correlations, each over its own sets.

    The interval is the percentile bootstrap's: the sets of each group are drawn anew. It speaks of
    other sets in these runs, not of other runs. Groups of fewer than `FEWEST` sets are left out;
    where there are no others they have a mean, and no interval. None where predictions or values
    of a group are all the same.
    """
    return _bootstrapped(groups, spearman, confidence, resamples, seed)


def rank_correlation_gain(
    one: Sequence[Group], other: Sequence[Group], confidence: float = 0.95,
    resamples: int = 9999, seed: int = 0,
) -> Correlation:  # fmt: skip
    """Mean correlation of one estimator minus that of another over the very same sets."""
    groups = [(np.stack([a, b]), y) for (a, y), (b, _) in zip(one, other, strict=True)]

    def gain(both: np.ndarray, measured: np.ndarray) -> np.ndarray:
        return spearman(both[0], measured) - spearman(both[1], measured)

    return _bootstrapped(groups, gain, confidence, resamples, seed)


def _bootstrapped(groups, statistic, confidence: float, resamples: int, seed: int) -> Correlation:
    enough = [group for group in groups if len(group[1]) >= FEWEST]
    groups = enough or [group for group in groups if len(group[1]) > 1]
    n = sum(len(measured) for _, measured in groups)
    if not groups:
        return Correlation(n, None, None, None)
    mean = np.mean([statistic(predicted, measured) for predicted, measured in groups])
    if not np.isfinite(mean):
        return Correlation(n, None, None, None)
    if not enough:
        return Correlation(n, float(mean), None, None)
    rng, total = np.random.default_rng(seed), np.zeros(resamples)
    for predicted, measured in groups:
        drawn = rng.integers(len(measured), size=(resamples, len(measured)))
        total += statistic(predicted[..., drawn], measured[drawn])
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(total / len(groups), [tail, 1 - tail])
    return Correlation(n, float(mean), float(low), float(high))


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's correlation along the last axis; NaN where one side is constant."""
    a, b = (rankdata(values, axis=-1) for values in (x, y))
    a, b = (ranks - ranks.mean(-1, keepdims=True) for ranks in (a, b))
    scale = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return np.divide((a * b).sum(-1), scale, out=np.full(scale.shape, np.nan), where=scale > 0)


def roc_area(scores_N: np.ndarray, is_cause_N: np.ndarray) -> float | None:
    """Probability that a cause scores above another sample, ties counting half; None without."""
    if not is_cause_N.any() or is_cause_N.all():
        return None
    return float(roc_auc(scores_N[:, None].astype(np.float64), is_cause_N)[0])


def recall_at(scores_N: np.ndarray, is_cause_N: np.ndarray, k: int) -> float | None:
    """Share of the causes among the k highest scores; ties go to the earlier sample."""
    if not is_cause_N.any():
        return None
    top = np.argsort(-scores_N, kind="stable")[:k]
    return float(is_cause_N[top].sum() / is_cause_N.sum())
