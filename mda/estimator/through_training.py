"""The estimator that differentiates the training itself, for the found unit.

score(z) = d mu(theta_end) / d w_z: the derivative of a unit's metric (or measurement, as
`estimator.target` says) at the window's end by the
sample's loss weight, through every update in between; see `unrolled`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mda.estimator.estimator import Work
from mda.estimator.score import SampleScores
from mda.estimator.unrolled import Progress, unrolled_influence
from mda.schema import ConfigError, UnrolledConfig
from mda.types import Window

PROGRESS = "unrolled"


class Unrolled:
    """Influence through all updates of the window."""

    def __init__(self, settings: UnrolledConfig) -> None:
        self.settings = settings

    def steps(self, kept: Sequence[int], window: Window) -> tuple[int, ...]:
        """Returns the window's start and the kept checkpoints inside, which save training."""
        return (window.start, *(step for step in kept if window.start < step < window.end))

    def score(self, work: Work) -> SampleScores:
        """Returns scores of the found unit; NaN for the other units of the pass, and for losses."""
        window, states = work.training()
        kept = work.kept(PROGRESS)
        settings, n_steps = self.settings, window.stream.end - window.stream.start
        segment = min(settings.segment or n_steps, n_steps)
        total = -(-(settings.last_steps or n_steps) // segment) * max(1, settings.n_perturbed)
        try:
            segments = unrolled_influence(
                window,
                states,
                [work.differentiable(work.found)],
                segment=None if settings.segment is None else segment,
                last_steps=settings.last_steps,
                n_perturbed=settings.n_perturbed,
                perturbation=settings.perturbation,
                seed=settings.seed,
                resume=None if kept is None else Progress.of(kept),
            )
            progress = None if kept is None else Progress.of(kept)
            for progress in work.bar(segments, "back through training", total):
                work.keep(PROGRESS, progress.tensors())
        except ValueError as error:
            raise ConfigError(f"estimator=unrolled: {error}") from error
        assert progress is not None
        found_N = progress.values_NU[:, 0].double().cpu()
        column = [unit.name for unit in work.units].index(work.found)
        place = {int(id_): at for at, id_ in enumerate(work.sample_ids)}

        def part(ids: np.ndarray) -> SampleScores:
            values = torch.full((len(ids), len(work.units)), torch.nan, dtype=torch.float64)
            values[:, column] = found_N[[place[int(id_)] for id_ in ids]]
            return SampleScores(values, torch.full((len(ids),), torch.nan))

        return work.over_samples("scores through training", part)

    def token_influence(self, work: Work, sample_ids: np.ndarray) -> None:
        return None
