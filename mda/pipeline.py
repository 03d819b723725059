"""Pipeline: corpus, base run, unit, scores, plan, retrained arm, in this order.

Each stage is found in the store by the hash of everything that enters it, or built once. A stage
sees the ones before it and the configuration; nothing flows back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from mda.data.stream import Corpus
from mda.stages.attribution import Traced, score
from mda.stages.before import check_model
from mda.stages.behaviour import Behaviour, behaviour_of
from mda.stages.context import Context
from mda.stages.corpus import corpus_of
from mda.stages.editing import Edited, check_edit, edited_stream, plan_edit
from mda.stages.found import NotBuilt
from mda.stages.locating import Located, check_label, locate
from mda.stages.published import base_of
from mda.stages.runs import Run, origin_of, retrained
from mda.stages.tokens import TracedTokens, score_tokens
from mda.training.fit import check_devices

BASE = ("base", "data", "model", "training", "emergence")
UNIT = (*BASE, "sae", "unit", "estimator", "intervention")
"""Groups that a pipeline reads: rules between them are checked once a published model is known."""


@dataclass(frozen=True)
class Trace:
    """A traced unit: everything from the corpus to the scores."""

    corpus: Corpus
    base: Run
    unit: Located
    traced: Traced


@dataclass(frozen=True)
class Arm:
    """A retrained arm: everything from the corpus to its emergence curve and what it can do."""

    corpus: Corpus
    base: Run
    unit: Located
    traced: Traced | None  # a control needs no scores, and neither do rows from outside
    tokens: TracedTokens | None  # only an edit of scored tokens needs theirs
    edit: Callable[[], Edited]
    run: Run
    behaviour: Behaviour  # of the model at the window's end

    @property
    def edited(self) -> Edited:
        """What was edited, and the stream that came of it."""
        return self.edit()

    @property
    def origin(self) -> str:
        """Hash of the first weights and the window's samples: two seeds must not share it."""
        return origin_of(self.unit.context, self.corpus, self.base, self.unit.window)


def train(context: Context, groups: Sequence[str] = BASE) -> tuple[Corpus, Run]:
    """Corpus and base run."""
    check_model(context, groups)
    corpus = corpus_of(context)
    if "unit" in groups:
        check_label(context, corpus)
    return corpus, base_of(context, corpus, groups)


def trace(context: Context) -> Trace:
    """Corpus, base run, unit and scores of the window."""
    corpus, base = train(context, UNIT)
    unit = locate(context, corpus, base)
    return Trace(corpus, base, unit, score(context, corpus, base, unit))


def arm(context: Context, base_context: Context | None = None) -> Arm:
    """Corpus, base run, unit, scores, plan, and the window retrained on the edited stream.

    `base_context` logs the base run's rows, `context` the arm's own, and both where it is alone.
    """
    check_devices(context.config.training)
    check_model(context, UNIT)
    corpus = corpus_of(base_context or context)
    settings = context.config.intervention
    with suppress(NotBuilt):
        check_edit(context, corpus, settings.steps)
    check_label(context, corpus)
    base = base_of(base_context or context, corpus, UNIT)
    unit = locate(context, corpus, base)
    with suppress(NotBuilt):
        if settings.steps is None:
            check_edit(context, corpus, (unit.window.start, unit.window.end))
    traced = score(context, corpus, base, unit) if settings.chooses else None
    tokens = None
    if traced and settings.scores_tokens:
        tokens = score_tokens(context, corpus, base, unit, traced)

    @cache
    def edited() -> Edited:
        scores = traced and traced.scores
        return plan_edit(context, corpus, unit, scores, tokens and tokens.scores)

    stream = edited_stream(context, corpus, unit, traced, tokens, edited)
    followed, kind = None, None
    if not unit.on_curve:
        followed, kind = unit.inputs | {"members": unit.members_key}, context.config.unit.kind
    run = retrained(context, stream, base, lambda: unit.follow, followed, kind)
    able = behaviour_of(context, corpus, run)
    return Arm(corpus, base, unit, traced, tokens, edited, run, able)
