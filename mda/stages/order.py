"""The order in which a run sees its corpus: the samples of each unedited step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mda.data.stream import Corpus, stream_order, unedited
from mda.schema import DataConfig
from mda.types import Stream


@dataclass(frozen=True)
class Order:
    """A corpus in the order of one run and of all its arms."""

    corpus: Corpus
    drawn_from: int | None  # what the order is drawn from; None for the corpus' own
    batch_size: int
    seed: int  # of the run

    @classmethod
    def of(cls, corpus: Corpus, data: DataConfig, batch_size: int, seed: int) -> Order:
        """Returns the order drawn from `data.order_seed`, else from the run's seed.

        Without a shuffle it is in the stored order.
        """
        drawn = seed if data.order_seed is None else data.order_seed
        return cls(corpus, drawn if data.shuffle else None, batch_size, seed)

    @property
    def inputs(self) -> dict[str, object]:
        """The inputs that decide a step's samples, beside the corpus."""
        return {"order": self.drawn_from, "batch_size": self.batch_size}

    @property
    def samples(self) -> np.ndarray:
        """The sample id at each position of the stream."""
        return stream_order(self.corpus, self.drawn_from)

    def stream(self, start: int, end: int) -> Stream:
        """Returns the unedited steps. Raises DataError where the stream is too short for them."""
        return unedited(self.samples, self.batch_size, start, end)

    def following(self, step: int) -> np.ndarray:
        """Returns the samples that a run would see from a step on, to the end of the stream."""
        return self.samples[step * self.batch_size :]
