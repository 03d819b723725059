"""What scores without a model have in common: each is the sum of its tokens' parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mda.estimator.estimator import TokenScorer, Work
from mda.estimator.score import SampleScores, batches
from mda.types import Unit, Window

ROWS = 4096  # samples that are counted at a time


class Lexical(ABC):
    """A score of a sample's tokens, the same for every unit."""

    bar: str  # what its pass over the samples is called

    def steps(self, kept: Sequence[int], window: Window) -> tuple[int, ...]:
        """Returns no step, because no model is read."""
        return ()

    def score(self, work: Work) -> SampleScores:
        """Returns the sums of the tokens' parts for every unit, [N, U], and no losses."""
        tokens = self.target_influence(work)

        def part(ids: np.ndarray) -> SampleScores:
            sums_N = torch.cat([tokens(some).sum(1) for some in batches(ids, ROWS)])
            return SampleScores(for_all(sums_N, work.units), torch.full_like(sums_N, torch.nan))

        return work.over_samples(self.bar, part)

    def token_influence(self, work: Work, sample_ids: np.ndarray) -> Tensor:
        """Returns each token's part of some samples' scores, [n, T]."""
        return self.target_influence(work)(sample_ids)

    @abstractmethod
    def target_influence(self, work: Work) -> TokenScorer:
        """Returns the parts of single losses: position t has that of predicting token t + 1."""


def for_all(values_N: Tensor, units: Sequence[Unit]) -> Tensor:
    """Returns the same score for every unit, [N, U]."""
    return values_N[:, None].expand(-1, len(units)).contiguous()
