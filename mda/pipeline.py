"""Pipeline: corpus, base run, unit, scores, edit, retrained arm, in this order.

Each stage is found in the store by the hash of everything that enters it, or built once. A stage
sees the ones before it and the configuration; nothing flows back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from mda.data.stream import Corpus
from mda.schema import Config, PublishedConfig, validate_sizes
from mda.stages.attribution import Traced, score
from mda.stages.before import check_directions, check_model, check_prompts
from mda.stages.capabilities import Capabilities, CapabilitiesStage
from mda.stages.context import Context, rank
from mda.stages.corpus import CorpusStage, trained_on_held_out
from mda.stages.declared import BASE, SCORES, needs
from mda.stages.editing import Edited, check_edit, edited_stream, make_edit
from mda.stages.ending import Ending
from mda.stages.found import NotBuilt
from mda.stages.locating import Located, check_label, locate
from mda.stages.order import Order
from mda.stages.published import Check, published_run
from mda.stages.recipe import Recipe
from mda.stages.runs import ArmStage, BaseStage, Run, origin_of, state_at
from mda.stages.stage import make
from mda.stages.tokens import TokensStage, TracedTokens
from mda.training.available import check_devices


@dataclass(frozen=True)
class Trace:
    """A traced unit: every stage from the corpus to the scores."""

    corpus: Corpus
    base: Run
    unit: Located
    traced: Traced


@dataclass(frozen=True)
class Arm:
    """A retrained arm: every stage from the corpus to its emergence curve and its capabilities."""

    corpus: Corpus
    base: Run
    unit: Located
    traced: Traced | None  # a control needs no scores, and neither do rows from outside
    tokens: TracedTokens | None  # only an edit of scored tokens needs theirs
    edit: Callable[[], Edited]
    run: Run
    capabilities: Capabilities  # of the model at the window's end

    @property
    def edited(self) -> Edited:
        """The changes of the edit, and the stream that results from them."""
        return self.edit()

    @property
    def origin(self) -> str:
        """The hash of the first weights and the window's samples: two seeds must not share it."""
        return origin_of(self.base, self.unit.window, self.unit.at.store.hash_file)


def corpus_of(context: Context) -> Corpus:
    """Returns the rows of tokens."""
    return make(CorpusStage(context.config.data), context.at)


def order_of(context: Context) -> Order:
    """Returns the corpus, in the order of a run."""
    config, corpus = context.config, corpus_of(context)
    return Order.of(corpus, config.data, config.training.batch_size, config.seed)


def sizes_of(config: Config, groups: Sequence[str]) -> Check:
    """Returns a check of the rules between `groups` for a published model's sizes."""

    def check(content: Mapping[str, Any], key: str) -> None:
        validate_sizes(config, content, groups, key)

    return check


def look_at(context: Context, groups: Sequence[str]) -> None:
    """Checks the start of the base run before a corpus is built for it."""
    config = context.config
    check_model(config.model, config.base, sizes_of(config, groups), context.at)
    if "unit" in groups:
        check_directions(config.unit, config.model)


def base_of(context: Context, order: Order, groups: Sequence[str]) -> Run:
    """Returns the base run: trained, or published, as `base` says."""
    config, at, base = context.config, context.at, context.config.base
    recipe = Recipe(config.training, config.emergence)
    if not isinstance(base, PublishedConfig):
        ending = Ending.of(config.training, config.unit, config.intervention)
        return make(BaseStage(order, config.model, recipe, ending), at)
    if rank() == 0 and (seen := trained_on_held_out(base, config.data, config.training.batch_size)):
        at.store.warn(order.corpus.fingerprint, seen)
    return published_run(base, order, recipe, sizes_of(config, groups), at)


def train(context: Context, groups: Sequence[str] = needs(BASE)) -> tuple[Corpus, Run]:
    """Returns the base run, after building its corpus."""
    look_at(context, groups)
    order = order_of(context)
    check_prompts(context.config, order.corpus, groups)
    if "unit" in groups:
        check_label(context.config.unit, order.corpus)
    return order.corpus, base_of(context, order, groups)


def unit_of(context: Context, base: Run) -> Located:
    """Returns the unit in a base run, and its window."""
    config = context.config
    return locate(base, config.unit, config.sae, config.intervention, context.at)


def trace(context: Context) -> Trace:
    """Returns the corpus, base run, unit and scores of the window."""
    corpus, base = train(context, needs(SCORES))
    unit = unit_of(context, base)
    return Trace(corpus, base, unit, score(unit, context.config.estimator, context.at))


def arm(context: Context, base_context: Context | None = None) -> Arm:
    """Returns every stage up to the window retrained on the edited stream."""
    config, at, edit = context.config, context.at, context.config.intervention
    check_devices(config.training)
    look_at(context, needs(SCORES))
    order = order_of(base_context or context)
    with suppress(NotBuilt):
        check_edit(edit, order, edit.steps)
    check_label(config.unit, order.corpus)
    check_prompts(config, order.corpus, needs(SCORES))
    base = base_of(base_context or context, order, needs(SCORES))
    unit = unit_of(context, base)
    if edit.steps is None and unit.steps is not None:
        check_edit(edit, order, unit.steps)
    traced = score(unit, config.estimator, at) if edit.chooses else None
    tokens = make(TokensStage(traced), at) if traced and edit.scores_tokens else None

    @cache
    def edited() -> Edited:
        return make_edit(edit, unit, traced and traced.scores, tokens and tokens.scores)

    start = state_at(base, unit.steps[0], at) if unit.steps else None
    trained = edited_stream(edit, unit, traced, tokens, edited)
    run = make(ArmStage(base, trained, start, unit.followed), at)
    able = make(CapabilitiesStage(run, config.unit, config.capabilities), at)
    return Arm(order.corpus, base, unit, traced, tokens, edited, run, able)
