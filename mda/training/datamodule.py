"""A loader whose batch is a pure function of the step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from mda.types import Schedule


class Rows(Protocol):
    """The part of a corpus that training needs."""

    @property
    def seq_len(self) -> int: ...

    def rows(self, sample_ids: np.ndarray) -> torch.Tensor: ...


class StepDataset(IterableDataset):
    """Batches of the schedule's steps [first, end), one dictionary each."""

    def __init__(self, corpus: Rows, schedule: Schedule, first: int):
        self.corpus, self.schedule, self.first = corpus, schedule, first

    def __len__(self) -> int:
        return self.schedule.end - self.first

    def __iter__(self) -> Iterator[dict[str, torch.Tensor | int]]:
        for step in range(self.first, self.schedule.end):
            sample_ids, _ = self.schedule.at(step)
            yield {
                "tokens": self.corpus.rows(sample_ids),
                "weights": loss_weights(self.schedule, step, self.corpus.seq_len),
                "batch_size": self.schedule.batch_size,
            }


def loss_weights(schedule: Schedule, step: int, seq_len: int) -> torch.Tensor:
    """Returns the loss weights of one step: of samples, [B], or where tokens are masked, [B, T]."""
    weights_B = torch.from_numpy(schedule.at(step)[1])
    masked = torch.from_numpy(schedule.masked_at(step))
    if not len(masked):
        return weights_B
    weights_BT = weights_B[:, None].repeat(1, seq_len)
    weights_BT[masked[:, 0], masked[:, 1]] = 0
    return weights_BT


class ScheduleData(pl.LightningDataModule):
    """Serves a schedule from step `first` on."""

    def __init__(self, corpus: Rows, schedule: Schedule, first: int):
        super().__init__()
        self.dataset = StepDataset(corpus, schedule, first)

    def train_dataloader(self) -> DataLoader:
        """Returns one batch for each remaining update of the schedule."""
        return DataLoader(self.dataset, batch_size=None)
