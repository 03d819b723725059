"""What figures and the page draw: curves averaged over seeds, and layer x head differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from mda.report.arms import CONTROL, Arm, Run, band_edges, by_arm
from mda.report.metrics import Measurements, control_of

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, told apart with any colour vision; black and grey are taken below."""

CURVES = {
    "unit": "{score}, fixed head",
    "mechanism": "{score}, strongest head",
    "copy_gain": "gain on the second copy (nats)",
    "icl_score": "in-context-learning score (nats)",
    "val/loss": "held-out loss (nats)",
}
"""Curves that are drawn, and their axis."""

SCORES = {"prefix_matching": "induction score", "previous_token": "previous-token score"}


@dataclass(frozen=True)
class Style:
    """How an arm looks in every figure."""

    colour: str
    dash: str  # matplotlib's: solid, dashed, dotted, dashdot


@dataclass(frozen=True)
class ArmCurve:
    """A curve of one arm: mean over seeds, standard error over seeds, and each seed's own."""

    arm: Arm
    x: np.ndarray  # steps, [P]
    mean: np.ndarray  # [P]
    error: np.ndarray  # [P], 0 with one seed
    seeds: dict[int, np.ndarray]


def styles(arms: Iterable[Arm]) -> dict[Arm, Style]:
    """Control black, random edits grey, bands on a scale, every other arm a colour of its own.

    Random sets matched to a targeted one are brown. Give it all arms of the comparison, so that an
    arm looks the same in every figure.
    """
    found: dict[Arm, Style] = {}
    used = 0
    for arm in arms:
        if arm.intervention == CONTROL:
            found[arm] = Style("#000000", "solid")
        elif arm.is_random:
            dash = {"remove": "dashed", "augment": "dotted"}.get(arm.intervention, "dashdot")
            found[arm] = Style("#8C6D46", "dashdot") if arm.match else Style("#7F7F7F", dash)
        elif arm.is_band:
            low, high = band_edges(arm)
            found[arm] = Style(to_hex(colormaps["cividis"](0.5 * (low + high))), "solid")
        else:
            dash = "solid" if used < len(COLOURS) else "dashdot"
            found[arm] = Style(COLOURS[used % len(COLOURS)], dash)
            used += 1
    return found


def titles(runs: Sequence[Run]) -> dict[str, str]:
    """Axis titles of `CURVES`, with the name of the score that these runs' units have."""
    metrics = {run.metric for run in runs}
    name = metrics.pop() if len(metrics) == 1 else "score"
    return {key: text.format(score=SCORES.get(name, name)) for key, text in CURVES.items()}


def same_window(runs: Sequence[Run]) -> bool:
    """Whether all runs share one window, so that curves can be drawn over absolute steps."""
    return len({(run.start, run.end) for run in runs}) == 1


def arm_curves(measured: Measurements, name: str) -> list[ArmCurve]:
    """A curve of `CURVES` for each arm; replicates of a seed are averaged first.

    x is the training step where all windows are one, else the step counted from the window's
    start, up to the shortest window. Curves measured at other steps are interpolated linearly.
    """
    shared = same_window(measured.runs)
    grid = _grid(measured.runs)
    curves = []
    for arm, seeds in by_arm(measured.runs).items():
        rows = {}
        for seed, runs in seeds.items():
            found = [_on_grid(run, name, grid) for run in runs]
            found = [row for row in found if row is not None]
            if found:
                rows[seed] = np.mean(found, axis=0)
        if rows:
            values = np.array(list(rows.values()))
            spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(grid))
            x = grid + measured.runs[0].start if shared else grid
            error = spread / len(values) ** 0.5
            curves.append(ArmCurve(arm, x, values.mean(0), error, rows))
    return curves


def head_matrix(run: Run, metric: str, row: int) -> np.ndarray:
    """A metric of every head at one row of the curve, [L, H]; NaN where it was not measured."""
    heads = run.heads_of(metric)
    shape = (1 + max(h.layer for h in heads), 1 + max(h.head for h in heads))
    values = np.full(shape, np.nan)
    for head in heads:
        values[head.layer, head.head] = run.curve[f"emergence/{metric}/{head}"][row]
    return values


def head_difference(measured: Measurements, runs: Sequence[Run]) -> np.ndarray:
    """Runs of one arm and seed minus their control at the window's end, averaged, [L, H]."""
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
    elif name == "mechanism":
        values = run.curve.get(f"emergence/{run.metric}/max")
    else:
        values = run.curve.get(name if name.startswith("val/") else f"emergence/{name}")
    return None if values is None else np.interp(grid, run.curve["step"] - run.start, values)
