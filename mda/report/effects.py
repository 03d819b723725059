"""Effects: each arm against control and against random edits of equal size, paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mda.report.arms import CONTROL, Arm, Run, by_arm
from mda.report.metrics import (
    REFERENCES,
    Measured,
    Measurements,
    metrics_of,
    references_of,
)
from mda.report.statistics import Effect, holm, paired_effect


@dataclass(frozen=True)
class Comparison:
    """One arm against one reference on one metric, paired by seed."""

    arm: Arm
    reference: str
    metric: str
    seeds: tuple[int, ...]
    arm_mean: float | None
    arm_sd: float | None
    reference_mean: float | None
    differences: tuple[float, ...]
    effect: Effect
    censored: int
    p_holm: float | None = None
    family: int = 0  # tests that the correction is over


def compare_arms(
    measured: Measurements,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> list[Comparison]:
    """Every arm but control against control, against random edits and against matched ones.

    Random arms are compared with control only, and references that were not run are left out.
    Several runs of one arm and seed are averaged first, so each seed counts once. p_holm corrects
    the two-sided p within a family: the arms compared with one reference on one metric, score
    bands (the dose-response) apart from the rest.
    """
    rows = []
    for arm, seeds in by_arm(measured.runs).items():
        if arm.intervention == CONTROL:
            continue
        for reference in REFERENCES[: 1 if arm.is_random else None]:
            if not any(
                references_of(run, measured.runs, reference)
                for runs in seeds.values()
                for run in runs
            ):
                continue
            for metric in metrics_of(measured):
                row = pair(measured, arm, seeds, reference, metric)
                effect = paired_effect(row.differences, confidence, resamples, seed)
                rows.append(replace(row, effect=effect))
    return _corrected(rows)


def pair(
    measured: Measurements,
    arm: Arm,
    seeds: Mapping[int, Sequence[Run]],
    reference: str,
    metric: str,
) -> Comparison:
    """The paired differences of one arm, before any test."""
    used, ours, theirs, censored = [], [], [], 0
    for seed, runs in sorted(seeds.items()):
        mine = [measured.of(run, run) for run in runs]
        others = [
            measured.of(other, run)
            for run in runs
            for other in references_of(run, measured.runs, reference)
        ]
        a, b = _mean(mine, metric), _mean(others, metric)
        if a is None or b is None:
            continue
        used.append(seed)
        ours.append(a)
        theirs.append(b)
        censored += sum(metric in one.censored for one in mine)
    return Comparison(
        arm=arm,
        reference=reference,
        metric=metric,
        seeds=tuple(used),
        arm_mean=float(np.mean(ours)) if ours else None,
        arm_sd=float(np.std(ours, ddof=1)) if len(ours) > 1 else None,
        reference_mean=float(np.mean(theirs)) if theirs else None,
        differences=tuple(float(a - b) for a, b in zip(ours, theirs, strict=True)),
        effect=paired_effect([]),
        censored=censored,
    )


def _mean(measured: Sequence[Measured], metric: str) -> float | None:
    values = [value for one in measured if (value := one.values.get(metric)) is not None]
    return float(np.mean(values)) if values else None


def _corrected(rows: list[Comparison]) -> list[Comparison]:
    families: dict[tuple, list[int]] = {}
    for i, row in enumerate(rows):
        families.setdefault((row.reference, row.metric, row.arm.is_band), []).append(i)
    out = list(rows)
    for members in families.values():
        adjusted = holm([rows[i].effect.p for i in members])
        size = sum(p is not None for p in adjusted)
        for i, p in zip(members, adjusted, strict=True):
            out[i] = replace(rows[i], p_holm=p, family=size)
    return out
