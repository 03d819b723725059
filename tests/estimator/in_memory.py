"""A corpus and what a stage lends to an estimator, all in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mda.data.stream import Corpus
from mda.estimator.ekfac import Curvature, Fit, fit_curvature
from mda.estimator.score import SampleScores
from mda.model.architecture import architecture
from mda.sae.autoencoder import Sae
from mda.types import ParameterBlock, Part, Unit
from mda.unit.blocks import BlockTensors
from mda.unit.kind import Materials, UnitKind

ADAM_EPS = 0.03  # far from torch's own, so that a score shows which one it was made with


def corpus_of(rows: Tensor, n_vocab: int, labels: Sequence[str], held_out: np.ndarray) -> Corpus:
    """Token rows as a corpus without special tokens."""
    names = tuple(sorted(set(labels)))
    return Corpus(
        tokens=rows.numpy().astype(np.uint16),
        labels=np.array([names.index(label) for label in labels], dtype=np.int16),
        label_names=names,
        vocab_size=n_vocab,
        special_ids=(),
        counts=np.bincount(rows.flatten().numpy(), minlength=n_vocab),
        tokenizer=None,
        held_out=held_out,
        fingerprint="rows",
    )


@dataclass(frozen=True)
class Table:
    """A corpus and some of its samples, whose ids are not 0, 1, 2."""

    corpus: Corpus
    ids: np.ndarray

    def rows(self, sample_ids: np.ndarray) -> Tensor:
        return self.corpus.rows(sample_ids)

    @property
    def tokens(self) -> Tensor:
        return self.rows(self.ids)


KINDS: dict[str, Callable] = {
    "heads": lambda arch, at, bias: list(arch.head_blocks(at, bias).values()),
    "neurons": lambda arch, at, bias: list(arch.neuron_blocks(at, bias).values()),
    "mlp": lambda arch, at, bias: arch.module_blocks(at, "mlp", bias),
    "attention": lambda arch, at, bias: arch.module_blocks(at, "attention", bias),
}


@dataclass(frozen=True)
class Case:
    """A model, the blocks of one kind in all its layers, and every owner as a unit."""

    model: PreTrainedModel
    blocks: list[ParameterBlock]
    units: list[Unit]

    @classmethod
    def of(cls, model: PreTrainedModel, kind: str, bias: bool = True) -> Case:
        arch = architecture(model)
        layers = [KINDS[kind](arch, at, bias) for at in range(arch.n_layers)]
        units = [
            Unit(f"{at} {h}", tuple(Part(block, h) for block in blocks))
            for at, blocks in enumerate(layers)
            for h in range(blocks[0].owners)
        ]
        return cls(model, [block for blocks in layers for block in blocks], units)


@dataclass(frozen=True)
class InMemoryWork:
    """What `mda.estimator.estimator.Work` asks for; passes are taken in pieces, as a stage does."""

    corpus: Corpus
    sample_ids: np.ndarray
    kind: UnitKind
    units: Sequence[Unit]
    models: Mapping[int, PreTrainedModel]
    steps: Sequence[int]
    seed: int = 0
    adam_eps: float = ADAM_EPS
    rates: Mapping[int, float] = field(default_factory=dict)
    moments: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    found: str = ""
    target: str = "measurement"

    @property
    def query(self) -> Sequence[Tensor]:
        return self.kind.query()

    def model(self, step: int) -> PreTrainedModel:
        return self.models[step]

    def gradients(self, model: PreTrainedModel) -> BlockTensors:
        return self.kind.gradients(model, self.units, self.target)

    def curvature(self, step: int, fit: Fit) -> Curvature:
        return fit_curvature(self.model(step), self.corpus.rows, fit.subset(self.sample_ids), fit)

    def learning_rate(self, step: int) -> float:
        return self.rates[step]

    def second_moments(self, step: int) -> Mapping[str, Tensor]:
        return self.moments[step]

    def over_samples(self, name: str, scores: Callable[[np.ndarray], SampleScores]) -> SampleScores:
        values, losses = zip(*map(scores, np.array_split(self.sample_ids, 2)), strict=True)
        return SampleScores(torch.cat(values), torch.cat(losses))


def materials(corpus: Corpus, model: PreTrainedModel, sae: Sae | None = None) -> Materials:
    """What kinds of units are made from."""
    return Materials(corpus, architecture(model), sae)
