"""What an edit may read and what it has chosen: the argument of every maker of changes.

A maker is a function of an edit's settings and a `Choice` that returns `Changes`. The
settings name it, `module:function`: those of this package in a table by mode, see
`mda.schema.attribution`, those of a plugin in their class variable `maker`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mda.data.stream import Corpus, mixed_seed
from mda.intervention.changes import rewritten, spans, steps_of
from mda.intervention.select import amount, choose, loss_groups, matched_random, ranked
from mda.schema import EditConfig
from mda.types import Changes, Scores, Stream, TokenScores

Counter = Callable[[np.ndarray], np.ndarray]
"""Sample ids -> a number for each."""


@dataclass(frozen=True)
class Choice:
    """The window of a stream, the scores of its samples, and the samples that an edit chooses."""

    settings: Any  # InterventionConfig; only an EditConfig chooses samples
    unit: str  # whose scores decide
    base: Stream  # the unedited steps of the window
    corpus: Corpus
    unused: np.ndarray  # ids of the samples that the stream has after the window
    run_seed: int
    fetch: Callable[[np.ndarray], None] = lambda ids: None  # makes samples' rows readable
    of_samples: Scores | None = None  # None where the settings choose no samples
    of_tokens: TokenScores | None = None  # None where no tokens are scored
    repetition: Counter | None = None  # of samples, which the package of estimators counts

    @property
    def start(self) -> int:
        """The first step of the window."""
        return self.base.start

    @property
    def end(self) -> int:
        """The step after the window."""
        return self.base.end

    @property
    def scores(self) -> Scores:
        """The samples' scores. Raises ValueError where nothing is chosen by them."""
        if self.of_samples is None:
            raise ValueError("the edit reads scores, which its settings do not ask for")
        return self.of_samples

    @cached_property
    def sample_ids(self) -> np.ndarray:
        """The ids of the chosen samples, int64 [n], in stream order."""
        given = self.corpus, self.unit, self.settings, self.scores, self.run_seed
        return select(*given, self.repetition)

    @property
    def steps(self) -> np.ndarray:
        """The step at which each chosen sample is seen, int64 [n]."""
        return self.steps_of(self.sample_ids)

    def steps_of(self, sample_ids: np.ndarray) -> np.ndarray:
        """Returns the step at which each of some samples of the window is seen, int64 [n]."""
        return steps_of(self.scores, sample_ids, self.start, self.end)

    def seed(self, *draws: int) -> int:
        """Returns the seed of the edit's draws in this run; further numbers give further seeds."""
        return mixed_seed(self.run_seed, self.settings.seed, *draws)

    def rows(self, sample_ids: np.ndarray) -> np.ndarray:
        """Returns the tokens of samples, int64 [n, T + 1]."""
        self.fetch(sample_ids)
        return self.corpus.rows(sample_ids).numpy()

    @property
    def n_tokens(self) -> int:
        """The number of tokens that the settings' amount means, of all in the window."""
        n = len(self.scores.sample_ids) * self.corpus.seq_len
        return amount(n, self.settings.fraction, self.settings.count, "tokens")

    def order(self, by: str | None = None) -> np.ndarray:
        """Returns the places of samples among the scores in the order of the selection, int64.

        `by` is another selection than the settings' own: `top`, `bottom` or `random`.
        """
        label = self.settings.label
        labels = self.corpus.labels_of(self.scores.sample_ids) if label else None
        select: str = by or self.settings.select
        return ranked(self.scores, self.unit, select, label=label, labels=labels, seed=self.seed())

    def rewritten(
        self, sample_ids: np.ndarray, positions: np.ndarray, tokens: np.ndarray
    ) -> Changes:
        """Returns the changes that put tokens at positions of samples, one entry for each token."""
        changes = spans(
            sample_ids, self.steps_of(sample_ids), positions, tokens,
            self.start, self.end, first_id=len(self.corpus.tokens),
        )  # fmt: skip
        return replace(changes, rows=rewritten(changes, self.rows))


def select(
    corpus: Corpus,
    unit: str,
    config: EditConfig,
    scores: Scores,
    run_seed: int,
    repetition: Counter | None = None,
) -> np.ndarray:
    """Returns sample ids to edit, in stream order; with `match`, a matched random set.

    Random choices depend on the run's seed as well as on the edit's.
    """
    seed = mixed_seed(run_seed, config.seed)
    labels = corpus.labels_of(scores.sample_ids)
    lower, upper = config.band or (None, None)
    chosen = choose(
        scores,
        unit,
        config.select,
        fraction=config.fraction,
        count=config.count,
        lower=lower,
        upper=upper,
        label=config.label,
        labels=labels,
        ids=config.ids,
        seed=seed,
    )
    if config.match == "none":
        return chosen
    groups = _groups(config, scores, labels, repetition)
    exclude = config.match_targeted == "exclude"
    return matched_random(scores.sample_ids, groups, chosen, seed, exclude)


def _groups(
    config: EditConfig, scores: Scores, labels: Sequence[str], repetition: Counter | None
) -> np.ndarray:
    """Returns the group of each sample in the properties that are matched, [N].

    A quantity alone has deciles; two have quintiles each, so that their groups are not too small.
    """
    by = config.matched_by
    if "loss" in by and np.isnan(scores.losses).any():
        raise ValueError(f"match={config.match}: these scores have come without samples' losses")
    quantiles = 5 if {"loss", "repetition"} <= {*by} else 10
    sides: list[Sequence[str]] = [labels] if "label" in by else []
    if "loss" in by:
        sides.append(loss_groups(scores.losses, quantiles).astype(str).tolist())
    if "repetition" in by:
        assert repetition is not None  # what makes a choice gives it
        counted = repetition(scores.sample_ids)
        sides.append(loss_groups(counted, quantiles).astype(str).tolist())
    return np.array([" ".join(names) for names in zip(*sides, strict=True)])
