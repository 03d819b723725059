"""The way of the data, in order: corpus, base run, unit, scores, plan, retrained arm.

Each stage is found in the store by the hash of everything that enters it, or built once. A stage
sees the ones before it and the configuration; nothing flows back.
"""

from __future__ import annotations

from dataclasses import dataclass

from mda.data.stream import Corpus
from mda.stages.attribution import Traced, score
from mda.stages.context import Context
from mda.stages.corpus import corpus
from mda.stages.editing import Edited, plan_edit
from mda.stages.locating import Unit, locate
from mda.stages.runs import Run, base_run, retrained


@dataclass(frozen=True)
class Trace:
    """A traced unit: everything from the corpus to the scores."""

    corpus: Corpus
    base: Run
    unit: Unit
    traced: Traced


@dataclass(frozen=True)
class Arm:
    """A retrained arm: everything from the corpus to its emergence curve."""

    corpus: Corpus
    base: Run
    unit: Unit
    traced: Traced | None  # a control arm needs no scores
    edited: Edited
    run: Run


def train(context: Context) -> tuple[Corpus, Run]:
    """Corpus and base run."""
    rows = corpus(context)
    return rows, base_run(context, rows)


def trace(context: Context) -> Trace:
    """Corpus, base run, unit and scores of the window."""
    rows, base = train(context)
    unit = locate(context, base)
    return Trace(rows, base, unit, score(context, rows, base, unit))


def arm(context: Context, base_context: Context | None = None) -> Arm:
    """Corpus, base run, unit, scores, plan, and the window retrained on the edited stream.

    `base_context` logs the base run's rows, `context` the arm's own, and both where it is alone.
    """
    rows, base = train(base_context or context)
    unit = locate(context, base)
    edits = context.config.intervention.name != "control"
    traced = score(context, rows, base, unit) if edits else None
    edited = plan_edit(context, rows, unit, traced.scores if traced else None)
    run = retrained(context, edited.rows, base, edited.schedule, edited.inserted)
    return Arm(rows, base, unit, traced, edited, run)
