"""The types that cross package borders, and the key to every shape in this project.

Dimension key, used as suffixes (`x_BTD` is [batch, positions, d_model]):

    B  sequences of a batch          T  positions of a sequence (without the last target)
    N  samples that are scored       M  sequences of a probe
    L  layers                        H  heads of a layer
    D  d_model                       K  d_head (D = H * K)
    I, J  input and output size of a parameter block
    V  vocabulary                    U  units

A *sample* is one row of the token stream, T + 1 tokens; its id is its row number in the corpus.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Document(NamedTuple):
    """One text with its class label and where it came from."""

    label: str
    text: str
    source: str


class HeadId(NamedTuple):
    """One attention head; prints as `L3H1` and sorts by layer, then head."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, text: str) -> HeadId:
        """`L3H1` -> HeadId(3, 1). Raises ValueError for anything else."""
        if not (match := re.fullmatch(r"L(\d+)H(\d+)", text)):
            raise ValueError(f"{text!r} is no head; write it like L3H1")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Schedule:
    """What is trained on at each step of [start, end): sample ids and their loss weights.

    Step `start + i` trains on rows `offsets[i]:offsets[i + 1]` of `sample_ids` and `weights`.
    Its loss is sum_j w_j * l_j / batch_size, with l_j the mean token loss of sample j in nats and
    `batch_size` that of the unedited stream: a weight of 0 takes a sample out and leaves the
    others' gradients as they were, a second copy is the same as a weight of 2.
    """

    start: int
    batch_size: int
    offsets: np.ndarray  # int64 [steps + 1]
    sample_ids: np.ndarray  # int64 [rows]
    weights: np.ndarray  # float32 [rows]

    @property
    def end(self) -> int:
        return self.start + len(self.offsets) - 1

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample ids and weights of one step. Raises IndexError outside [start, end)."""
        if not self.start <= step < self.end:
            raise IndexError(f"step {step} is outside [{self.start}, {self.end})")
        rows = slice(*self.offsets[step - self.start : step - self.start + 2])
        return self.sample_ids[rows], self.weights[rows]


@dataclass(frozen=True)
class Scores:
    """Influence of every sample of a window on every unit.

    Sign, everywhere in this project: a score > 0 means that up-weighting the sample raises the
    unit's probe. `values[n, u]` belongs to sample `sample_ids[n]` and unit `units[u]`, a name
    such as `L3H1` or `mechanism`.
    """

    sample_ids: np.ndarray  # int64 [N], in stream order, unique
    steps: np.ndarray  # int64 [N], the training step at which each sample is seen
    values: np.ndarray  # float32 [N, U]
    units: tuple[str, ...]
    losses: np.ndarray  # float32 [N], mean token loss in nats at the scored checkpoint

    def of(self, unit: str) -> np.ndarray:
        """Scores of one unit, float32 [N]. Raises KeyError with the units there are."""
        if unit not in self.units:
            raise KeyError(f"no scores for {unit!r}; there are {', '.join(self.units)}")
        return self.values[:, self.units.index(unit)]


@dataclass(frozen=True)
class EditPlan:
    """What an arm does to the stream inside the window [start, end): inspectable, saved as CSV.

    `action` is `none`, `mask`, `drop`, `replace`, `duplicate`, `upweight` or `insert`; the other
    columns are parallel: the sample, the step it concerns, its loss weight afterwards, and, for
    `replace`, the sample that takes its place (-1 otherwise).
    """

    action: str
    start: int
    end: int
    sample_ids: np.ndarray  # int64 [n]
    steps: np.ndarray  # int64 [n]
    weights: np.ndarray  # float32 [n]
    replacements: np.ndarray  # int64 [n]
