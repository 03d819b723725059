"""Where the unit is, which window its emergence spans, and the checkpoints scored for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mda.emergence.onset import head_onset, heads_of
from mda.intervention.window import Window, auto_window
from mda.schema import ConfigError, EkfacConfig, RandomConfig, TracinConfig
from mda.stages.context import Context
from mda.stages.runs import Run
from mda.types import HeadId


@dataclass(frozen=True)
class Unit:
    """The unit that was found: its name among the scores, its heads, its window."""

    name: str
    heads: tuple[HeadId, ...]
    window: Window


def locate(context: Context, base: Run) -> Unit:
    """Find the unit by its metric at the end of the base run, and the window of the edit."""
    unit = context.config.unit
    ranked = sorted(
        heads_of(base.curve, unit.metric),
        key=lambda head: (-base.curve[-1][f"emergence/{unit.metric}/{head}"], head),
    )
    if unit.head is not None:
        heads = (HeadId(*unit.head),)
    else:
        heads = tuple(ranked[: unit.k if unit.locate == "mechanism" else 1])
    name = "mechanism" if unit.locate == "mechanism" else str(heads[0])
    return Unit(name, heads, _window(context, base, heads[0]))


def scored_steps(context: Context, base: Run, unit: Unit) -> tuple[int, ...]:
    """Steps of the kept checkpoints that the estimator scores.

    `onset`, `window_middle` and `window_end` mean the kept checkpoint nearest to that step.
    Raises ConfigError for a step without a checkpoint.
    """
    estimator, window = context.config.estimator, unit.window
    if isinstance(estimator, RandomConfig):
        return ()
    if isinstance(estimator, TracinConfig):
        if given := estimator.checkpoints:
            return tuple(_kept(base, step, "estimator.checkpoints") for step in given)
        inside = [step for step in base.checkpoints if window.start <= step <= window.end]
        return spread(inside, estimator.n_checkpoints)
    assert isinstance(estimator, EkfacConfig)
    if isinstance(estimator.checkpoint, int):
        return (_kept(base, estimator.checkpoint, "estimator.checkpoint"),)
    named = {
        "onset": window.onset,
        "window_middle": (window.start + window.end) / 2,
        "window_end": window.end,
    }
    return (base.kept(named[estimator.checkpoint]),)


def spread(steps: Sequence[int], n: int | None) -> tuple[int, ...]:
    """The n of some rising steps that lie nearest to an even grid from the first to the last.

    One alone is the middle; all of them for None, and where there are no more than n.
    """
    if n is None or len(steps) <= n:
        return tuple(steps)
    middle = [(steps[0] + steps[-1]) / 2]
    grid = middle if n == 1 else np.linspace(steps[0], steps[-1], n)
    return tuple(sorted({min(steps, key=lambda step: (abs(step - at), step)) for at in grid}))


def _window(context: Context, base: Run, head: HeadId) -> Window:
    unit, edit = context.config.unit, context.config.intervention
    onset = head_onset(base.curve, unit.metric, head, unit.threshold).step
    if edit.steps is not None:
        start, end = edit.steps
        _kept(base, start, "intervention.window")
        return Window(start, end, onset, f"as given: [{start}, {end})")
    last = int(base.curve[-1]["step"])
    try:
        return auto_window(onset, base.checkpoints, last, edit.before_onset, edit.after_onset)
    except ValueError as error:
        raise ConfigError(f"intervention.window=auto: {head}: {error}") from error


def _kept(base: Run, step: int, key: str) -> int:
    if step not in base.checkpoints:
        kept = ", ".join(map(str, base.checkpoints))
        raise ConfigError(f"{key}={step}: the base run kept no such checkpoint; accepted: {kept}")
    return step
