"""Sets of samples whose removal is retrained, for comparison with their summed scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mda.intervention.select import amount

AT_RANDOM = "random"


@dataclass(frozen=True)
class Subset:
    """Some samples of the window, and the way they were drawn."""

    fraction: float  # of the window
    draw: str  # `random`, or the estimator and the band of its scores: `ekfac 3/3` is the highest
    sample_ids: np.ndarray  # int64 [n], in stream order


def draw_subsets(
    sample_ids: np.ndarray,
    n: int,
    fractions: Sequence[float],
    bands_of: Mapping[str, np.ndarray],
    n_bands: int,
    seed: int,
) -> list[Subset]:
    """Draws `n` sets, cycling through the fractions; every second set is drawn within a band.

    A band is one of `n_bands` equal parts of the window by score, lowest first; `bands_of` has the
    scores [N] of each estimator, which take turns, as do the bands of each. Without any, all sets
    are drawn from the whole window. Draws are uniform and without replacement. Set i depends only
    on i and the seed, so a larger `n` keeps the first sets. Raises ValueError for a fraction that
    does not fit into a band.
    """
    subsets = []
    for i in range(n):
        fraction, turn = fractions[i % len(fractions)], i // len(fractions)
        pool, draw = np.arange(len(sample_ids)), AT_RANDOM
        if bands_of and turn % 2:
            name, band = _band_in_turn(turn // 2, list(bands_of), n_bands)
            ranked = np.argsort(bands_of[name], kind="stable")
            pool, draw = np.array_split(ranked, n_bands)[band], f"{name} {band + 1}/{n_bands}"
        size = amount(len(sample_ids), fraction)
        if size > len(pool):
            raise ValueError(f"a share of {fraction} does not fit into one of {n_bands} bands")
        picked = np.random.default_rng([seed, i]).choice(pool, size, replace=False)
        subsets.append(Subset(fraction, draw, sample_ids[np.sort(picked)]))
    return subsets


def _band_in_turn(turn: int, names: Sequence[str], n_bands: int) -> tuple[str, int]:
    """Yields every name with its highest band, then with the lowest, then those between."""
    order = [n_bands - 1, *range(n_bands - 1)]
    return names[turn % len(names)], order[turn // len(names) % n_bands]
