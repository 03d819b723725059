"""The types shared by packages, and the key to every shape in this project.

Dimension key, used as suffixes (`x_BTD` is [batch, positions, d_model]):

    B  sequences of a batch          T  positions of a sequence (without the last target)
    N  samples that are scored       M  sequences of a probe
    L  layers                        H  owners of a parameter block: heads, neurons, or 1
    D  d_model                       K  d_head
    I, J  input and output size of a parameter block, for one owner
    V  vocabulary                    U  units
    R  rows of a direction: owners of its block, or units that share a whole module

A *sample* is one row of the token stream, T + 1 tokens; its id is its row number in the corpus.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


class Document(NamedTuple):
    """One text with its class label and its source."""

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
        """Parses `L3H1` to HeadId(3, 1). Raises ValueError for anything else."""
        if not (match := re.fullmatch(r"L(\d+)H(\d+)", text)):
            raise ValueError(f"{text!r} names no attention head; write it like L3H1")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def names(cls, text: str) -> bool:
        """Returns whether a text is a head's name."""
        return re.fullmatch(r"L\d+H\d+", text) is not None


class Tap(NamedTuple):
    """Features of a module's input or output, laid out evenly among owners.

    Owner u has the `size` features from `start + (u // repeat) * stride` on. With one group all
    owners share them. `repeat` above 1 is grouped-query attention: that many query heads in turn
    share a group of key and value features. Features before the first whole stride of `start`
    belong to another map of the same module.
    """

    module: str  # its path in the model, as in `named_modules`
    size: int
    start: int = 0
    stride: int = 0
    groups: int = 1
    repeat: int = 1
    transposed: bool = False  # the module's weight is [inputs, outputs], as GPT-2's

    @property
    def owners(self) -> int:
        """The number of owners; 1 where all share the features."""
        return self.groups * self.repeat

    def of(self, x: Tensor) -> Tensor:
        """Returns the owners' features [.., owners, size] of a tensor [.., features]."""
        if self.groups > 1:
            first, start = self.start - self.start % self.stride, self.start % self.stride
            x = x[..., first : first + self.groups * self.stride]
            x = x.unflatten(-1, (self.groups, self.stride))[..., start : start + self.size]
        else:
            x = x.unsqueeze(-2)[..., self.start : self.start + self.size]
        return x.repeat_interleave(self.repeat, dim=-2) if self.repeat > 1 else x


@dataclass(frozen=True)
class ParameterBlock:
    """The same piece of a layer's linear maps for each of H owners: a weight [H, I, J].

    `y_h = x_h @ W_h`, where x_h are the owner's features of `input` and y_h those of `outputs`
    side by side, such as the query and the key of a head, which both read `input`. With `bias` the
    map's bias is part of it, as the weight of one more input that is always 1. A whole module is a
    block with one owner.
    """

    name: str  # L3.qk
    input: Tap
    outputs: tuple[Tap, ...]
    bias: bool = False

    @property
    def owners(self) -> int:
        """H, the number of owners."""
        return max(tap.owners for tap in (self.input, *self.outputs))

    @property
    def shape(self) -> tuple[int, int, int]:
        """[H, I, J]."""
        n_outputs = sum(tap.size for tap in self.outputs)
        return self.owners, self.input.size + self.bias, n_outputs

    @property
    def modules(self) -> tuple[str, ...]:
        """The paths of the modules whose input or output it consists of."""
        return tuple(dict.fromkeys(tap.module for tap in (self.input, *self.outputs)))

    def __str__(self) -> str:
        return self.name


class Part(NamedTuple):
    """The part of a block that one unit owns: its row of the block's tensors."""

    block: ParameterBlock
    row: int


