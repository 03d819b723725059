"""The protocol of an estimator, and the work that a stage or the library hands to it.

One file or class holds one estimator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from torch import Tensor

from mda.data.stream import Corpus
from mda.estimator.ekfac import Curvature, Fit
from mda.estimator.replay import TrainingState, TrainingWindow
from mda.estimator.score import SampleScores
from mda.schema import ConfigError, EstimatorConfig
from mda.types import Unit, Window
from mda.unit.blocks import BlockTensors
from mda.unit.kind import Measurement, UnitKind
from mda.unit.scope import UNIT, gradients_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Item = TypeVar("Item")

TokenScorer = Callable[[np.ndarray], Tensor]
"""Sample ids -> what the loss at each position adds to the samples' scores, float64 [n, T]."""


@dataclass(frozen=True)
class Work:
    """The samples and units to score, with models, curvature and resumable passes.

    `query`, `gradients`, `differentiable`, `second_moments` and `training` raise ValueError for an
    estimator whose settings do not list them in `requires`.
    """

    settings: EstimatorConfig
    corpus: Corpus
    sample_ids: np.ndarray  # int64 [N], the window's samples in the order of the run
    kind: UnitKind
    units: Sequence[Unit]
    found: str  # the unit that was located, or the mechanism
    members: Sequence[str]  # of the mechanism, else the unit alone
    steps: Sequence[int]  # what the estimator's `steps` answered
    seed: int  # the run's own
    adam_eps: float  # what the run's Adam adds to the root of a second moment

    @property
    def query(self) -> Sequence[Tensor]:
        """The measurement's token sequences, each int64 [S]; `corpus.decode` gives their text."""
        self.lend("a query", self.settings.requires.query)
        return self.kind.query()

    def gradients(self, model: PreTrainedModel) -> BlockTensors:
        """Returns the gradient of each unit's measurement, or metric, in its own blocks.

        Beyond its own parameters, the found unit is the only one.
        """
        required = self.settings.requires
        self.lend("gradients", bool(required.target))
        if required.scope == UNIT:
            return self.kind.gradients(model, self.units, required.target)
        return gradients_of(self.differentiable(self.found), model, self.units[0])

    def differentiable(self, unit: str) -> Measurement:
        """Returns a unit's metric, or measurement, as a differentiable function of the model."""
        self.lend("a function of the model", self.settings.requires.found)
        return self.kind.differentiable(unit, self.members, self.settings.requires.target)

    def lend(self, what: str, required: bool) -> None:
        """Raises ValueError where an estimator reads something that it does not require."""
        if not required:
            raise ValueError(
                f"the estimator asks for {what}; its settings' `requires` does not say so"
            )

    def model(self, step: int) -> PreTrainedModel:
        """Returns the model at a kept checkpoint, on the device of training."""
        raise NotImplementedError

    def curvature(self, step: int, fit: Fit) -> Curvature:
        """Returns the EK-FAC curvature of a fit at a checkpoint, of a subset of the samples."""
        raise NotImplementedError

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of the update after a step."""
        raise NotImplementedError

    def second_moments(self, step: int) -> dict[str, Tensor]:
        """Returns Adam's bias-corrected second moments by parameter name."""
        raise NotImplementedError

    def training(self) -> tuple[TrainingWindow, dict[int, TrainingState]]:
        """Returns the window as it was trained, and its states at the estimator's steps."""
        raise NotImplementedError

    def keep(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Saves the progress of a computation, for resuming after a kill."""

    def kept(self, name: str) -> dict[str, Tensor] | None:
        """Returns the progress that was saved last; None at the start."""
        return None

    def bar(self, items: Iterable[Item], name: str, total: int) -> Iterator[Item]:
        """Yields items with a progress bar."""
        raise NotImplementedError

    def over_samples(self, name: str, scores: Callable[[np.ndarray], SampleScores]) -> SampleScores:
        """Runs a pass over all samples in resumable parts, which processes may share."""
        raise NotImplementedError


class Estimator(Protocol):
    """Influence, or a proxy for it, of every sample on every unit."""

    def steps(self, kept: Sequence[int], window: Window) -> tuple[int, ...]:
        """Returns the steps whose state it reads: kept checkpoints, or also the window's start.

        Raises ConfigError where a configured step is not kept.
        """
        ...

    def score(self, work: Work) -> SampleScores:
        """Returns scores [N, U] and losses [N] in nats, NaN where it computes none."""
        ...

    def token_influence(self, work: Work, sample_ids: np.ndarray) -> Tensor | None:
        """Returns each token's part of some samples' scores for the found unit, [n, T].

        Returns None if the estimator does not score tokens.
        """
        ...


class TokenEstimator(Estimator, Protocol):
    """An estimator that also scores the losses of single tokens: its settings give `tokens`."""

    def target_influence(self, work: Work) -> TokenScorer:
        """Returns the function that scores single losses for the found unit."""
        ...


def kept_step(kept: Sequence[int], step: int, key: str) -> int:
    """Returns `step` if the run kept its checkpoint.

    Raises ConfigError with the kept steps.
    """
    if step not in kept:
        there = ", ".join(map(str, kept))
        raise ConfigError(f"{key}={step}: the base run kept no such checkpoint; expected {there}")
    return step


def step_of(checkpoint: int | str, kept: Sequence[int], window: Window) -> int:
    """Returns the kept checkpoint that `estimator.checkpoint` means.

    `onset`, `window_middle` and `window_end` mean the one nearest to that step, the earlier of two.
    """
    if isinstance(checkpoint, int):
        return kept_step(kept, checkpoint, "estimator.checkpoint")
    target = {
        "onset": window.onset,
        "window_middle": (window.start + window.end) / 2,
        "window_end": window.end,
    }[checkpoint]
    if target is None:
        raise ConfigError("estimator.checkpoint=onset: the unit did not emerge in the base run")
    return min(kept, key=lambda at: (abs(at - target), at))
