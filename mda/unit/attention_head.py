"""Attention heads as units: induction heads, previous-token heads, or several as one mechanism.

Measurements: `copy` or `prompts`, shared by all heads, or a metric of each head's own attention,
such as `previous_token`, A[t, t-1]: the MEAN over sequences of what mda/schema/metrics.py names. It
depends on the head's own W_Q and W_K, and on the layers below. For heads that are traced together
it is the mean over them, and its gradient in every head goes through the layers in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mda.model.architecture import Architecture
from mda.model.plain_attention import PlainAttention
from mda.schema import HeadConfig
from mda.schema.metrics import HEAD_METRICS
from mda.types import HeadId, ParameterBlock, Part, Unit
from mda.unit.blocks import BlockTensors, block_gradients, outer_sum
from mda.unit.capture import frozen, joined, modules_of, record
from mda.unit.kind import MEASUREMENT, METRIC, Materials, Measurement, joint
from mda.unit.measurement import CHUNK, TokenObjective, add, attention_tokens, copy_objective
from mda.unit.metrics import Metric, metric_function
from mda.unit.prompts import prompt_objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AttentionHeads:
    """The kind of `unit=induction_head`, `previous_token_head`, `second_previous_token_head`."""

    def __init__(self, settings: HeadConfig, materials: Materials) -> None:
        self.settings, self.architecture = settings, materials.architecture
        probe, arch = settings.probe, materials.architecture
        self.blocks = [
            {name: arch.head_blocks(layer, settings.biases)[name] for name in settings.blocks}
            for layer in range(arch.n_layers)
        ]
        self.corpus = materials.corpus
        self.probabilities = materials.probabilities(probe.distribution)
        self.metric_tokens_MT = attention_tokens(
            self.probabilities, n=probe.n_sequences, length=probe.length, repeats=2, seed=probe.seed
        )
        metric = metric_function(settings.metric)
        self.attended = OwnAttention(arch, self.metric_tokens_MT, metric, probe.length)

    @cached_property
    def measured(self) -> TokenObjective | OwnAttention:
        """The measurement, made on use: a plan has units and no tokenizer."""
        probe = self.settings.probe
        if probe.target == "prompts":
            assert probe.file is not None  # so says the schema
            return prompt_objective(probe.file, f"{probe.key}.file", self.corpus)
        shape = {"n": probe.n_sequences, "length": probe.length, "repeats": probe.repeats}
        if probe.target == "copy":
            return copy_objective(self.probabilities, **shape, seed=probe.seed)
        tokens = attention_tokens(self.probabilities, **shape, seed=probe.seed)
        metric = metric_function(probe.target)
        return OwnAttention(self.architecture, tokens, metric, probe.length)

    def ranking(self, model: PreTrainedModel) -> Mapping[str, float]:
        """Returns nothing, because every curve has the metrics of all heads."""
        return {}

    def metrics(self, model: PreTrainedModel, names: Sequence[str]) -> Mapping[str, float]:
        """Returns nothing, because every curve has the metrics of all heads."""
        return {}

    def units(self, names: Sequence[str], together: bool = False) -> list[Unit]:
        """Returns all heads and the mechanism of `names`, or the mechanism alone.

        The mechanism is alone where each head's own attention is measured: the gradient of its
        attention differs from that of each of its heads in the same blocks.
        """
        units = [
            Unit(str(HeadId(layer, head)), tuple(Part(b, head) for b in blocks.values()))
            for layer, blocks in enumerate(self.blocks)
            for head in range(self.architecture.n_heads)
        ]
        if not together:
            return units
        mechanism = joint(units, names)
        return [mechanism] if self.settings.probe.target in HEAD_METRICS else [*units, mechanism]

    def query(self) -> Sequence[Tensor]:
        """Returns the measurement's token sequences."""
        asked = self.measured
        return asked.sequences if isinstance(asked, TokenObjective) else list(asked.tokens_MT)

    def gradients(
        self, model: PreTrainedModel, units: Sequence[Unit], target: str = MEASUREMENT
    ) -> BlockTensors:
        """Returns gradients in the blocks that these units own."""
        blocks = list(dict.fromkeys(part.block for unit in units for part in unit.parts))
        asked = self._asked(target)
        if isinstance(asked, TokenObjective):
            return asked.gradients(model, blocks)
        if together := _mechanism(units):
            return asked.joint_gradients(model, together, blocks)
        layers = sorted({HeadId.parse(unit.name).layer for unit in units})
        layer_blocks = {at: self.blocks[at]["qk"] for at in layers}
        return asked.own_gradients(model, layer_blocks)

    def _asked(self, target: str) -> TokenObjective | OwnAttention:
        return self.attended if target == METRIC else self.measured

    def differentiable(
        self, name: str, members: Sequence[str], target: str = METRIC
    ) -> Measurement:
        """Returns the metric or the measurement of a head on random tokens.

        For a mechanism, it is its heads' mean.
        """
        names = members if name == "mechanism" else [name]
        asked = self._asked(target)
        if isinstance(asked, TokenObjective):
            return asked.differentiable
        return asked.differentiable([HeadId.parse(member) for member in names])

    def measurements(self, model: PreTrainedModel, units: Sequence[Unit]) -> Tensor:
        """Returns f_probe of each unit; the mechanism's is the mean of its heads'."""
        if isinstance(self.measured, TokenObjective):
            return torch.full((len(units),), self.measured.value(model), dtype=torch.float64)
        values_LH = self.measured.values(model)
        together = [values_LH[head] for head in _mechanism(units)]
        return torch.stack(
            [
                torch.stack(together).mean()
                if unit.name == "mechanism"
                else values_LH[HeadId.parse(unit.name)]
                for unit in units
            ]
        )


