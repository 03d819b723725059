"""The protocol of a kind of unit, and the materials that it is built from.

One file of this package holds one kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from mda.data.stream import Corpus
from mda.model.architecture import Architecture
from mda.types import Unit
from mda.unit.blocks import BlockTensors
from mda.unit.tokens import token_distribution

if TYPE_CHECKING:  # scores of other kinds do not depend on the code of autoencoders
    from transformers import PreTrainedModel

    from mda.sae.autoencoder import Sae

MEASUREMENT, METRIC = "measurement", "metric"
"""What can be differentiated of a unit, as `estimator.target` calls it."""

Measurement = Callable[["PreTrainedModel"], Tensor]
"""A differentiable scalar of the model's parameters."""


class UnitKind(Protocol):
    """Units of one kind: their names, metrics, measurements and gradients."""

    def ranking(self, model: PreTrainedModel) -> Mapping[str, float]:
        """Returns the metric of every unit that can be traced, by name."""
        ...

    def metrics(self, model: PreTrainedModel, names: Sequence[str]) -> Mapping[str, float]:
        """Returns the metric of some units, as in their curves."""
        ...

    def units(self, names: Sequence[str], together: bool = False) -> list[Unit]:
        """Returns all units that are scored in one pass with the units found, strongest first.

        With `together` the units found count as one more, called `mechanism`.
        """
        ...

    def query(self) -> Sequence[Tensor]:
        """Returns the measurement's token sequences, each int64 [S].

        They are those that it rewards: of a label its class, of prompts the right continuations.
        """
        ...

    def gradients(
        self, model: PreTrainedModel, units: Sequence[Unit], target: str = MEASUREMENT
    ) -> BlockTensors:
        """Returns each unit's gradient of its measurement in its own blocks, [R, I, J].

        With `target` metric those of its metric, where that has a gradient of its own. Blocks where
        the gradient is 0 are left out.
        """
        ...

    def differentiable(
        self, name: str, members: Sequence[str], target: str = METRIC
    ) -> Measurement:
        """Returns a unit's metric as a function; its measurement if asked, or without a gradient.

        `members` are the units of which a mechanism is made.
        """
        ...

    def measurements(self, model: PreTrainedModel, units: Sequence[Unit]) -> Tensor:
        """Returns f_probe of each unit, float64 [U]."""
        ...


@dataclass(frozen=True)
class Materials:
    """The inputs of a kind: the corpus, the model's layout, and a sparse autoencoder."""

    corpus: Corpus
    architecture: Architecture
    sae: Sae | None = None  # of a kind whose settings say `reads_sae`

    def probabilities(self, distribution: str) -> Tensor:
        """Returns the distribution of random tokens, float64 [V]."""
        return token_distribution(self.corpus.counts, self.corpus.special_ids, distribution)

    def metric_ids(self) -> np.ndarray:
        """Returns the held-out samples on which metrics are taken: every second one."""
        return _halves(self.corpus)[0]

    def measurement_ids(self) -> np.ndarray:
        """Returns the held-out samples on which measurements are taken: the others."""
        return _halves(self.corpus)[1]

    def with_label(self, ids: np.ndarray, label: str) -> np.ndarray:
        """Returns which of some samples have a label, bool [n].

        Raises ValueError where none or all have it, since there is no contrast.
        """
        return _with_label(self.corpus, ids, label)


def check_label(corpus: Corpus, label: str) -> None:
    """Raises ValueError for a label that no or all held-out samples have."""
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
            f"expected a label that some but not all have, of {there}"
        )
    return has


def joint(units: Sequence[Unit], names: Sequence[str]) -> Unit:
    """Returns several units as one, `mechanism`, which owns all that they own."""
    chosen = {unit.name: unit for unit in units}
    parts = (part for name in names for part in chosen[name].parts)
    return Unit("mechanism", tuple(dict.fromkeys(parts)))
