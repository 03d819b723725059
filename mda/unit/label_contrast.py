"""Separation of one class of held-out text from the rest by an activation: metric and measurement.

Metric: the area under the ROC curve (ROC AUC), the probability that the activation at a random
token of the class is above that at a random token of the others, ties counting half; .5 is chance.

Measurement: the mean activation over tokens of the class minus that over the others, which has a
gradient. The two are taken on different held-out samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from mda.unit.kind import Materials

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK = 2**12  # tokens that go through the model together, one row at least
KEPT = 2**29  # activations that a metric holds at a time: 2 GB of float32

Id = TypeVar("Id")


@dataclass(frozen=True)
class LabelledText:
    """Held-out rows [M, T + 1], and the mask of those with the label, [M]."""

    tokens_MS: Tensor
    has_label_M: Tensor

    @classmethod
    def draw(cls, materials: Materials, label: str, ids: np.ndarray) -> LabelledText:
        """Returns these samples' text.

        Raises ValueError for a label that none or all have.
        """
        has = materials.with_label(ids, label)
        return cls(materials.corpus.rows(ids), torch.from_numpy(has))

    def chunks(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields input tokens [B, T] and contrast weights [B, T], some rows at a time.

        The weights are 1 / n at the n tokens of the class and -1 / n' at the n' others.
        """
        n_tokens = self.tokens_MS.shape[1] - 1
        n = int(self.has_label_M.sum()) * n_tokens
        rest = self.has_label_M.numel() * n_tokens - n
        weights_M = torch.full((len(self.has_label_M),), -1 / rest, dtype=torch.float64)
        weights_M[self.has_label_M] = 1 / n
        rows = max(1, CHUNK // n_tokens)
        for tokens, weights in zip(self.tokens_MS.split(rows), weights_M.split(rows), strict=True):
            yield tokens[:, :-1].to(device), weights[:, None].expand(-1, n_tokens).to(device)

    def auc(
        self,
        device: torch.device,
        ids: Sequence[Id],
        activations: Callable[[Tensor, Sequence[Id]], Tensor],
    ) -> np.ndarray:
        """Returns the ROC AUC of each of `ids`, [U].

        `activations` returns those of some of them, [B, T, U]. The model is run again for every
        `KEPT` activations, because those of all features of an autoencoder on long sequences do not
        fit into memory.
        """
        is_positive_N = self.has_label_M.repeat_interleave(self.tokens_MS.shape[1] - 1).numpy()
        areas, size = np.empty(len(ids)), max(1, KEPT // len(is_positive_N))
        for start in range(0, len(ids), size):
            some = ids[start : start + size]
            values_NU, row = np.empty((len(is_positive_N), len(some)), np.float32), 0
            for inputs_BT, _ in self.chunks(device):
                part = activations(inputs_BT, some).flatten(0, 1).float().cpu().numpy()
                values_NU[row : row + len(part)] = part
                row += len(part)
            areas[start : start + size] = roc_auc(values_NU, is_positive_N)
        return areas


def contrast(
    model: PreTrainedModel, text: LabelledText, activation: Callable[[Tensor], Tensor]
) -> Tensor:
    """Returns the measurement as a differentiable scalar; `activation` runs on [B, T] tokens."""
    parts = [
        (activation(inputs_BT) * weights_BT.to(model.dtype)).sum()
        for inputs_BT, weights_BT in text.chunks(model.device)
    ]
    return torch.stack(parts).sum()


def roc_auc(activations_NU: np.ndarray, is_positive_N: np.ndarray) -> np.ndarray:
    """Returns the ROC AUC of every column, [U].

    It is the Mann-Whitney U of the ranks over n_pos * n_neg.
    """
    from scipy.stats import rankdata  # takes half a second

    n_positive = int(is_positive_N.sum())
    n_negative = len(is_positive_N) - n_positive
    areas = np.empty(activations_NU.shape[1])
    for start in range(0, len(areas), 64):  # ranks are float64: keep few columns at a time
        columns = slice(start, start + 64)
        ranks = rankdata(activations_NU[:, columns], axis=0)
        rank_sum = ranks[is_positive_N].sum(0)
        areas[columns] = rank_sum - n_positive * (n_positive + 1) / 2
    return areas / (n_positive * n_negative)
