"""The metrics of a run, `METRICS`, all read from its curve.csv.

A curve that never crosses is censored: its onset counts as the window's end, so a delay is a
lower bound, and the number of such runs is kept beside the effect.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mda.analysis.arms import Arm, Run, by_arm
from mda.emergence.onset import crossing, head_metric
from mda.schema.edit import RANDOM, Edit

METRICS = {
    "unit": "mu of the unit (of several heads: their mean) at the window's end",
    "unit/curve": "the same, mean over the window: area under the unit's curve by its length, of "
    "all points but those before the window",
    "strongest": "of heads, the largest over all of them: survives another choice of head",
    "onset_step": "step at which the unit's curve crosses the threshold, interpolated; none where "
    "it lies above from the start",
    "onset_tokens": "the same in tokens",
    "strongest_onset_step": "step at which the largest over all heads crosses it",
    "strongest_onset_tokens": "the same in tokens",
    "copy_gain": "log-prob gain on the second copy, nats",
    "prompts": "log-prob of right continuations of emergence.prompts minus wrong ones, nats",
    "prompts/curve": "the same, mean over the window",
    "icl_score": "loss late minus loss early in the context, nats: lower is more learning",
    "icl_score/curve": "the same, mean over the window, of the points that have it: see "
    "emergence.arm_held_out_every",
    "icl_score/real": "the ICL score of text that was not generated",
    "icl_score/real/curve": "the same, mean over the window",
    "icl_score/generated": "the ICL score of generated text",
    "icl_score/generated/curve": "the same, mean over the window",
    "val/loss": "held-out loss, nats; val/loss/<label> for one class",
    "capabilities/real_loss": "loss on held-out text that was not generated, nats",
    "capabilities/icl_score": "loss late minus loss early in that text, nats",
    "capabilities/copy_gain": "few-shot copying of that text: a span's loss minus its copy's, nats",
    "capabilities/copy_accuracy": "the same, share of the copy's tokens that are predicted",
    "capabilities/label_margin": (
        "few-shot labels of held-out text: log-prob of the right label minus the wrong one, nats"
    ),
    "capabilities/label_accuracy": "the same, share of right answers; chance is .5",
    "capabilities/<any>/top_heads": "what mean ablation of the strongest heads changes of it",
    "capabilities/<any>/random_heads": "what mean ablation of as many random heads changes of it",
    "heads/induction": (
        "mean mu of the OTHER heads that reach the threshold in the base run, measured after the "
        "window: not chosen on the control that they are compared with"
    ),
    "heads/rest": "mean mu of all remaining heads",
    "heads/contrast": "heads/induction - heads/rest; missing without another induction head",
    "heads/log_ratio": (
        "log of the share that the other heads of heads/induction keep, minus that of heads/rest: "
        "means of log(mu / the control's mu), of each head by its own metric, which of the rest is "
        "the one on which it is highest in the base run after the window; 0: both kinds move "
        "alike, -0.69: the induction heads keep half as much"
    ),
}
"""Name -> what it is; at the window's end unless it says otherwise."""

OPTIONAL = ("prompts", "icl_score", "icl_score/real", "icl_score/generated")
"""Columns that not every curve, or not every point of one, has."""

MATCHED = {"matched": False, "matched_overlap": True}
"""Reference -> whether its random sets may hold samples of the targeted one."""

STRENGTH = {"upweight": ("weight",), "spans": ("ngram",), "insert": ("at_step", "per_step")}
"""Mode -> the settings that say how strong an edit is, beside its amount."""

Values = dict[str, float | None]
Aim = tuple[str, str, tuple[str, ...], float, str]
"""Unit, metric, heads, threshold, and how the model was tried out: what a run is measured for."""


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
    table: Mapping[tuple[Path, Aim], Measured] = field(repr=False)

    def of(self, run: Run, target: Run) -> Measured:
        """Returns the metrics of `run` for the unit of `target`."""
        return self.table[run.folder, _aim(target)]


def measure(runs: Sequence[Run]) -> Measurements:
    """Returns the metrics of every run.

    Raises ValueError where a run has no control of its seed and window.
    """
    table = {}
    for run in runs:
        control = control_of(run, runs)  # refuses a run without one
        mates = sorted((r for r in runs if r.seed == run.seed), key=lambda r: _pairs(r, run))
        targets = {_aim(r): r for r in mates}  # of the run's own window, if any is
        for aim in sorted(targets):
            table[run.folder, aim] = _measure(run, targets[aim], control)
    return Measurements(tuple(runs), table)


