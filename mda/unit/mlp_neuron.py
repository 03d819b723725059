"""MLP neurons as units: those whose activation separates one class of text from the others.

A neuron owns its column (and bias) of the input matrix, of the gate too where there is one, and its
row of the output matrix. Its measurement is its own activation, which does not depend on the output
row: the gradient there is zero, and a sample's effect on that row does not count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mda.schema import NeuronConfig
from mda.types import ParameterBlock, Part, Unit
from mda.unit.blocks import BlockTensors, outer_sum
from mda.unit.capture import module_inputs, modules_of, record
from mda.unit.kind import MEASUREMENT, METRIC, Materials, Measurement
from mda.unit.label_contrast import LabelledText, contrast
from mda.unit.measurement import add

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MlpNeurons:
    """The kind of `unit=mlp_neuron`."""

    def __init__(self, settings: NeuronConfig, materials: Materials) -> None:
        self.architecture = arch = materials.architecture
        self.layers = list(range(arch.n_layers)) if settings.layers is None else settings.layers
        self.blocks = {layer: arch.neuron_blocks(layer, settings.biases) for layer in self.layers}
        label = settings.label
        self.metric_text = LabelledText.draw(materials, label, materials.metric_ids())
        self.measured_text = LabelledText.draw(materials, label, materials.measurement_ids())

    def ranking(self, model: PreTrainedModel) -> Mapping[str, float]:
        """Returns ROC AUC of every neuron of the layers."""
        names = [self._name(at, n) for at in self.layers for n in range(self.architecture.d_ff)]
        return self.metrics(model, names)

    def metrics(self, model: PreTrainedModel, names: Sequence[str]) -> Mapping[str, float]:
        """Returns ROC AUC of some neurons."""
        neurons = [parse(name) for name in names]

        def activations(inputs_BT: Tensor, some: Sequence[tuple[int, int]]) -> Tensor:
            paths = {at: self.architecture.neuron_activation(at) for at in {at for at, _ in some}}
            read = module_inputs(model, inputs_BT, paths.values())
            return torch.stack([read[paths[at]][..., neuron] for at, neuron in some], -1)

        auc = self.metric_text.auc(model.device, neurons, activations)
        return dict(zip(names, auc.tolist(), strict=True))

    def units(self, names: Sequence[str], together: bool = False) -> list[Unit]:
        """Returns every neuron of the layers."""
        return [
            Unit(self._name(layer, n), tuple(Part(block, n) for block in blocks.values()))
            for layer, blocks in self.blocks.items()
            for n in range(self.architecture.d_ff)
        ]

    def query(self) -> Sequence[Tensor]:
        """Returns the held-out rows of the label's class, each [T + 1]."""
        return list(self.measured_text.tokens_MS[self.measured_text.has_label_M])

    def gradients(
        self, model: PreTrainedModel, units: Sequence[Unit], target: str = MEASUREMENT
    ) -> BlockTensors:
        """Returns the gradient of each neuron's contrast in its own input weights, by layer."""
        total: dict[ParameterBlock, Tensor] = {}
        layers = sorted({parse(unit.name)[0] for unit in units})
        for inputs_BT, weights_BT in self.measured_text.chunks(model.device):
            blocks = [self.blocks[at]["in"] for at in layers]
            down = [self.architecture.neuron_activation(at) for at in layers]
            tape = record(model, inputs_BT, [*modules_of(blocks), *down])
            for block, path in zip(blocks, down, strict=True):
                paths = [tap.module for tap in block.outputs]
                with torch.enable_grad():
                    activation_BTF = tape.live_inputs[path]
                    contrast = (activation_BTF * weights_BT[..., None].to(activation_BTF)).sum()
                gradients = torch.autograd.grad(
                    contrast, [tape.outputs[p] for p in paths], retain_graph=True
                )
                captured = tape.capture(dict(zip(paths, gradients, strict=True)))
                add(total, block, outer_sum(captured.x(block), captured.dy(block)))
        return total

    def differentiable(
        self, name: str, members: Sequence[str], target: str = METRIC
    ) -> Measurement:
        """Returns the difference of mean activation, as the ROC AUC has no gradient."""
        layer, neuron = parse(name)
        path = self.architecture.neuron_activation(layer)

        def measurement(model: PreTrainedModel) -> Tensor:
            def activation(inputs_BT: Tensor) -> Tensor:
                read: list[Tensor] = []
                hook = model.get_submodule(path).register_forward_pre_hook(
                    lambda _module, args: read.append(args[0])
                )
                try:
                    model.base_model(inputs_BT, use_cache=False)
                finally:
                    hook.remove()
                return read[0][..., neuron]

            return contrast(model, self.measured_text, activation)

        return measurement

    def measurements(self, model: PreTrainedModel, units: Sequence[Unit]) -> Tensor:
        """Returns the difference of mean activation of each neuron, float64 [U]."""
        neurons = [parse(unit.name) for unit in units]
        paths = {at: self.architecture.neuron_activation(at) for at in {at for at, _ in neurons}}
        total = torch.zeros(len(units), dtype=torch.float64)
        for inputs_BT, weights_BT in self.measured_text.chunks(model.device):
            read = module_inputs(model, inputs_BT, paths.values())
            means = {
                at: torch.einsum("btf,bt->f", read[path].double(), weights_BT).cpu()
                for at, path in paths.items()
            }
            total += torch.stack([means[at][neuron] for at, neuron in neurons])
        return total

    @staticmethod
    def _name(layer: int, neuron: int) -> str:
        return f"L{layer}N{neuron}"


def parse(name: str) -> tuple[int, int]:
    """Parses `L2N417` to (2, 417). Raises ValueError for anything else."""
    if not (match := re.fullmatch(r"L(\d+)N(\d+)", name)):
        raise ValueError(f"{name!r} names no neuron; write it like L2N417")
    return int(match[1]), int(match[2])
