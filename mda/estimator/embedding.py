"""Similarity of a sample to the probe in the model's own representation: no gradient.

    score(z) = cos(h(z), h(Q)),    h = mean hidden state over positions

at the scored checkpoint, with Q all of the probe's sequences and every position of theirs counting
alike. Hidden states are those of the inputs, which are all tokens of a row but the last: after the
final norm, or the residual stream after one layer. Representation similarity is the usual baseline
of influence without gradients (Hanawa et al. 2021, arXiv 2006.04528, where cosine is one of those
that are compared).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mda.estimator.estimator import Work, step_of
from mda.estimator.lexical import for_all
from mda.estimator.score import SampleScores, batches
from mda.model.architecture import architecture
from mda.sae.hooks import Hookpoint, activations
from mda.schema import EmbeddingConfig
from mda.types import Window
from mda.unit.capture import frozen

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Embedding:
    """Cosine similarity of mean hidden states, the same for every unit."""

    def __init__(self, settings: EmbeddingConfig) -> None:
        self.settings = settings

    def steps(self, kept: Sequence[int], window: Window) -> tuple[int, ...]:
        return (step_of(self.settings.checkpoint, kept, window),)

    def score(self, work: Work) -> SampleScores:
        (step,) = work.steps
        model, rows = work.model(step), work.corpus.rows
        query_D = self._mean_of_query(model, work.query)

        def part(ids: np.ndarray) -> SampleScores:
            passes = batches(ids, self.settings.batch_size)
            means_ND = torch.cat([self._hidden(model, rows(some)).mean(1) for some in passes])
            similarity_N = torch.cosine_similarity(means_ND, query_D[None], dim=1).cpu()
            return SampleScores(
                for_all(similarity_N, work.units), torch.full_like(similarity_N, torch.nan)
            )

        return work.over_samples(f"embeddings at step {step}", part)

    def token_influence(self, work: Work, sample_ids: np.ndarray) -> None:
        return None

    def _mean_of_query(self, model: PreTrainedModel, query: Iterable[Tensor]) -> Tensor:
        """Returns the mean hidden state of sequences of any lengths, [D]."""
        hidden = [self._hidden(model, sequence[None])[0] for sequence in query]
        return torch.cat(hidden).mean(0)

    @torch.no_grad()
    def _hidden(self, model: PreTrainedModel, rows_BS: Tensor) -> Tensor:
        """Returns the hidden states of the rows' inputs, [B, T, D], in float64."""
        inputs_BT, layer = rows_BS[:, :-1].to(model.device), self.settings.layer
        with frozen(model):
            if layer is None:
                hidden_BTD = model.base_model(inputs_BT, use_cache=False).last_hidden_state
            else:
                hook = Hookpoint("resid_post", layer)
                hidden_BTD = activations(model, inputs_BT, hook, architecture(model))
        return hidden_BTD.double()