def control_of(run: Run, runs: Sequence[Run]) -> Run:
    """Returns the unedited run of the same seed and window, with the unit in its curve.

    The curves of neurons, modules and features are only in runs of arms that target them.
    """
    controls = [r for r in runs if r.arm.edit.is_control and _pairs(r, run)]
    for other in controls:
        if other.of_unit(run.heads, run.metric) is not None:
            return other
    if controls:
        return controls[0]
    raise ValueError(
        f"no control of seed {run.seed} and window [{run.start}, {run.end}) for {run.folder}; "
        f"run one with intervention=control seed={run.seed}"
    )


def references_of(run: Run, runs: Sequence[Run], reference: str | Arm) -> list[Run]:
    """Returns the runs of the same seed and window that an arm's run is compared with.

    A reference that is an arm means its runs, whatever they have edited and how much. Else
    `reference` is one of `REFERENCES` or any estimator's name. Except for control they are edits of
    the same kind, size and strength (and label, where the arm is restricted to one): drawn freely,
    matched to the very set that the arm edits, or selected in the same way from another estimator's
    scores. Each draw counts once, though it may have been trained for several units.
    """
    if reference == "control":
        return [control_of(run, runs)]
    if isinstance(reference, Arm):
        candidates = [other for other in runs if _pairs(other, run) and other.arm.fits(reference)]
    else:
        candidates = [
            other
            for other in runs
            if _pairs(other, run)
            and _is_reference(other.arm, run.arm, reference)
            and _strength(other) == _strength(run)
        ]
    draws: dict[object, Run] = {}
    for other in candidates:
        first = draws.setdefault(_draw(other), other)
        if first.of_unit(run.heads, run.metric) is None:
            draws[_draw(other)] = other
    return list(draws.values())


def _draw(run: Run) -> object:
    """Returns the identity of a reference's training: of a free draw which it is, else the run."""
    if not run.arm.edit.is_random or run.arm.edit.match:
        return run.fingerprint
    extra = tuple(word for word in run.arm.extra if not word.startswith("metric="))
    return replace(run.arm, extra=extra), run.summary["intervention"].get("select"), run.replicate


def _strength(run: Run) -> tuple[object, ...]:
    edit = run.summary["intervention"]
    return tuple(edit.get(key) for key in STRENGTH.get(str(edit.get("mode")), ()))


def _is_reference(other: Arm, mine: Arm, reference: str) -> bool:
    other_edit, edit = other.edit, mine.edit
    if _kind(other_edit) != _kind(edit):
        return False
    if reference == RANDOM:
        return other_edit.is_random and not other_edit.match
    if reference in MATCHED:
        same = (other_edit.by, other_edit.choose, other.extra) == (edit.by, edit.choose, mine.extra)
        return (
            same
            and other_edit.match is not None
            and other_edit.match.targeted == MATCHED[reference]
        )
    return (other_edit.source, other_edit.choose) == (
        reference,
        edit.choose,
    ) and not other_edit.is_random


def metrics_of(measured: Measurements) -> list[str]:
    """Returns the names of all metrics that any run has, in the order of their definition."""
    return list(dict.fromkeys(name for of_run in measured.table.values() for name in of_run.values))


def random_values(
    measured: Measurements, metric: str
) -> dict[str, tuple[tuple[int, ...], np.ndarray]]:
    """Returns the replicates of each random arm, and [S, R] of a metric, for `null_check`.

    A column is one replicate, identified by the seed of its draw. Seeds that lack one of the
    replicates that most seeds have are left out; so are arms with fewer than two seeds or
    replicates.
    """
    by_name = {}
    for arm, seeds in by_arm(measured.runs).items():
        if not arm.edit.is_random:
            continue
        rows = [
            {
                run.replicate: value
                for run in runs
                if (value := measured.of(run, run).values.get(metric)) is not None
            }
            for _, runs in sorted(seeds.items())
        ]
        sets = [tuple(sorted(row)) for row in rows]
        names = max(sorted(set(sets)), key=sets.count)
        values = [[row[name] for name in names] for row in rows if set(names) <= set(row)]
        if len(names) >= 2 and len(values) >= 2:
            by_name[arm.name] = (names, np.array(values))
    return by_name


