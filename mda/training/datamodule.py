"""A loader whose batch is a pure function of the step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from mda.training.scoped import Reach
from mda.types import Stream


class Rows(Protocol):
    """The part of a corpus that training needs."""

    @property
    def seq_len(self) -> int: ...

    def rows(self, sample_ids: np.ndarray) -> torch.Tensor: ...


class StepDataset(IterableDataset):
    """Batches of the stream's steps [first, end), one dictionary each.

    With a `reach`, an edited step's batch has the unedited one under `unedited`.
    """

    def __init__(self, corpus: Rows, stream: Stream, first: int, reach: Reach | None = None):
        self.corpus, self.stream, self.first, self.reach = corpus, stream, first, reach

    def __len__(self) -> int:
        return self.stream.end - self.first

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for step in range(self.first, self.stream.end):
            batch = self._batch(self.stream, step)
            if self.reach is not None and self.reach.edits(self.stream, step):
                batch["unedited"] = self._batch(self.reach.unedited, step)
            yield batch

    def _batch(self, stream: Stream, step: int) -> dict[str, Any]:
        return {
            "tokens": self.corpus.rows(stream.at(step)[0]),
            "weights": loss_weights(stream, step, self.corpus.seq_len),
            "batch_size": stream.batch_size,
        }


def loss_weights(stream: Stream, step: int, seq_len: int) -> torch.Tensor:
    """Returns the loss weights of one step: of samples, [B], or where tokens are masked, [B, T]."""
    weights_B = torch.from_numpy(stream.at(step)[1])
    masked = torch.from_numpy(stream.masked_at(step))
    if not len(masked):
        return weights_B
    weights_BT = weights_B[:, None].repeat(1, seq_len)
    weights_BT[masked[:, 0], masked[:, 1]] = 0
    return weights_BT


class StreamData(pl.LightningDataModule):
    """Serves a stream from step `first` on."""

    def __init__(self, corpus: Rows, stream: Stream, first: int, reach: Reach | None = None):
        super().__init__()
        self.dataset = StepDataset(corpus, stream, first, reach)

    def train_dataloader(self) -> DataLoader:
        """Returns one batch for each remaining update of the stream."""
        return DataLoader(self.dataset, batch_size=None)
