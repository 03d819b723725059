"""A check that arms without a real difference do not differ: random edits within a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mda.analysis.statistics import DRAWS, Seed, holm, label_p


@dataclass(frozen=True)
class NullCheck:
    """One replicate of a random edit against the mean of the others, over seeds."""

    replicate: int  # seed of the draw
    others: int  # replicates that it is compared with
    seeds: int
    difference: float  # mean over seeds
    p: float  # two-sided, the replicate's label permuted within each seed
    p_sign_flip: float  # two-sided, signs of the differences flipped
    p_holm: float  # p, corrected over the replicates and the checks made beside this one
    differs: bool  # p_holm <= alpha: something is wrong with this replicate, or with the test


def null_check(
    values_SR: np.ndarray,
    alpha: float = 0.05,
    replicates: Sequence[int] | None = None,
    checks: int = 1,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[NullCheck]:
    """Compares each of R >= 2 replicates with the mean of the others, in S >= 2 seeds.

    `values_SR` [S, R] is a metric of R random edits of equal size; a column is one replicate, the
    same draw in each seed. Nothing is drawn in a random order: d_s = x_sr - mean of the others,
    with its sign. Replicates do not differ by design, so any of them is said to differ with a
    probability of at most `alpha`, over all `checks` of as many replicates that are made together;
    a targeted edit smuggled in among them is found. Raises
    ValueError for fewer seeds or replicates.
    """
    values = np.asarray(values_SR, dtype=np.float64)
    if values.ndim != 2 or min(values.shape) < 2:
        raise ValueError(f"need two seeds and two random arms in each, not {values.shape}")
    names = range(values.shape[1]) if replicates is None else replicates
    tested = []
    for r in range(values.shape[1]):
        others = np.delete(values, r, axis=1)
        seeds = [Seed((x,), tuple(rest)) for x, rest in zip(values[:, r], others, strict=True)]
        signed = [Seed((pair.difference,), (0.0,)) for pair in seeds]
        mean = float(np.mean([pair.difference for pair in seeds]))
        tested.append((mean, *(_two_sided(label_p(s, 0.0, draws, seed)) for s in (seeds, signed))))
    corrected = holm([p for _, p, _ in tested], checks * len(tested))
    return [
        NullCheck(
            replicate=int(name),
            others=values.shape[1] - 1,
            seeds=len(values),
            difference=mean,
            p=p,
            p_sign_flip=flipped,
            p_holm=float(p_holm or 0.0),
            differs=p_holm is not None and p_holm <= alpha,
        )
        for name, (mean, p, flipped), p_holm in zip(names, tested, corrected, strict=True)
    ]


def _two_sided(sides: tuple[float, float]) -> float:
    return min(1.0, 2 * min(sides))
