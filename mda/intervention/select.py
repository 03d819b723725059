"""The samples of a window that an intervention edits: pure functions of the scores.

Every selection returns sample ids, int64, in stream order, so that two selections of the same
samples are the same array. Of samples with equal scores, the earlier one in the stream ranks
higher.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from mda.types import Scores

SELECTIONS = ("top", "bottom", "band", "random", "ids")


def amount(
    n: int, fraction: float | None = None, count: int | None = None, of: str = "samples"
) -> int:
    """Returns the number of samples that `fraction` or `count` means, of `n`; one is given.

    `of` names the counted things in errors. A fraction is rounded to the nearest whole number,
    halves up. Raises ValueError for an amount below one sample or above n.
    """
    if (fraction is None) == (count is None):
        raise ValueError(f"give a fraction or a count, not fraction={fraction} and count={count}")
    if fraction is not None and not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction} is outside (0, 1]")
    number = int(fraction * n + 0.5) if fraction is not None else int(count or 0)
    if not 1 <= number <= n:
        given = f"fraction={fraction}" if fraction is not None else f"count={count}"
        raise ValueError(f"{given} means {number} {of}; 1 to {n} can be edited")
    return number


def choose(
    scores: Scores,
    unit: str,
    select: str = "top",
    *,
    fraction: float | None = None,
    count: int | None = None,
    lower: float | None = None,
    upper: float | None = None,
    label: str | None = None,
    labels: Sequence[str] | None = None,
    ids: Sequence[int] = (),
    seed: int = 0,
) -> np.ndarray:
    """Returns the ids of the samples to edit, int64 [n], in stream order.

    `select` is `top` or `bottom` (highest or lowest scores), `band` (samples whose rank, lowest
    score first, lies between the quantiles `lower` and `upper`: 0 and .1 are the bottom decile),
    `random` (seeded, without looking at scores) or `ids` (the list as given). `fraction` or `count`
    gives the number for `top`, `bottom` and `random`; the other two imply it. A `label` restricts
    every selection but `ids` to that class, `labels` being the class of each scored sample; a
    fraction is then one of the class. Raises ValueError for an amount that cannot be met, and for
    scores that have no ranking: not finite, or all equal, as for a unit without gradient.
    """
    if select not in SELECTIONS:
        raise ValueError(f"select={select!r} is unknown; choose one of {', '.join(SELECTIONS)}")
    if select == "ids":
        return _listed(scores, ids)
    pool = _within(scores, label, labels)
    if select == "random":
        size = amount(len(pool), fraction, count)
        picked = np.random.default_rng(seed).choice(pool, size, replace=False)
        return scores.sample_ids[np.sort(picked)]
    ranked = pool[_descending(scores.of(unit)[pool], unit, select)]
    if select == "band":
        first, last = _band(len(pool), lower, upper)
        picked = ranked[::-1][first:last]
    else:
        size = amount(len(pool), fraction, count)
        picked = ranked[:size] if select == "top" else ranked[len(ranked) - size :]
    return scores.sample_ids[np.sort(picked)]


def ranked(
    scores: Scores,
    unit: str,
    select: str = "top",
    *,
    label: str | None = None,
    labels: Sequence[str] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Returns positions of the samples in the order in which `select` takes them, int64.

    `top` and `bottom` begin with the highest and the lowest score, `random` (seeded) ignores them.
    A `label` restricts them as in `choose`.
    """
    pool = _within(scores, label, labels)
    if select == "random":
        return np.random.default_rng(seed).permutation(pool)
    if select not in ("top", "bottom"):
        raise ValueError(f"select={select!r} is unknown here; choose one of top, bottom, random")
    order = pool[_descending(scores.of(unit)[pool], unit, select)]
    return order if select == "top" else order[::-1]


