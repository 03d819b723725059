"""Effects: each arm against control, random edits and the trivial baseline, within seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mda.analysis.arms import Arm, Run, arm_as, by_arm
from mda.analysis.metrics import (
    MATCHED,
    Measured,
    Measurements,
    metrics_of,
    references_of,
)
from mda.analysis.statistics import Effect, Seed, holm, least_p, paired_effect
from mda.schema import REFERENCES, StudyConfig
from mda.schema.old_words import DATED, LATER_METRICS


@dataclass(frozen=True)
class Comparison:
    """One arm against one reference on one metric, within seeds."""

    arm: Arm
    reference: str
    metric: str
    seeds: tuple[int, ...]
    labelled: tuple[Seed, ...]  # values of the arm's runs and of the reference's, of each seed
    arm_mean: float | None
    arm_sd: float | None
    reference_mean: float | None
    effect: Effect
    censored: int  # runs of the arm
    reference_censored: int  # runs of the reference
    dropped: tuple[str, ...] = ()  # seeds of the arm that are not compared, and why
    p_holm: float | None = None
    family: int = 0  # tests that the correction is over; 0 for an arm that no study lists

    @property
    def differences(self) -> tuple[float, ...]:
        """The mean of the arm's runs minus the mean of the reference's, for each seed."""
        return tuple(seed.difference for seed in self.labelled)

    @property
    def at_least_p(self) -> bool:
        """True if p is the smallest that so many runs allow, whatever they show."""
        p = self.effect.p
        return p is not None and p <= min(1.0, 2 * least_p(self.labelled)) * (1 + 1e-9)


def compare_arms(
    measured: Measurements,
    study: StudyConfig,
    confidence: float = 0.95,
    resamples: int | None = 9999,
    seed: int = 0,
) -> list[Comparison]:
    """Compares every arm but control with each of `REFERENCES` that was run with it.

    Random arms are compared with control only. p_holm corrects the two-sided p within a family:
    the arms that the study lists for one reference on one metric, score bands (the dose-response)
    apart from the rest. Its size is the study's, whatever was run; an arm that the study does not
    list is explored, and has no corrected p.
    """
    rows = []
    old = study.hash in DATED
    resamples = resamples if old else None
    metrics = [name for name in metrics_of(measured) if not (old and name in LATER_METRICS)]
    for arm, seeds in by_arm(measured.runs).items():
        if arm.edit.is_control:
            continue
        for reference in REFERENCES:
            if not applies(arm, reference):
                continue
            every = [run for runs in seeds.values() for run in runs]
            if not any(references_of(run, measured.runs, reference) for run in every):
                continue
            for metric in metrics:
                row = pair(measured, arm, seeds, reference, metric)
                effect = paired_effect(row.labelled, confidence, resamples, seed)
                rows.append(replace(row, effect=effect))
    return _corrected(rows, study)


def applies(arm: Arm, reference: str) -> bool:
    """Returns whether the comparison of the arm with the reference is meaningful."""
    if arm.edit.is_control:
        return False
    return reference == "control" or not (arm.edit.is_random or arm.edit.source == reference)


def pair(
    measured: Measurements,
    arm: Arm,
    seeds: Mapping[int, Sequence[Run]],
    reference: str | Arm,
    metric: str,
) -> Comparison:
    """Returns the values of one arm and its reference in each seed, before any test."""
    named = reference.name if isinstance(reference, Arm) else reference
    kind = "" if isinstance(reference, Arm) else " of this kind and size"
    used: dict[int, Seed] = {}
    dropped, censored, reference_censored = [], 0, 0
    for seed, runs in sorted(seeds.items()):
        mine = [measured.of(run, run) for run in runs]
        others = {
            str(other.folder): measured.of(other, run)
            for run in runs
            for other in references_of(run, measured.runs, reference)
        }
        a, b = _values(mine, metric), _values(list(others.values()), metric)
        if a and b:
            used[seed] = Seed(a, b)
            censored += sum(metric in of_run.censored for of_run in mine)
            reference_censored += sum(metric in of_run.censored for of_run in others.values())
        elif not others:
            dropped.append(f"seed {seed}: no {named} run{kind}")
        else:
            whose = "the arm" if not a else named
            dropped.append(f"seed {seed}: {metric} is missing in {whose}")
    means = np.array([[np.mean(pair.arm), np.mean(pair.reference)] for pair in used.values()])
    return Comparison(
        arm=arm,
        reference=named,
        metric=metric,
        seeds=tuple(used),
        labelled=tuple(used.values()),
        arm_mean=float(means[:, 0].mean()) if used else None,
        arm_sd=float(means[:, 0].std(ddof=1)) if len(used) > 1 else None,
        reference_mean=float(means[:, 1].mean()) if used else None,
        effect=paired_effect([]),
        censored=censored,
        reference_censored=reference_censored,
        dropped=tuple(dropped),
    )


def family_of(study: StudyConfig, reference: str, band: bool) -> list[Arm]:
    """Returns the arms of a study that are corrected together against one reference."""
    arms = [arm_as(study.arm(name)) for name in study.arms]
    matched = {  # sets that some matched arm of the study was matched to
        replace(edit, match=None)
        for edit in (arm.edit for arm in arms)
        if reference in MATCHED and edit.match and edit.match.targeted == MATCHED[reference]
    }
    return [
        arm
        for arm in arms
        if applies(arm, reference)
        and arm.edit.is_band == band
        and (reference not in MATCHED or arm.edit in matched)
    ]


def told(dropped: Sequence[str]) -> str:
    """Returns what was left out, by reason: "icl_score is missing in the arm (seeds 1, 4)"."""
    reasons: dict[str, list[str]] = {}
    for text in dropped:
        seed, _, why = text.partition(": ")
        reasons.setdefault(why, []).append(seed.removeprefix("seed "))
    return "; ".join(
        f"{why} (seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)})"
        for why, seeds in reasons.items()
    )


def _values(measured: Sequence[Measured], metric: str) -> tuple[float, ...]:
    values = [of_run.values.get(metric) for of_run in measured]
    return tuple(value for value in values if value is not None)


def _corrected(rows: list[Comparison], study: StudyConfig) -> list[Comparison]:
    families: dict[tuple, list[int]] = {}
    for i, row in enumerate(rows):
        families.setdefault((row.reference, row.metric, row.arm.edit.is_band), []).append(i)
    out = list(rows)
    for (reference, _, band), members in families.items():
        family = family_of(study, reference, band)
        listed = _listed(rows, members, family)
        adjusted = holm([rows[i].effect.p for i in listed], len(family))
        for i, p in zip(listed, adjusted, strict=True):
            out[i] = replace(rows[i], p_holm=p, family=len(family))
    return out


def _listed(rows: Sequence[Comparison], members: Sequence[int], family: Sequence[Arm]) -> list[int]:
    # Of several arms that fit one of the study's, none is it: they are explored.
    fits = [[i for i in members if rows[i].arm.fits(arm)] for arm in family]
    return sorted({fitting[0] for fitting in fits if len(fitting) == 1})