def _mechanism(units: Sequence[Unit]) -> list[HeadId]:
    """Returns the heads of the mechanism among the units, if there is one."""
    parts = [part for unit in units if unit.name == "mechanism" for part in unit.parts]
    heads = (HeadId(int(part.block.name[1:].partition(".")[0]), part.row) for part in parts)
    return list(dict.fromkeys(heads))


class OwnAttention:
    """A metric of each head's attention on tokens [M, T] that repeat after `length` of them."""

    def __init__(
        self, architecture: Architecture, tokens_MT: Tensor, metric: Metric, length: int
    ) -> None:
        self.architecture, self.tokens_MT = architecture, tokens_MT
        self.metric, self.length = metric, length

    @torch.no_grad()
    def values(self, model: PreTrainedModel) -> Tensor:
        """Returns the metric of every head, its mean over sequences, float64 [L, H]."""
        total = torch.zeros(self.architecture.n_layers, self.architecture.n_heads).double()
        for tokens in self._chunks(model):
            with frozen(model), PlainAttention(keep=True) as attention:
                model.base_model(tokens, use_cache=False)
            total += torch.stack([self._share(pattern) for pattern in attention.patterns]).cpu()
        return total

    def own_gradients(
        self, model: PreTrainedModel, blocks: Mapping[int, ParameterBlock]
    ) -> dict[ParameterBlock, Tensor]:
        """Returns the gradient of each head's OWN metric in its own W_Q and W_K, by layer.

        Each head is differentiated by itself, because heads of a group share their key, and because
        of norms that span the projection, where one head's query depends on the others'.
        """
        total: dict[ParameterBlock, Tensor] = {}
        for tokens in self._chunks(model):
            tape = record(model, tokens, modules_of(blocks.values()), patterns=True)
            for layer, block in blocks.items():
                with torch.enable_grad():
                    own_H = self._share(tape.patterns[layer])
                paths = list(dict.fromkeys(tap.module for tap in block.outputs))
                outputs = [tape.outputs[path] for path in paths]
                dy = []
                for head, metric in enumerate(own_H):
                    grads = torch.autograd.grad(metric, outputs, retain_graph=True)
                    own_BTHJ = joined(block.outputs, dict(zip(paths, grads, strict=True)))
                    dy.append(own_BTHJ[:, :, head])
                x = tape.capture(tape.outputs).x(block)
                add(total, block, outer_sum(x, torch.stack(dy, 2)))
        return total

    def differentiable(self, heads: Sequence[HeadId]) -> Measurement:
        """Returns the mean metric of some heads as a function that can be differentiated twice."""

        def measurement(model: PreTrainedModel) -> Tensor:
            with PlainAttention(keep=True) as attention:
                model(input_ids=self.tokens_MT.to(model.device), use_cache=False)
            patterns = attention.patterns
            values = [self.metric(patterns[h.layer], self.length)[:, h.head].mean() for h in heads]
            return torch.stack(values).mean()

        return measurement

    def joint_gradients(
        self, model: PreTrainedModel, heads: Sequence[HeadId], blocks: Sequence[ParameterBlock]
    ) -> dict[ParameterBlock, Tensor]:
        """Returns the gradient of some heads' mean metric in any blocks, lower layers included."""
        total: dict[ParameterBlock, Tensor] = {}
        for tokens in self._chunks(model):
            tape = record(model, tokens, modules_of(blocks), patterns=True)
            with torch.enable_grad():
                shares = {at: self._share(tape.patterns[at]) for at in {h.layer for h in heads}}
                mean = torch.stack([shares[h.layer][h.head] for h in heads]).mean()
            captured = tape.capture(tape.gradients(mean))
            for block in blocks:
                add(total, block, block_gradients(captured, block))
        return total

    def _share(self, pattern_BHTT: Tensor) -> Tensor:
        """Returns the contribution of these sequences to the means of a layer's heads, [H]."""
        return self.metric(pattern_BHTT, self.length).sum(0) / len(self.tokens_MT)

    def _chunks(self, model: PreTrainedModel):
        return (chunk.to(model.device) for chunk in self.tokens_MT.split(CHUNK))
