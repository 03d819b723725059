"""The order in which a run sees its corpus: which samples a step of the unedited stream has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mda.data.stream import Corpus, schedule, stream_order
from mda.schema import DataConfig
from mda.types import Schedule


@dataclass(frozen=True)
class Stream:
    """A corpus in the order of one run and of all its arms."""

    corpus: Corpus
    order: int | None  # what the order is drawn from; None for the corpus' own
    batch_size: int
    seed: int  # of the run

    @classmethod
    def of(cls, corpus: Corpus, data: DataConfig, batch_size: int, seed: int) -> Stream:
        """Drawn from `data.order_seed`, else from the run's seed; as stored without a shuffle."""
        drawn = seed if data.order_seed is None else data.order_seed
        return cls(corpus, drawn if data.shuffle else None, batch_size, seed)

    @property
    def inputs(self) -> dict[str, object]:
        """What decides which samples a step has, beside the corpus."""
        return {"order": self.order, "batch_size": self.batch_size}

    @property
    def samples(self) -> np.ndarray:
        """Position in the stream -> sample id."""
        return stream_order(self.corpus, self.order)

    def schedule(self, start: int, end: int) -> Schedule:
        """The unedited steps. Raises DataError where the stream is too short for them."""
        return schedule(self.samples, self.batch_size, start, end)

    def following(self, step: int) -> np.ndarray:
        """Samples that a run would see from a step on, to the end of the stream."""
        return self.samples[step * self.batch_size :]