@dataclass(frozen=True)
class Unit:
    """An interpretable unit (L3H1, L2N417, L2.mlp, L3F120, mechanism) and its own parameters."""

    name: str
    parts: tuple[Part, ...]

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Stream:
    """Samples and their loss weights at each step of [start, end).

    Step `start + i` trains on rows `offsets[i]:offsets[i + 1]` of `sample_ids` and `weights`. Its
    loss is sum_j w_j * l_j / batch_size, with l_j the mean token loss of sample j in nats and
    `batch_size` that of the unedited stream: a weight of 0 removes a sample without changing the
    others' gradients, and a second copy equals a weight of 2. `masked` lists single tokens whose
    loss does not count, as pairs of a row and a position, sorted; l_j is then the sum of the other
    tokens' losses, divided by T as before.
    """

    start: int
    batch_size: int
    offsets: np.ndarray  # int64 [steps + 1]
    sample_ids: np.ndarray  # int64 [rows]
    weights: np.ndarray  # float32 [rows]
    masked: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))  # [m, 2]

    @property
    def end(self) -> int:
        return self.start + len(self.offsets) - 1

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns sample ids and weights of one step. Raises IndexError outside [start, end)."""
        rows = self._rows(step)
        return self.sample_ids[rows], self.weights[rows]

    def masked_at(self, step: int) -> np.ndarray:
        """Returns a step's tokens whose loss does not count: row of the batch, position, [m, 2]."""
        rows = self._rows(step)
        first, last = np.searchsorted(self.masked[:, 0], [rows.start, rows.stop])
        return self.masked[first:last] - [rows.start, 0]

    def _rows(self, step: int) -> slice:
        if not self.start <= step < self.end:
            raise IndexError(f"step {step} is outside [{self.start}, {self.end})")
        return slice(*self.offsets[step - self.start : step - self.start + 2])


@dataclass(frozen=True)
class Scores:
    """The influence of every sample of a window on every unit.

    Sign, everywhere in this project: a score > 0 means that up-weighting the sample raises the
    unit's measurement. `values[n, u]` belongs to sample `sample_ids[n]` and unit `units[u]`, a name
    such as `L3H1` or `mechanism`.
    """

    sample_ids: np.ndarray  # int64 [N], in stream order, unique
    steps: np.ndarray  # int64 [N], the training step at which each sample is seen, rising
    values: np.ndarray  # float32 [N, U]
    units: tuple[str, ...]
    losses: np.ndarray  # float32 [N], mean token loss in nats at the last scored step; else NaN

    def of(self, unit: str) -> np.ndarray:
        """Returns the scores of one unit, float32 [N].

        Raises KeyError with the known units.
        """
        if unit not in self.units:
            raise KeyError(f"no scores for {unit!r}; there are {', '.join(self.units)}")
        return np.array(self.values[:, self.units.index(unit)])


@dataclass(frozen=True)
class TokenScores:
    """The part of each token's loss in the score of one unit, for a window.

    Position t is that of the loss, whose target is token t + 1; a row's sum is the sample's score.
    """

    sample_ids: np.ndarray  # int64 [N], in stream order
    steps: np.ndarray  # int64 [N]
    parts: Callable[[], Iterator[np.ndarray]]  # float32 [n, T] in turn, in the order of the ids


@dataclass(frozen=True)
class Window:
    """Steps [start, end) of an arm, with the base run's onset and the rule in words."""

    start: int
    end: int
    onset: float | None
    rule: str


@dataclass(frozen=True)
class Changes:
    """The changes of an arm to the stream inside the window [start, end), saved as CSV.

    `action` is `none`, `mask`, `drop`, `replace`, `duplicate`, `upweight`, `insert`, `mask_tokens`
    or `spans`; the other columns are parallel: the sample, the step it concerns, its loss weight
    afterwards, and, for `replace`, the sample that takes its place (-1 otherwise). The last two
    edit single tokens, a row for each: `mask_tokens` takes the loss at `positions` out
    (that of predicting token t + 1), `spans` puts `tokens` in place of the tokens at `positions`.
    """

    action: str
    start: int
    end: int
    sample_ids: np.ndarray  # int64 [n]
    steps: np.ndarray  # int64 [n]
    weights: np.ndarray  # float32 [n]
    replacements: np.ndarray  # int64 [n]
    positions: np.ndarray  # int64 [n], -1 for a whole sample
    tokens: np.ndarray  # int64 [n], -1 where none is replaced
    rows: np.ndarray | None = None  # int64 [m, T + 1], new samples; not in the file

    @property
    def n_samples(self) -> int:
        """The number of samples that it edits."""
        return len(np.unique(self.sample_ids)) if self.by_token else len(self.sample_ids)

    @property
    def by_token(self) -> bool:
        """True if it edits single tokens."""
        return self.action in ("mask_tokens", "spans")