def loss_groups(losses: np.ndarray, groups: int = 10) -> np.ndarray:
    """Returns the loss decile (or another quantile) of each sample, int64 [N], lowest losses 0.

    Groups differ in size by at most one sample; ties go by stream order.
    """
    rank = np.empty(len(losses), dtype=np.int64)
    rank[np.argsort(losses, kind="stable")] = np.arange(len(losses))
    return rank * groups // max(len(losses), 1)


def matched_random(
    sample_ids: np.ndarray,
    groups: Sequence[Hashable] | np.ndarray,
    targeted: np.ndarray,
    seed: int,
    exclude: bool = True,
) -> np.ndarray:
    """Returns a random set with as many samples of each group as the targeted set.

    `sample_ids` [N] are the window's samples and `groups` [N] the class label or `loss_groups` of
    each. With `exclude`, no targeted sample is drawn, so the set has only the group's other, lower
    scoring members; without it, all members are equally likely, targeted ones included. Returns
    int64 [len(targeted)] in stream order. Raises ValueError where a group is too small or a
    targeted sample is not in the window.
    """
    if missing := set(targeted.tolist()) - set(sample_ids.tolist()):
        raise ValueError(f"targeted sample {min(missing)} is not among the {len(sample_ids)} given")
    names = np.asarray(groups)
    is_target = np.isin(sample_ids, targeted)
    rng = np.random.default_rng(seed)
    picked = []
    for name in np.unique(names):
        member = names == name
        n_targeted = int((member & is_target).sum())
        pool = np.flatnonzero(member & ~is_target if exclude else member)
        if n_targeted > len(pool):
            raise ValueError(
                f"group {name!s} has {len(pool)} samples besides the targeted ones; matching needs "
                f"{n_targeted}. Edit a smaller fraction, or allow targeted samples "
                "(intervention.match_targeted=allow)"
            )
        picked.append(rng.choice(pool, n_targeted, replace=False))
    return sample_ids[np.sort(np.concatenate(picked))]


def _within(scores: Scores, label: str | None, labels: Sequence[str] | None) -> np.ndarray:
    if label is None:
        return np.arange(len(scores.sample_ids))
    if labels is None:
        raise ValueError(f"label={label!r} was asked for, but the corpus has no labels")
    names = np.asarray(labels)
    pool = np.flatnonzero(names == label)
    if not len(pool):
        there = ", ".join(sorted(set(names.tolist())))
        raise ValueError(f"no sample of the window has the label {label!r}; there are {there}")
    return pool


def _descending(values: np.ndarray, unit: str, select: str) -> np.ndarray:
    if len(values) > 1 and values.min() == values.max():
        raise ValueError(
            f"all {len(values)} scores of {unit} are {values[0]:g}: there is no {select} of them; "
            "expected scores that differ, or select=random"
        )
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ValueError(f"{bad} of {len(values)} scores of {unit} are not finite")
    return np.argsort(-values, kind="stable")


def _band(n: int, lower: float | None, upper: float | None) -> tuple[int, int]:
    if lower is None or upper is None or not 0 <= lower < upper <= 1:
        raise ValueError(f"a band needs 0 <= lower < upper <= 1, not lower={lower}, upper={upper}")
    first, last = int(lower * n + 0.5), int(upper * n + 0.5)
    if first == last:
        raise ValueError(f"the band [{lower}, {upper}) holds none of {n} samples")
    return first, last


def _listed(scores: Scores, ids: Sequence[int]) -> np.ndarray:
    requested = np.asarray(ids, dtype=np.int64)
    if not len(requested):
        raise ValueError("select='ids' needs a list of sample ids; it is empty")
    if len(np.unique(requested)) < len(requested):
        values, counts = np.unique(requested, return_counts=True)
        raise ValueError(f"sample {values[counts > 1][0]} is listed twice")
    if missing := set(requested.tolist()) - set(scores.sample_ids.tolist()):
        raise ValueError(
            f"{len(missing)} listed samples, the first {min(missing)}, are not in the window"
        )
    return scores.sample_ids[np.isin(scores.sample_ids, requested)]
