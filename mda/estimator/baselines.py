"""Baseline scores, which an estimator must beat to be worth its cost.

random          independent standard normal numbers
repetition      information in the tokens that a copy of earlier text predicts; needs no model
loss            the sample's mean token loss in nats
gradient_norm   ||grad L(z)|| in the unit's own parameters
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mda.data.stream import mixed_seed
from mda.estimator.estimator import TokenScorer, Work, step_of
from mda.estimator.kfac_math import sequence_gradients
from mda.estimator.lexical import Lexical, for_all
from mda.estimator.repetition import repetition
from mda.estimator.score import Rows, SampleScores, batches
from mda.schema import GradientNormConfig, LossConfig, RandomConfig, RepetitionConfig
from mda.types import ParameterBlock, Unit, Window
from mda.unit.blocks import index_of
from mda.unit.capture import capture, modules_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Random:
    """Scores drawn from a seeded generator, for edits of equal size without information."""

    def __init__(self, settings: RandomConfig) -> None:
        self.settings = settings

    def steps(self, kept: Sequence[int], window: Window) -> tuple[int, ...]:
        return ()

    def score(self, work: Work) -> SampleScores:
        seed, n_units = mixed_seed(work.seed, self.settings.seed), len(work.units)

        def part(ids: np.ndarray) -> SampleScores:
            return SampleScores(
                random_scores(ids, n_units, seed), torch.full((len(ids),), torch.nan)
            )

        return work.over_samples("random scores", part)

    def token_influence(self, work: Work, sample_ids: np.ndarray) -> None:
        return None

    def target_influence(self, work: Work) -> TokenScorer:
        seed, length = mixed_seed(work.seed, self.settings.seed, 1), work.corpus.seq_len
        return lambda ids: random_scores(ids, length, seed).double()


def random_scores(sample_ids: np.ndarray, n_units: int, seed: int) -> Tensor:
    """Returns independent standard normal scores, float32 [N, U]; of a sample's tokens with U = T.

    A sample's scores depend on seed and sample id only, so that they are the same in every window
    and on any number of processes.
    """
    generators = (np.random.Generator(np.random.Philox(key=[seed, int(i)])) for i in sample_ids)
    scores = [g.standard_normal(n_units, dtype=np.float32) for g in generators]
    return torch.from_numpy(np.stack(scores)) if scores else torch.zeros(0, n_units)


class Repetition(Lexical):
    """The information in a sample that copying from its earlier text predicts."""

    bar = "repetitions"

    def __init__(self, settings: RepetitionConfig) -> None:
        self.settings = settings

    def target_influence(self, work: Work) -> TokenScorer:
        """Returns the scores of single losses: position t is that of predicting token t + 1."""
        rows, counts = work.corpus.rows, work.corpus.counts
        return lambda ids: torch.from_numpy(repetition(rows(ids).numpy(), counts))


class Loss:
    """Scores a sample by its mean token loss in nats."""

    def __init__(self, settings: LossConfig) -> None:
        self.settings = settings

    def steps(self, kept: Sequence[int], window: Window) -> tuple[int, ...]:
        return (step_of(self.settings.checkpoint, kept, window),)

    def score(self, work: Work) -> SampleScores:
        (step,) = work.steps
        model = work.model(step)
        block = [part.block for part in work.units[0].parts][:1]  # any: its gradient is not used

        def part(ids: np.ndarray) -> SampleScores:
            passes = batches(ids, self.settings.batch_size)
            losses = [
                capture(model, work.corpus.rows(x), modules_of(block)).losses_B for x in passes
            ]
            losses_N = torch.cat(losses).cpu()
            return SampleScores(for_all(losses_N, work.units), losses_N)

        return work.over_samples(f"losses at step {step}", part)

    def token_influence(self, work: Work, sample_ids: np.ndarray) -> None:
        return None


class GradientNorm:
    """Scores a sample by the norm of its gradient in each unit's own parameters."""

    def __init__(self, settings: GradientNormConfig) -> None:
        self.settings = settings

    def steps(self, kept: Sequence[int], window: Window) -> tuple[int, ...]:
        return (step_of(self.settings.checkpoint, kept, window),)

    def score(self, work: Work) -> SampleScores:
        (step,) = work.steps
        model, batch = work.model(step), self.settings.batch_size
        return work.over_samples(
            f"gradient norms at step {step}",
            lambda ids: gradient_norms(model, work.corpus.rows, ids, work.units, batch),
        )

    def token_influence(self, work: Work, sample_ids: np.ndarray) -> None:
        return None


def gradient_norms(
    model: PreTrainedModel, rows: Rows, sample_ids: np.ndarray, units: Sequence[Unit], batch: int
) -> SampleScores:
    """Returns ||grad L(z)|| over all of a unit's blocks, [N, U], of the mean token loss."""
    blocks: list[ParameterBlock] = list(dict.fromkeys(p.block for u in units for p in u.parts))
    index = index_of(units, blocks)
    values, losses = [], []
    for ids in batches(sample_ids, batch):
        captured = capture(model, rows(ids), modules_of(blocks))
        squares = captured.losses_B.new_zeros(len(ids), len(units))
        for block in blocks:
            gradients = sequence_gradients(captured.x(block), captured.dy(block))
            own_BH = gradients.square().sum((2, 3))
            at, rows_of = (side.to(own_BH.device) for side in index[block])
            own_BR = own_BH.expand(-1, int(rows_of.max()) + 1) if block.owners == 1 else own_BH
            squares.index_add_(1, at, own_BR[:, rows_of])
        values.append(squares.sqrt().cpu())
        losses.append(captured.losses_B.cpu())
    return SampleScores(torch.cat(values), torch.cat(losses))
