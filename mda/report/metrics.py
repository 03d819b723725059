"""What is measured of a run: `METRICS`, all read from its curve.csv.

A curve that never crosses is censored: its onset counts as the window's end, so a delay is a
lower bound, and the number of such runs is kept beside the effect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mda.emergence.onset import crossing
from mda.report.arms import CONTROL, Arm, Run, by_arm

REFERENCES = ("control", "random", "matched")

METRICS = {
    "unit": "mu of the fixed head (of several: their mean) at the window's end",
    "mechanism": "the same, largest over all heads: survives another choice of head",
    "onset_step": "step at which the fixed head's curve crosses the threshold, interpolated",
    "onset_tokens": "the same in tokens",
    "mechanism_onset_step": "step at which the largest over all heads crosses it",
    "mechanism_onset_tokens": "the same in tokens",
    "copy_gain": "log-prob gain on the second copy, nats",
    "icl_score": "loss late minus loss early in the context, nats: lower is more learning",
    "val/loss": "held-out loss, nats; val/loss/<label> for one class",
    "heads/induction": "mean mu of the OTHER heads that reach the threshold in control",
    "heads/rest": "mean mu of all remaining heads",
    "heads/contrast": "heads/induction - heads/rest; missing without another induction head",
}
"""Name -> what it is; at the window's end unless it says otherwise."""

Values = dict[str, float | None]


@dataclass(frozen=True)
class Measured:
    """A run's metrics for one unit; `censored` onsets are those set to the window's end."""

    run: Run
    unit: str
    values: Values
    censored: frozenset[str]


@dataclass(frozen=True)
class Measurements:
    """All runs measured, for every unit that some arm of their seed was aimed at."""

    runs: tuple[Run, ...]
    table: Mapping[tuple[str, str, str], Measured] = field(repr=False)

    def of(self, run: Run, target: Run) -> Measured:
        """Metrics of `run` for the unit of `target`."""
        return self.table[str(run.folder), target.unit, target.metric]


def measure(runs: Sequence[Run]) -> Measurements:
    """Metrics of every run. Raises ValueError where a run has no control of its seed and window."""
    table = {}
    for run in runs:
        control = control_of(run, runs)
        targets = {(r.unit, r.metric): r for r in runs if r.seed == run.seed}
        for unit, metric in sorted(targets):
            one = _measure(run, control, targets[unit, metric])
            table[str(run.folder), unit, metric] = one
    return Measurements(tuple(runs), table)


def control_of(run: Run, runs: Sequence[Run]) -> Run:
    """The unedited run of the same seed and window."""
    for other in runs:
        if other.arm.intervention == CONTROL and _pairs(other, run):
            return other
    raise ValueError(
        f"no control of seed {run.seed} and window [{run.start}, {run.end}) for {run.folder}; "
        f"run one with intervention=control seed={run.seed}"
    )


def references_of(run: Run, runs: Sequence[Run], reference: str) -> list[Run]:
    """Runs of the same seed and window that an arm's run is compared with.

    `random` are freely drawn edits of the same kind and size (and label, where the arm is
    restricted to one); `matched` are random sets with the label or loss distribution of the very
    set that the arm edits.
    """
    if reference == "control":
        return [control_of(run, runs)]
    mine = run.arm
    found = []
    for other in runs:
        arm = other.arm
        same = (arm.intervention, arm.mode, arm.amount, arm.label) == (
            mine.intervention, mine.mode, mine.amount, mine.label
        )  # fmt: skip
        if reference == "random":
            same = same and arm.is_random and not arm.match
        else:
            same = same and arm.match != "" and _selection(arm) == _selection(mine)
        if same and _pairs(other, run):
            found.append(other)
    return found


def metrics_of(measured: Measurements) -> list[str]:
    """Names of all metrics that any run has, in the order of their definition."""
    return list(dict.fromkeys(name for one in measured.table.values() for name in one.values))


def random_values(measured: Measurements, metric: str) -> dict[str, np.ndarray]:
    """Arm name -> [S, R] of a metric over random edits of equal size, for `null_check`.

    Seeds with fewer replicates than the most common number are left out; arms with fewer than
    two seeds or replicates are too.
    """
    found = {}
    for arm, seeds in by_arm(measured.runs).items():
        if not arm.is_random:
            continue
        rows = [
            [v for run in runs if (v := measured.of(run, run).values.get(metric)) is not None]
            for runs in seeds.values()
        ]
        lengths = [len(row) for row in rows]
        n = max(set(lengths), key=lengths.count)
        values = [row[:n] for row in rows if len(row) >= n]
        if n >= 2 and len(values) >= 2:
            found[arm.name] = np.array(values)
    return found


def _measure(run: Run, control: Run, target: Run) -> Measured:
    metric, threshold = target.metric, target.threshold
    curves = {
        "": run.of_unit(target.heads, metric),
        "mechanism_": run.curve.get(f"emergence/{metric}/max"),
    }
    ends = [None if curve is None else float(curve[run.end_row]) for curve in curves.values()]
    values: Values = dict(zip(("unit", "mechanism"), ends, strict=True))
    censored = set()
    rows = slice(0, run.end_row + 1)
    for prefix, curve in curves.items():
        names = (f"{prefix}onset_step", f"{prefix}onset_tokens")
        step = None
        if curve is not None:
            step = crossing(run.curve["step"][rows], curve[rows], threshold)
            if step is None:
                step = float(run.end)
                censored.update(names)
        values[names[0]] = step
        values[names[1]] = None if step is None else step * run.tokens_per_step
    for name in ("copy_gain", "icl_score"):
        values[name] = run.at_end(f"emergence/{name}")
    values |= {name: run.at_end(name) for name in run.curve if name.startswith("val/loss")}
    values |= _head_means(run, control, target)
    known = {name: v if v is not None and math.isfinite(v) else None for name, v in values.items()}
    return Measured(run, target.unit, known, frozenset(censored))


def _head_means(run: Run, control: Run, target: Run) -> Values:
    metric = target.metric
    names = [str(h) for h in control.heads_of(metric) if str(h) not in target.heads]
    at_control = {name: control.at_end(f"emergence/{metric}/{name}") or 0.0 for name in names}
    now = {name: run.at_end(f"emergence/{metric}/{name}") for name in names}
    sets = {
        "induction": [name for name in names if at_control[name] >= target.threshold],
        "rest": [name for name in names if at_control[name] < target.threshold],
    }
    means: Values = {}
    for group, members in sets.items():
        values = [value for name in members if (value := now[name]) is not None]
        means[f"heads/{group}"] = float(np.mean(values)) if values else None
    a, b = means["heads/induction"], means["heads/rest"]
    means["heads/contrast"] = None if a is None or b is None else a - b
    return means


def _selection(arm: Arm) -> tuple[str, str, tuple[str, ...]]:
    return arm.estimator, arm.select, arm.extra


def _pairs(a: Run, b: Run) -> bool:
    return (a.seed, a.start, a.end) == (b.seed, b.start, b.end)
