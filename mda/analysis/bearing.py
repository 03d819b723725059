"""Sentences on whether the unit is load-bearing: abilities with and without it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mda.analysis.arms import Run, by_arm
from mda.analysis.headline import main_arm
from mda.analysis.metrics import Measurements, control_of
from mda.schema import StudyConfig

ABLE = {
    "real_loss": "loss on real text",
    "icl_score": "ICL score on it",
    "copy_gain": "gain from few-shot copies",
    "label_margin": "margin of few-shot labels",
}
"""Numbers of the model's capabilities in the sentences, in nats."""


def bearing(measured: Measurements, study: StudyConfig) -> list[str]:
    """Returns what ablation of the strongest heads costs the control, and what edits change.

    There is one sentence for the control, and one for the removal and the augmentation by the
    estimator of the study's main arm. Returns None where no run has measured capabilities.
    """
    groups = by_arm(measured.runs)
    runs = {arm: [run for same_seed in seeds.values() for run in same_seed]
            for arm, seeds in groups.items()}  # fmt: skip
    said = [_ablation(measured, arm_runs) for arm, arm_runs in runs.items() if arm.edit.is_control]
    main = main_arm(measured, study)
    for arm, arm_runs in runs.items():
        edit, like = arm.edit, main and main.edit
        same = like is not None and (edit.by, edit.choose) == (like.by, like.choose)
        if same and not (edit.is_random or edit.is_band):
            said.append(_edit(measured, arm_runs, arm.name))
    return [sentence for sentence in said if sentence]


def _ablation(measured: Measurements, runs: Sequence[Run]) -> str:
    parts = []
    for name, words in ABLE.items():
        top = _mean(measured, runs, f"capabilities/{name}/top_heads", runs)
        others = _mean(measured, runs, f"capabilities/{name}/random_heads", runs)
        if top is not None and others is not None:
            parts.append(f"{words} {top:+.3f} ({others:+.3f})")
    if not parts:
        return ""
    return (
        "Load-bearing? Mean ablation of the control's strongest heads changes, in nats (in "
        f"brackets: of as many random heads): {', '.join(parts)}."
    )


def _edit(measured: Measurements, runs: Sequence[Run], name: str) -> str:
    controls = [control_of(run, measured.runs) for run in runs]
    parts = []
    for metric, words in {
        "unit": "unit",
        **{f"capabilities/{k}": v for k, v in ABLE.items()},
    }.items():
        mine, theirs = (_mean(measured, side, metric, runs) for side in (runs, controls))
        if mine is not None and theirs is not None:
            parts.append(f"{words} {mine - theirs:+.3f}")
    return f"Against control, {name}: {', '.join(parts)}." if len(parts) > 1 else ""


def _mean(
    measured: Measurements, runs: Sequence[Run], metric: str, targets: Sequence[Run]
) -> float | None:
    pairs = zip(runs, targets, strict=True)
    each = [measured.of(run, target).values.get(metric) for run, target in pairs]
    values = [value for value in each if value is not None]
    return float(np.mean(values)) if len(values) == len(runs) else None
