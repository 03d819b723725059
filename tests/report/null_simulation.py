"""How often is anything found where there is nothing? Measured on runs drawn from one noise.

    python tests/report/null_simulation.py

prints four tables: the family-wise error of a study's claims when none is true, the size of
testing one arm against several random ones, that of a mean effect of 0 which differs between seeds,
and the null check without and with a smuggled arm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from mda.analysis.claims import evidence
from mda.analysis.null import null_check
from mda.analysis.statistics import Seed, holm, label_p
from mda.schema import ClaimConfig

Noise = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
MARGIN, SD, REPLICATES = 0.006, 0.006, 3  # sd of what chance alone does to the unit
DRAWS = 999  # sampled labellings, which keep the level at any number


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Noise with mean 0 and standard deviation 1."""
    return rng.standard_normal(shape)


def skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A standard log-normal, moved to mean 0 and scaled to standard deviation 1: skewness 6."""
    return (rng.lognormal(size=shape) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)


def mirrored(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """`skewed` noise with its long tail below."""
    return -skewed(rng, shape)


def null_claims() -> dict[str, ClaimConfig]:
    """Five claims of the kinds that studies have, two of them that random edits do nothing."""
    return {
        "remove": ClaimConfig("", "unit", "remove", "random", "less"),
        "augment": ClaimConfig("", "unit", "augment", "random", "greater"),
        "baseline": ClaimConfig("", "unit", "remove", "repetition", "less"),
        "random removal": ClaimConfig("", "unit", "random", "control", "none", MARGIN),
        "random augmentation": ClaimConfig("", "unit", "random", "control", "none", MARGIN),
    }


def draw_null(rng: np.random.Generator, n: int, noise: Noise) -> dict[str, list[Seed]]:
    """Runs of n seeds in which every claim of `null_claims` is false, as close as that can be.

    Targeted and baseline edits are like random ones, and random edits move the unit by exactly the
    margin. Claims share runs, as they do in a study.
    """
    found: dict[str, list[Seed]] = {name: [] for name in null_claims()}
    for _ in range(n):
        control_1 = float(SD * noise(rng, (1,))[0])
        removed = -MARGIN + SD * noise(rng, (REPLICATES + 2,))
        augmented = MARGIN + SD * noise(rng, (REPLICATES + 1,))
        random_R, more_R = tuple(removed[2:]), tuple(augmented[1:])
        found["remove"].append(Seed((removed[0],), random_R))
        found["augment"].append(Seed((augmented[0],), more_R))
        found["baseline"].append(Seed((removed[0],), (removed[1],)))
        found["random removal"].append(Seed(random_R, (control_1,)))
        found["random augmentation"].append(Seed(more_R, (control_1,)))
    return found


def family_wise_rate(n: int, noise: Noise, studies: int = 1000, seed: int = 0) -> float:
    """Share of simulated studies of n seeds that call any of five false claims supported."""
    rng, claims = np.random.default_rng(seed), null_claims()
    hits = 0
    for _ in range(studies):
        runs = draw_null(rng, n, noise)
        raw = [evidence(claim, runs[name], DRAWS, int(rng.integers(2**31)))
               for name, claim in claims.items()]  # fmt: skip
        hits += any(p is not None and p <= 0.05 for p in holm(raw, len(claims)))
    return hits / studies


def composite_rate(n: int, effects: Noise, studies: int = 4000, seed: int = 0) -> float:
    """Share of one-sided tests at .05 that say "lower" where the mean effect over seeds is 0.

    One run against one in each of n seeds, whose own effect is drawn from `effects`, beside a
    tenth as much of symmetric noise. The edit does something in every seed, so the labels are not
    exchangeable: the sharp null hypothesis is false, the composite one is true.
    """
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(studies):
        difference = -effects(rng, (n,)) + 0.1 * normal(rng, (n,))
        hits += label_p([Seed((float(d),), (0.0,)) for d in difference])[0] <= 0.05
    return hits / studies


def size_against_random(
    n: int, noise: Noise, studies: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Two-sided rejection rates at .05 of one arm like three random ones: (labels, signs).

    `labels` permutes which run is the arm; `signs` flips the sign of arm - mean of the random
    ones, which skewed noise does not allow.
    """
    rng = np.random.default_rng(seed)
    labels = signs = 0
    for _ in range(studies):
        values = noise(rng, (n, 1 + REPLICATES))
        runs = [Seed((row[0],), tuple(row[1:])) for row in values]
        flips = [Seed((one.difference,), (0.0,)) for one in runs]
        labels += 2 * min(label_p(runs, 0.0, DRAWS, int(rng.integers(2**31)))) <= 0.05
        signs += 2 * min(label_p(flips, 0.0, 2**12)) <= 0.05
    return labels / studies, signs / studies


def null_check_rate(
    n: int, noise: Noise, smuggled: float = 0.0, studies: int = 500, seed: int = 0
) -> float:
    """Share of null checks that say a replicate differs; the first is moved by `smuggled` sd."""
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(studies):
        values = noise(rng, (n, REPLICATES))
        values[:, 0] -= smuggled
        found = null_check(values, draws=DRAWS, seed=int(rng.integers(2**31)))
        hits += any(one.differs for one in found)
    return hits / studies


def tables(seeds: Sequence[int] = (5, 8, 12)) -> list[str]:
    """The four tables as Markdown."""
    lines = ["| seeds | noise | any of five false claims supported | limit |", "|---|---|---|---|"]
    noises = {"normal": normal, "skewed": skewed}
    for n in seeds:
        for name, noise in noises.items():
            rate = family_wise_rate(n, noise)
            lines.append(f"| {n} | {name} | {_rate(rate, 1000)} | .05 |")
    lines += ["", "| seeds | noise | size, labels permuted | size, signs flipped |"]
    lines += ["|---|---|---|---|"]
    for n in seeds:
        for name, noise in noises.items():
            labels, signs = size_against_random(n, noise)
            lines.append(f"| {n} | {name} | {_rate(labels, 2000)} | {_rate(signs, 2000)} |")
    lines += ["", "| seeds | effects of mean 0 | size |", "|---|---|---|"]
    for n in seeds:
        for name, effects in (noises | {"skewed the other way": mirrored}).items():
            lines.append(f"| {n} | {name} | {_rate(composite_rate(n, effects), 4000)} |")
    lines += ["", "| seeds | null check says so, nothing smuggled | one arm moved by 4 sd |"]
    lines += ["|---|---|---|"]
    for n in seeds:
        none, some = (null_check_rate(n, skewed, moved) for moved in (0.0, 4.0))
        lines.append(f"| {n} | {_rate(none, 500)} | {_rate(some, 500)} |")
    return lines


def _rate(rate: float, n: int) -> str:
    low, high = stats.binomtest(round(rate * n), n).proportion_ci()
    return f"{rate:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    print("\n".join(tables()))
