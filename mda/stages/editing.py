"""From scores to an edit plan, and from the plan to the stream that an arm is trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from mda.data.stream import Corpus
from mda.data.token_files import read_inserted
from mda.estimator.baselines import mixed_seed
from mda.intervention import plan as plans
from mda.intervention.edit import edit
from mda.intervention.select import choose, in_window, loss_groups, matched_random
from mda.schema import AugmentConfig, ConfigError, EditConfig, RemoveConfig
from mda.stages.context import Context
from mda.stages.corpus import base_schedule, following
from mda.stages.locating import Located
from mda.store import hash_arrays
from mda.types import EditPlan, Schedule, Scores


@dataclass(frozen=True)
class Edited:
    """What an arm trains on: the plan, the schedule it makes, the rows that schedule names."""

    plan: EditPlan
    schedule: Schedule
    corpus: Corpus
    inserted: str | None  # hash of rows from outside the corpus


def check_inserted(context: Context, corpus: Corpus) -> None:
    """Read the rows that an edit inserts. Raises ConfigError before anything is trained."""
    if (rows := context.config.intervention.inserted) is not None:
        read_inserted(Path(rows), corpus.seq_len, corpus.vocab_size)


def plan_edit(context: Context, corpus: Corpus, unit: Located, scores: Scores | None) -> Edited:
    """Choose the samples, write the plan, carry it out on the unedited schedule.

    `scores` are not needed by a control arm. Raises ConfigError where the edit is impossible.
    """
    intervention, window = context.config.intervention, unit.window
    base = base_schedule(context.config, corpus, window.start, window.end)
    if not intervention.edits:
        plan = plans.control(window.start, window.end)
        return Edited(plan, edit(plan, base), corpus, None)
    try:
        if intervention.inserted is not None:
            return _inserted(context, corpus, base, cast(AugmentConfig, intervention))
        assert scores is not None
        plan = _plan(
            context, corpus, unit, cast(RemoveConfig | AugmentConfig, intervention), scores
        )
        later = following(context.config, corpus, window.end)
        return Edited(plan, edit(plan, base, later), corpus, None)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"intervention={intervention.name}: {error}") from error


def _plan(
    context: Context,
    corpus: Corpus,
    unit: Located,
    config: RemoveConfig | AugmentConfig,
    scores: Scores,
) -> EditPlan:
    start, end = unit.window.start, unit.window.end
    scores = in_window(scores, start, end)
    chosen = select(corpus, unit.name, config, scores, context.config.seed)
    if config.mode in plans.REMOVALS:
        unused = following(context.config, corpus, end)
        return plans.remove(scores, chosen, start, end, config.mode, unused, config.seed)
    weight = cast(AugmentConfig, config).weight
    return plans.augment(scores, chosen, start, end, config.mode, weight)


def select(
    corpus: Corpus, unit: str, config: EditConfig, scores: Scores, run_seed: int
) -> np.ndarray:
    """Sample ids to edit, in stream order; with `match`, a random set like the targeted one.

    What is drawn depends on the run's seed as well as on the edit's.
    """
    seed = mixed_seed(run_seed, config.seed)
    labels = corpus.labels_of(scores.sample_ids)
    lower, upper = config.band or (None, None)
    amount = {"fraction": config.fraction, "count": config.count}
    if config.select in ("band", "ids") or config.count is not None:
        amount["fraction"] = None
    chosen = choose(
        scores,
        unit,
        config.select,
        **amount,
        lower=lower,
        upper=upper,
        label=config.label,
        labels=labels,
        ids=config.ids,
        seed=seed,
    )
    if config.match == "none":
        return chosen
    if config.match == "loss" and np.isnan(scores.losses).any():
        raise ValueError("match=loss needs an estimator that computes losses: ekfac or tracin")
    groups = np.asarray(labels) if config.match == "label" else loss_groups(scores.losses)
    exclude = config.match_targeted == "exclude"
    return matched_random(scores.sample_ids, groups, chosen, seed, exclude)


def _inserted(context: Context, corpus: Corpus, base: Schedule, config: AugmentConfig) -> Edited:
    assert config.rows is not None
    extra = read_inserted(Path(config.rows), corpus.seq_len, corpus.vocab_size)
    first = base.start if config.at_step is None else config.at_step
    ids = np.arange(len(corpus.tokens), len(corpus.tokens) + len(extra))
    plan = plans.insert(ids, base.start, base.end, first, config.per_step)
    longer = replace(corpus, extra=extra)
    return Edited(plan, edit(plan, base), longer, hash_arrays(extra))
