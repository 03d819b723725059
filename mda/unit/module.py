"""Whole modules as units: a layer's attention, its MLP, or both.

Metric: the loss of the measurement without the module, in nats: f minus f with the module's output
replaced by its mean over the same tokens (`mda.unit.ablation`). Measurement: `copy`, `label` or
`prompts`, see `mda.unit.measurement`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mda.schema import ModuleConfig
from mda.types import Part, Unit
from mda.unit.ablation import ablated, mean_inputs, module_place
from mda.unit.blocks import BlockTensors
from mda.unit.kind import MEASUREMENT, METRIC, Materials, Measurement
from mda.unit.measurement import TokenObjective, copy_objective, label_objective
from mda.unit.prompts import prompt_objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUFFIX = {"attention": ".attn", "mlp": ".mlp", "both": ""}  # L2.attn, L2.mlp, L2
PARTS = {"attention": ("attention",), "mlp": ("mlp",), "both": ("attention", "mlp")}


class Modules:
    """The kind of `unit=module`."""

    def __init__(self, settings: ModuleConfig, materials: Materials) -> None:
        self.settings, self.architecture = settings, materials.architecture
        self.materials = materials
        self.members = {
            f"L{layer}{SUFFIX[part]}": (layer, PARTS[part])
            for layer in range(self.architecture.n_layers)
            for part in settings.parts
        }

    @cached_property
    def measured(self) -> TokenObjective:
        """The measurement, made on use: a plan has units and no tokenizer."""
        return self._objective(self.settings.probe.seed, self.materials.measurement_ids())

    @cached_property
    def on_metric(self) -> TokenObjective:
        """The measurement that ablation changes: on other tokens, but for prompts."""
        return self._objective(self.settings.probe.seed + 1, self.materials.metric_ids())

    def _objective(self, seed: int, ids: np.ndarray) -> TokenObjective:
        probe, materials = self.settings.probe, self.materials
        if probe.target == "prompts":
            assert probe.file is not None  # so says the schema
            return prompt_objective(probe.file, f"{probe.key}.file", materials.corpus)
        if probe.target == "copy":
            return copy_objective(
                materials.probabilities(probe.distribution),
                n=probe.n_sequences,
                length=probe.length,
                repeats=probe.repeats,
                seed=seed,
            )
        assert self.settings.label is not None  # so says the schema
        rows = ids[materials.with_label(ids, self.settings.label)]
        return label_objective(materials.corpus.rows(rows))

    def ranking(self, model: PreTrainedModel) -> Mapping[str, float]:
        """Returns the loss of the measurement without each module."""
        return self.metrics(model, list(self.members))

    def metrics(self, model: PreTrainedModel, names: Sequence[str]) -> Mapping[str, float]:
        """Returns the loss of the measurement without some of them, in nats."""
        places = {}
        for name in names:
            layer, parts = self.members[name]
            places[name] = [module_place(self.architecture, layer, part) for part in parts]
        rows = (tokens[:, :-1] for tokens, _ in self.on_metric.chunks(model))
        means = mean_inputs(model, chain(*places.values()), rows)
        whole = self.on_metric.value(model)
        changes = {}
        for name in names:
            with ablated(model, places[name], means):
                changes[name] = whole - self.on_metric.value(model)
        return changes

    def units(self, names: Sequence[str], together: bool = False) -> list[Unit]:
        """Returns all modules of the chosen parts."""
        return [
            Unit(
                name,
                tuple(
                    Part(block, 0)
                    for part in parts
                    for block in self.architecture.module_blocks(layer, part, self.settings.biases)
                ),
            )
            for name, (layer, parts) in self.members.items()
        ]

    def query(self) -> Sequence[Tensor]:
        """Returns the measurement's token sequences."""
        return self.measured.sequences

    def gradients(
        self, model: PreTrainedModel, units: Sequence[Unit], target: str = MEASUREMENT
    ) -> BlockTensors:
        """Returns the gradient of the measurement in every module's blocks."""
        blocks = list(dict.fromkeys(part.block for unit in units for part in unit.parts))
        return self.measured.gradients(model, blocks)

    def differentiable(
        self, name: str, members: Sequence[str], target: str = METRIC
    ) -> Measurement:
        """Returns the measurement, the same for all modules; ablation needs two models."""
        return self.measured.differentiable

    def measurements(self, model: PreTrainedModel, units: Sequence[Unit]) -> Tensor:
        """Returns the measurement, the same for all."""
        return torch.full((len(units),), self.measured.value(model), dtype=torch.float64)
