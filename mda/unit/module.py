"""Whole modules as units: a layer's attention, its MLP, or both.

Metric: what the model loses without the module, in nats of the measurement: f minus f with the
module's output replaced by its mean over the same tokens (mean ablation). Measurement: `copy` or
`label`, see `mda.unit.measurement`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mda.schema import ModuleConfig
from mda.types import Part, Unit
from mda.unit.blocks import BlockTensors
from mda.unit.capture import frozen
from mda.unit.kind import Materials, Measurement
from mda.unit.measurement import TokenObjective, copy_objective, label_objective

SUFFIX = {"attention": ".attn", "mlp": ".mlp", "both": ""}  # L2.attn, L2.mlp, L2
PARTS = {"attention": ("attention",), "mlp": ("mlp",), "both": ("attention", "mlp")}


class Modules:
    """The kind of `unit=module`."""

    def __init__(self, settings: ModuleConfig, materials: Materials) -> None:
        self.settings, self.architecture = settings, materials.architecture
        self.measured = self._objective(materials, settings.probe.seed, materials.measurement_ids())
        self.on_metric = self._objective(materials, settings.probe.seed + 1, materials.metric_ids())
        self.members = {
            f"L{layer}{SUFFIX[part]}": (layer, PARTS[part])
            for layer in range(self.architecture.n_layers)
            for part in settings.parts
        }

    def _objective(self, materials: Materials, seed: int, ids) -> TokenObjective:
        probe = self.settings.probe
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
        """What the model loses without each module."""
        return self.metrics(model, list(self.members))

    def metrics(self, model: PreTrainedModel, names: Sequence[str]) -> Mapping[str, float]:
        """What the model loses without some of them, in nats."""
        whole = self.on_metric.value(model)
        found = {}
        for name in names:
            layer, parts = self.members[name]
            paths = [self._path(layer, part) for part in parts]
            with mean_ablated(model, paths, self.on_metric):
                found[name] = whole - self.on_metric.value(model)
        return found

    def units(self, names: Sequence[str], together: bool = False) -> list[Unit]:
        """All modules of the chosen parts."""
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

    def gradients(self, model: PreTrainedModel, units: Sequence[Unit]) -> BlockTensors:
        """Gradient of the measurement in every module's blocks."""
        blocks = list(dict.fromkeys(part.block for unit in units for part in unit.parts))
        return self.measured.gradients(model, blocks)

    def differentiable(self, name: str, members: Sequence[str]) -> Measurement:
        """The measurement, the same for all modules: what ablation costs needs two models."""
        return self.measured.differentiable

    def measurements(self, model: PreTrainedModel, units: Sequence[Unit]) -> Tensor:
        """The measurement, the same for all."""
        return torch.full((len(units),), self.measured.value(model), dtype=torch.float64)

    def _path(self, layer: int, part: str) -> str:
        arch = self.architecture
        name = arch.attention_name if part == "attention" else arch.mlp_name
        return f"{arch.layers_path}.{layer}.{name}"


@contextmanager
def mean_ablated(
    model: PreTrainedModel, paths: Sequence[str], text: TokenObjective
) -> Iterator[None]:
    """Within, these modules write their mean over all tokens of `text` wherever they write.

    The means are the unablated model's.
    """
    means = {path: torch.zeros((), dtype=torch.float64) for path in paths}
    n = 0

    def hooked(make) -> ExitStack:
        stack = ExitStack()
        for path in paths:
            handle = model.get_submodule(path).register_forward_hook(make(path))
            stack.callback(handle.remove)
        return stack

    def summing(path: str):
        def hook(_module: nn.Module, _args: object, output) -> None:
            written = output[0] if isinstance(output, tuple) else output
            means[path] = means[path] + written.double().sum((0, 1))

        return hook

    def replacing(path: str):
        def hook(_module: nn.Module, _args: object, output):
            written = output[0] if isinstance(output, tuple) else output
            mean = means[path].to(written).expand_as(written)
            return (mean, *output[1:]) if isinstance(output, tuple) else mean

        return hook

    with torch.no_grad(), frozen(model):
        with hooked(summing):
            for tokens, _ in text.chunks(model):
                model.base_model(tokens[:, :-1], use_cache=False)
                n += tokens[:, :-1].numel()
        for path in paths:
            means[path] = means[path] / n
    with hooked(replacing):
        yield