def _measure(run: Run, target: Run, control: Run) -> Measured:
    metric, threshold = target.metric, target.threshold
    curves = {
        "": run.of_unit(target.heads, metric),
        "strongest_": run.curve.get(f"emergence/{metric}/strongest"),
    }
    ends = [None if curve is None else float(curve[run.end_row]) for curve in curves.values()]
    values: Values = dict(zip(("unit", "strongest"), ends, strict=True))
    values["unit/curve"] = _over_window(run, curves[""])
    censored = set()
    rows = slice(0, run.end_row + 1)
    for prefix, curve in curves.items():
        names = (f"{prefix}onset_step", f"{prefix}onset_tokens")
        step = None
        if curve is not None:
            has_value = np.isfinite(
                curve[rows]
            )  # a metric may be measured at fewer steps than others
            seen = curve[rows][has_value]
            if not len(seen) or seen[0] < threshold:  # else it came before the window
                step = crossing(run.curve["step"][rows][has_value], seen, threshold)
                if step is None:
                    step = float(run.end)
                    censored.update(names)
        values[names[0]] = step
        values[names[1]] = None if step is None else step * run.tokens_per_step
    for name in ("copy_gain", "icl_score"):
        values[name] = run.at_end(f"emergence/{name}")
    for name in (name for name in OPTIONAL if f"emergence/{name}" in run.curve):
        values[name] = run.at_end(f"emergence/{name}")
        values[f"{name}/curve"] = _over_window(run, run.curve[f"emergence/{name}"])
    shown = ("val/loss", "capabilities/")
    values |= {name: run.at_end(name) for name in run.curve if name.startswith(shown)}
    values |= dict.fromkeys(_not_comparable(run, target, values))
    values |= _head_means(run, target) | {"heads/log_ratio": _log_ratio(run, target, control)}
    finite = {name: v if v is not None and math.isfinite(v) else None for name, v in values.items()}
    return Measured(run, target.unit, finite, frozenset(censored))


def _not_comparable(run: Run, target: Run, names: Iterable[str]) -> list[str]:
    """Returns the metrics of capabilities that were measured differently in the two runs."""
    alike = run.summary.get("capabilities") == target.summary.get("capabilities")
    same_heads = head_metric(run.metric) == head_metric(target.metric)
    ablation = ("/top_heads", "/random_heads")
    return [name for name in names if name.startswith("capabilities/")
            and not (alike and (same_heads or not name.endswith(ablation)))]  # fmt: skip


def _over_window(run: Run, curve: np.ndarray | None) -> float | None:
    """Returns the mean of a curve over the window's steps, by trapezoids.

    Returns None where it was not measured.
    """
    if curve is None:
        return None
    inside = np.isfinite(curve) & (run.curve["step"] >= run.start) & (run.curve["step"] <= run.end)
    steps, values = run.curve["step"][inside], curve[inside]
    if len(steps) < 2:
        return None
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def _other_heads(run: Run, target: Run) -> dict[str, list[str]]:
    """Returns `induction` and `rest`: heads beside the unit by their value in the base run."""
    base = (target.base_heads if _pairs(target, run) else None) or {}
    prefix = f"emergence/{target.metric}/"
    chosen = {name.removeprefix(prefix): v for name, v in base.items() if name.startswith(prefix)}
    others = {name: value for name, value in chosen.items() if name not in target.heads}
    return {
        "induction": [name for name, value in others.items() if value >= target.threshold],
        "rest": [name for name, value in others.items() if value < target.threshold],
    }


def _log_ratio(run: Run, target: Run, control: Run) -> float | None:
    """Returns `heads/log_ratio`; None where the base run's heads are known by one metric alone."""
    kept = {}
    for group, members in _other_heads(run, target).items():
        columns = [f"emergence/{target.metric}/{name}" for name in members]
        if group == "rest":
            columns = [_own_metric(target.base_heads or {}, name) for name in members]
        ends = [(run.at_end(column), control.at_end(column)) for column in columns if column]
        logs = [math.log(mine / its) for mine, its in ends if mine and its and mine * its > 0]
        if not logs or len(logs) < len(members):
            return None
        kept[group] = float(np.mean(logs))
    return kept["induction"] - kept["rest"]


def _own_metric(base: Mapping[str, float], head: str) -> str | None:
    """Returns the column of the metric on which a head is highest.

    Returns None where one alone is known.
    """
    columns = {column: value for column, value in base.items() if column.endswith(f"/{head}")}
    return max(columns, key=lambda column: columns[column]) if len(columns) > 1 else None


def _head_means(run: Run, target: Run) -> Values:
    means: Values = {"heads/induction": None, "heads/rest": None, "heads/contrast": None}
    for group, members in _other_heads(run, target).items():
        values = [run.at_end(f"emergence/{target.metric}/{name}") for name in members]
        numbers = [value for value in values if value is not None]
        means[f"heads/{group}"] = float(np.mean(numbers)) if numbers else None
    a, b = means["heads/induction"], means["heads/rest"]
    means["heads/contrast"] = None if a is None or b is None else a - b
    return means


def _aim(run: Run) -> Aim:
    tried = json.dumps(run.summary.get("capabilities"), sort_keys=True)
    return run.unit, run.metric, run.heads, run.threshold, tried


def _kind(edit: Edit) -> tuple[object, ...]:
    return edit.intervention, edit.mode, edit.spans, edit.size, edit.label, edit.scope


def _pairs(a: Run, b: Run) -> bool:
    return (a.seed, a.start, a.end) == (b.seed, b.start, b.end)
