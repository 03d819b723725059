"""The base of estimators whose score is minus a direction times a sample's gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mda.estimator.estimator import TokenScorer, Work
from mda.estimator.score import (
    SampleScores,
    batches,
    score_samples,
    target_influence,
    token_influence,
)
from mda.types import Window
from mda.unit.blocks import Directions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DirectionEstimator(ABC):
    """An estimator defined by a unit's direction at each step.

    Scores are summed over the steps, `score(z) = - sum_k <P_k, grad L(z; theta_k)>`.
    """

    settings: Any  # a dataclass with a `batch_size`

    def __init__(self, settings: Any) -> None:
        """Takes the settings of `estimator=`."""
        self.settings = settings

    @property
    def _skip(self) -> int:
        """The number of first positions at which the effect of the parameters is left out."""
        return getattr(self.settings, "skip_positions", 0)

    @abstractmethod
    def steps(self, kept: Sequence[int], window: Window) -> tuple[int, ...]:
        """Returns the kept checkpoints that it reads."""

    @abstractmethod
    def directions(self, work: Work, step: int) -> tuple[PreTrainedModel, Directions]:
        """Returns the model at a step, and each unit's direction P."""

    def score(self, work: Work) -> SampleScores:
        """Returns the scores of every sample; the losses are those at the last step."""
        total: SampleScores | None = None
        skip = self._skip
        for step in work.steps:
            model, directions = self.directions(work, step)

            def part(ids: np.ndarray, model=model, directions=directions) -> SampleScores:
                rows, batch_size = work.corpus.rows, self.settings.batch_size
                return score_samples(model, rows, ids, directions, batch_size, skip)

            at_step = work.over_samples(f"scores at step {step}", part)
            if total is not None:
                at_step.values_NU.add_(total.values_NU)  # in place: they may be too many for memory
            total = at_step
        if total is None:
            raise ValueError("no checkpoint to score; expected one or more")
        return total

    def token_influence(self, work: Work, sample_ids: np.ndarray) -> Tensor:
        """Returns each token's influence on the found unit for some samples, [n, T] float64."""
        parts, skip = [], self._skip
        for step in work.steps:
            model, directions = self.directions(work, step)
            direction = directions.of_unit(
                work.found
            )  # of all neurons it would not fit into memory
            of_batches = [
                token_influence(model, work.corpus.rows(ids), direction, skip)[..., 0]
                .cpu()
                .double()
                for ids in batches(sample_ids, self.settings.batch_size)
            ]
            parts.append(torch.cat(of_batches))
        return torch.stack(parts).sum(0)

    def target_influence(self, work: Work) -> TokenScorer:
        """Returns a function for the influence of every loss of some samples, [n, T] float64.

        The models of all steps are in memory at the same time.
        """
        unit = next(unit for unit in work.units if unit.name == work.found)
        moves, skip = [], self._skip
        for step in work.steps:
            model, directions = self.directions(work, step)
            moves.append((model, directions.tangents(unit, dict(model.named_parameters()))))

        def influence(ids: np.ndarray) -> Tensor:
            of_steps = [
                torch.cat([
                    target_influence(model, work.corpus.rows(part), move, skip).cpu().double()
                    for part in batches(ids, self.settings.batch_size)
                ])
                for model, move in moves
            ]  # fmt: skip
            return torch.stack(of_steps).sum(0)

        return influence
