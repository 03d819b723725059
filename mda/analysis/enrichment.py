"""Labels in a chosen set of samples, and the influence of the top samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Enrichment:
    """The frequency of one label in a chosen set, against the whole window."""

    label: str
    chosen: int
    share_chosen: float
    share_all: float
    ratio: float
    p_enriched: float
    p_depleted: float


def label_enrichment(labels: Sequence[str], chosen: np.ndarray) -> list[Enrichment]:
    """Returns each label's share among the chosen samples, most enriched first.

    `labels` are those of all N samples and `chosen` [n] the positions of the set. The p-values
    are those of permuting the labels over the samples, all N! of them at once: the label's count
    in a fixed set is then hypergeometric. One-sided and not corrected for the number of labels.
    """
    from scipy import stats  # takes half a second

    names, picked = np.asarray(labels), np.unique(chosen)
    rows = []
    for label in np.unique(names):
        total = int((names == label).sum())
        hits = int((names[picked] == label).sum())
        null = stats.hypergeom(len(names), total, len(picked))
        share, overall = hits / len(picked), total / len(names)
        rows.append(
            Enrichment(
                label=str(label),
                chosen=hits,
                share_chosen=share,
                share_all=overall,
                ratio=share / overall,
                p_enriched=float(min(1.0, null.sf(hits - 1))),
                p_depleted=float(null.cdf(hits)),
            )
        )
    return sorted(rows, key=lambda row: -row.ratio)


def heavy_tail(scores: np.ndarray, shares: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns the cumulative share of positive influence of the top samples, for each share.

    F(x) = sum of the top x N positive scores / sum of all positive scores; samples with scores
    below 0 carry none. Between whole samples it is linear. Raises ValueError where no score is
    positive.
    """
    positive = np.sort(np.maximum(np.asarray(scores, dtype=np.float64), 0))[::-1]
    if not positive.sum() > 0:
        raise ValueError("no score is positive, so there is no cumulative influence to share")
    mass = np.concatenate([[0.0], np.cumsum(positive)]) / positive.sum()
    return np.interp(np.asarray(shares) * len(positive), np.arange(len(mass)), mass)
