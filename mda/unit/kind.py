"""What a kind of unit is, and what it is made from. One file of this package holds one kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from mda.data.stream import Corpus
from mda.model.architecture import Architecture
from mda.types import Unit
from mda.unit.blocks import BlockTensors
from mda.unit.tokens import token_distribution

if TYPE_CHECKING:  # scores of other kinds do not depend on the code of autoencoders
    from mda.sae.autoencoder import Sae

Measurement = Callable[[PreTrainedModel], Tensor]
"""A differentiable scalar of the model's parameters."""


class UnitKind(Protocol):
    """Units of one kind: which there are, how far each has emerged, what is differentiated."""

    def ranking(self, model: PreTrainedModel) -> Mapping[str, float]:
        """The metric of every unit that could be traced, by name."""
        ...

    def metrics(self, model: PreTrainedModel, names: Sequence[str]) -> Mapping[str, float]:
        """The metric of some units: what their curves show."""
        ...

    def units(self, names: Sequence[str], together: bool = False) -> list[Unit]:
        """Everything that is scored in one pass when these units were found, strongest first.

        With `together` the units found count as one more, called `mechanism`.
        """
        ...

    def gradients(self, model: PreTrainedModel, units: Sequence[Unit]) -> BlockTensors:
        """Gradient of each unit's measurement in its own blocks, [R, I, J]; none where it is 0."""
        ...

    def differentiable(self, name: str, members: Sequence[str]) -> Measurement:
        """What `unrolled` differentiates of a unit: its metric, or else its measurement.

        `members` are the units of which a mechanism is made.
        """
        ...

    def measurements(self, model: PreTrainedModel, units: Sequence[Unit]) -> Tensor:
        """f_probe of each unit, float64 [U]."""
        ...


@dataclass(frozen=True)
class Materials:
    """What kinds are made from: the corpus, the model's layout, and a sparse autoencoder."""

    corpus: Corpus
    architecture: Architecture
    sae: Sae | None = None  # of a kind whose settings say `reads_sae`

    def probabilities(self, distribution: str) -> Tensor:
        """What random tokens are drawn from, float64 [V]."""
        return token_distribution(self.corpus.counts, self.corpus.special_ids, distribution)

    def metric_ids(self) -> np.ndarray:
        """Held-out samples on which metrics are taken: every second one."""
        return _halves(self.corpus)[0]

    def measurement_ids(self) -> np.ndarray:
        """Held-out samples on which measurements are taken: the others."""
        return _halves(self.corpus)[1]

    def with_label(self, ids: np.ndarray, label: str) -> np.ndarray:
        """Which of some samples have a label, bool [n].

        Raises ValueError where none or all have it: nothing can be told apart then.
        """
        return _with_label(self.corpus, ids, label)


def check_label(corpus: Corpus, label: str) -> None:
    """Raise ValueError for a label that tells no held-out samples apart."""
    for ids in _halves(corpus):
        _with_label(corpus, ids, label)


def _halves(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    held_out = np.asarray(corpus.held_out)
    return held_out[::2], held_out[1::2]


def _with_label(corpus: Corpus, ids: np.ndarray, label: str) -> np.ndarray:
    labels = np.array(corpus.labels_of(ids))
    has = labels == label
    if not has.any() or has.all():
        there = ", ".join(sorted(set(labels.tolist())))
        raise ValueError(
            f"unit.label={label}: {int(has.sum())} of {len(ids)} held-out samples have it; "
            f"accepted: a label that some but not all have, of {there}"
        )
    return has


def joint(units: Sequence[Unit], names: Sequence[str]) -> Unit:
    """Several units as one, `mechanism`: it owns all that they own."""
    chosen = {unit.name: unit for unit in units}
    parts = (part for name in names for part in chosen[name].parts)
    return Unit("mechanism", tuple(dict.fromkeys(parts)))
