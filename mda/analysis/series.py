"""Curves averaged over seeds, and layer x head differences, for figures and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mda.analysis.arms import Arm, Run, by_arm
from mda.analysis.metrics import Measurements, control_of
from mda.schema.metrics import HEAD_METRICS

CURVES = {
    "unit": "{score}{unit}",
    "strongest": "{score}, strongest head",
    "copy_gain": "gain on the second copy (nats)",
    "icl_score": "in-context-learning score (nats)",
    "val/loss": "held-out loss (nats)",
}
"""Curves that are drawn, and their axis."""

OTHER_SCORES = {"label_auc": "ROC AUC for the label", "ablation": "cost of ablation (nats)"}
"""What metrics of neurons, features and modules are called."""


@dataclass(frozen=True)
class ArmCurve:
    """A curve of one arm: mean over seeds, standard error over seeds, and each seed's own."""

    arm: Arm
    x: np.ndarray  # steps, [P]
    mean: np.ndarray  # [P]
    error: np.ndarray  # [P], 0 with one seed
    seeds: dict[int, np.ndarray]


def titles(runs: Sequence[Run]) -> dict[str, str]:
    """Returns axis titles of `CURVES`, with the name of the score that these runs' units have.

    `strongest` is left out where no run has it, as only heads do.
    """
    metrics = {run.metric for run in runs}
    unit = ", fixed head" if all(run.of_heads for run in runs) else " of the unit"
    name = metrics.pop() if len(metrics) == 1 else "score"
    score = score_title(name)
    by_curve = {key: text.format(score=score, unit=unit) for key, text in CURVES.items()}
    if not any(f"emergence/{run.metric}/strongest" in run.curve for run in runs):
        del by_curve["strongest"]
    return by_curve


def score_title(metric: str) -> str:
    """Returns the axis title of a metric; its own name where no table has it."""
    if metric in HEAD_METRICS:
        return HEAD_METRICS[metric].title
    return OTHER_SCORES.get(metric, metric)


def points(measured: Measurements) -> list[tuple[Run, float, float]]:
    """Yields every edited run minus its control: strongest head, else unit, and ICL score."""
    name = "strongest" if "strongest" in titles(measured.runs) else "unit"
    differences = []
    for run in measured.runs:
        if run.arm.edit.is_control:
            continue
        mine = measured.of(run, run).values
        theirs = measured.of(control_of(run, measured.runs), run).values
        a, b, c, d = (values[key] for key in (name, "icl_score") for values in (mine, theirs))
        if a is not None and b is not None and c is not None and d is not None:
            differences.append((run, a - b, c - d))
    return differences


def same_window(runs: Sequence[Run]) -> bool:
    """Returns whether all runs share one window, so that absolute steps can be the x-axis."""
    return len({(run.start, run.end) for run in runs}) == 1


def arm_curves(measured: Measurements, name: str) -> list[ArmCurve]:
    """Returns a curve of `CURVES` for each arm; replicates of a seed are averaged first.

    x is the training step where all windows are one, else the step counted from the window's
    start, up to the shortest window. Curves measured at other steps are interpolated linearly.
    """
    shared = same_window(measured.runs)
    grid = _grid(measured.runs)
    curves = []
    for arm, seeds in by_arm(measured.runs).items():
        rows = {}
        for seed, runs in seeds.items():
            curves_of_seed = [_on_grid(run, name, grid) for run in runs]
            curves_of_seed = [row for row in curves_of_seed if row is not None]
            if curves_of_seed:
                rows[seed] = np.mean(curves_of_seed, axis=0)
        if rows:
            values = np.array(list(rows.values()))
            spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(grid))
            x = grid + measured.runs[0].start if shared else grid
            error = spread / len(values) ** 0.5
            curves.append(ArmCurve(arm, x, values.mean(0), error, rows))
    return curves


def head_matrix(run: Run, metric: str, row: int) -> np.ndarray:
    """Returns a metric of every head at one row of the curve, [L, H]; NaN if not measured."""
    heads = run.heads_of(metric)
    shape = (1 + max(h.layer for h in heads), 1 + max(h.head for h in heads))
    values = np.full(shape, np.nan)
    for head in heads:
        values[head.layer, head.head] = run.curve[f"emergence/{metric}/{head}"][row]
    return values


def head_difference(measured: Measurements, runs: Sequence[Run]) -> np.ndarray:
    """Returns runs of an arm and seed minus their control at the window's end, averaged, [L, H]."""
    differences = []
    for run in runs:
        control = control_of(run, measured.runs)
        differences.append(
            head_matrix(run, run.metric, run.end_row)
            - head_matrix(control, run.metric, control.end_row)
        )
    return np.mean(differences, axis=0)


def _grid(runs: Sequence[Run]) -> np.ndarray:
    length = min(run.end - run.start for run in runs)
    steps = runs[0].curve["step"]
    every = int(np.median(np.diff(steps))) if len(steps) > 1 else length
    return np.unique(np.append(np.arange(0, length + 1, max(every, 1)), length)).astype(float)


def _on_grid(run: Run, name: str, grid: np.ndarray) -> np.ndarray | None:
    if name == "unit":
        values = run.of_unit(run.heads, run.metric)
    elif name == "strongest":
        values = run.curve.get(f"emergence/{run.metric}/strongest")
    else:
        values = run.curve.get(name if name.startswith("val/") else f"emergence/{name}")
    if values is None or not (has_value := np.isfinite(values)).any():
        return None
    return np.interp(grid, run.curve["step"][has_value] - run.start, values[has_value])
