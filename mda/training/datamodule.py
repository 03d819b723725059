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
    """What training asks of a corpus."""

    @property
    def seq_len(self) -> int: ...

    def rows(self, sample_ids: np.ndarray) -> torch.Tensor: ...


class StepDataset(IterableDataset):
    """Batches of the schedule's steps [first, end), one dictionary each."""

    def __init__(self, corpus: Rows, plan: Schedule, first: int):
        self.corpus, self.plan, self.first = corpus, plan, first

    def __len__(self) -> int:
        return self.plan.end - self.first

    def __iter__(self) -> Iterator[dict[str, torch.Tensor | int]]:
        for step in range(self.first, self.plan.end):
            sample_ids, weights = self.plan.at(step)
            yield {
                "tokens": self.corpus.rows(sample_ids),
                "weights": torch.from_numpy(weights),
                "batch_size": self.plan.batch_size,
            }


class ScheduleData(pl.LightningDataModule):
    """Serves a schedule from step `first` on."""

    def __init__(self, corpus: Rows, plan: Schedule, first: int):
        super().__init__()
        self.dataset = StepDataset(corpus, plan, first)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.dataset, batch_size=None)
