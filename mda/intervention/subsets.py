"""Sets of samples whose removal is retrained, to compare with what scores say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mda.intervention.select import amount

AT_RANDOM = "random"


@dataclass(frozen=True)
class Subset:
    """Some samples of the window, and how they were drawn."""

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
    """`n` sets, the fractions in turn; of each fraction every second one lies within a band.

    A band is one of `n_bands` equal parts of the window by score, lowest first; `bands_of` has the
    scores [N] of each estimator, which take turns, and of each its bands do. Without any, all sets
    are drawn from the whole window. Uniform and without replacement. Set i depends on i and the
    seed, so that more sets leave the first ones as they are. Raises ValueError for a fraction that
    does not fit into a band.
    """
    found = []
    for i in range(n):
        fraction, turn = fractions[i % len(fractions)], i // len(fractions)
        pool, draw = np.arange(len(sample_ids)), AT_RANDOM
        if bands_of and turn % 2:
            name, band = _band_in_turn(turn // 2, list(bands_of), n_bands)
            ranked = np.argsort(bands_of[name], kind="stable")
            pool, draw = np.array_split(ranked, n_bands)[band], f"{name} {band + 1}/{n_bands}"
        wanted = amount(len(sample_ids), fraction)
        if wanted > len(pool):
            raise ValueError(f"a share of {fraction} does not fit into one of {n_bands} bands")
        picked = np.random.default_rng([seed, i]).choice(pool, wanted, replace=False)
        found.append(Subset(fraction, draw, sample_ids[np.sort(picked)]))
    return found


def _band_in_turn(turn: int, names: Sequence[str], n_bands: int) -> tuple[str, int]:
    """Every name with its highest band first, then with the lowest, then those between."""
    order = [n_bands - 1, *range(n_bands - 1)]
    return names[turn % len(names)], order[turn // len(names) % n_bands]
