"""Features of a sparse autoencoder as units: those that separate one class of text from the others.

A feature reads an activation of the model; its own parameters are those of the modules that write
it: for the residual stream after a layer, that layer's attention and MLP, or one of the two. The
autoencoder itself is fixed and only provides the direction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from mda.sae.hooks import Hookpoint, activations
from mda.schema import DirectionConfig, SaeFeatureConfig
from mda.types import ParameterBlock, Part, Unit
from mda.unit.blocks import BlockTensors, block_gradients
from mda.unit.capture import frozen, modules_of, record
from mda.unit.kind import MEASUREMENT, METRIC, Materials, Measurement
from mda.unit.label_contrast import LabelledText, contrast
from mda.unit.measurement import add

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Features(Protocol):
    """Functions of an activation of the model, such as the features of an autoencoder."""

    @property
    def hook(self) -> Hookpoint: ...
    @property
    def n_features(self) -> int: ...

    def to(self, device: torch.device, dtype: torch.dtype) -> Features:
        """Returns a copy on another device, in another precision."""
        ...

    def encode_some(self, x_BTD: Tensor, ids: Sequence[int]) -> Tensor:
        """Returns some features of an activation, [B, T, len(ids)], differentiable."""
        ...


class LabelledFeatures:
    """Features as units: named by layer and number, found and measured by a class of text."""

    letter, noun = "F", "SAE feature"

    def __init__(
        self,
        settings: SaeFeatureConfig | DirectionConfig,
        materials: Materials,
        features: Features,
        blocks: Sequence[ParameterBlock],
    ) -> None:
        self.architecture, self.features, self.blocks = materials.architecture, features, blocks
        self.hook, label = written(features.hook), settings.label
        self.metric_text = LabelledText.draw(materials, label, materials.metric_ids())
        self.measured_text = LabelledText.draw(materials, label, materials.measurement_ids())

    def name(self, number: int) -> str:
        """Returns a feature's name, such as L3F120."""
        return f"L{self.hook.layer}{self.letter}{number}"

    def numbers(self, names: Iterable[str]) -> list[int]:
        """Returns the features' numbers."""
        return [parse(name, self.letter, self.noun)[1] for name in names]

    def ranking(self, model: PreTrainedModel) -> Mapping[str, float]:
        """Returns ROC AUC of every feature."""
        return self._auc(model, list(range(self.features.n_features)))

    def metrics(self, model: PreTrainedModel, names: Sequence[str]) -> Mapping[str, float]:
        """Returns ROC AUC of some features."""
        return self._auc(model, self.numbers(names))

    def units(self, names: Sequence[str], together: bool = False) -> list[Unit]:
        """Returns the features found; each has its own direction in the same blocks."""
        return [
            Unit(name, tuple(Part(block, row) for block in self.blocks))
            for row, name in enumerate(names)
        ]

    def query(self) -> Sequence[Tensor]:
        """Returns the held-out rows of the label's class, each [T + 1]."""
        return list(self.measured_text.tokens_MS[self.measured_text.has_label_M])

    def gradients(
        self, model: PreTrainedModel, units: Sequence[Unit], target: str = MEASUREMENT
    ) -> BlockTensors:
        """Returns each feature's gradient of the contrast in the blocks, [R, I, J], a row each."""
        features, ids = self._at(model), self.numbers(unit.name for unit in units)
        modules, total = modules_of(self.blocks), {}
        for inputs_BT, weights_BT in self.measured_text.chunks(model.device):
            tape = record(model, inputs_BT, modules, watch=[self._path()])
            with torch.enable_grad():
                features_BTR = features.encode_some(tape.watched[self._path()], ids)
                contrasts_R = torch.einsum("btr,bt->r", features_BTR, weights_BT.to(features_BTR))
            rows: dict[ParameterBlock, list[Tensor]] = {block: [] for block in self.blocks}
            paths, outputs = zip(*tape.outputs.items(), strict=True)
            for value in contrasts_R:
                gradients = torch.autograd.grad(
                    value, outputs, retain_graph=True, materialize_grads=True, allow_unused=True
                )
                captured = tape.capture(dict(zip(paths, gradients, strict=True)))
                for block in self.blocks:
                    rows[block].append(block_gradients(captured, block)[0])
            for block, parts in rows.items():
                add(total, block, torch.stack(parts))
        return total

    def differentiable(
        self, name: str, members: Sequence[str], target: str = METRIC
    ) -> Measurement:
        """Returns the difference of mean activation, as the ROC AUC has no gradient."""
        number = self.numbers([name])

        def measurement(model: PreTrainedModel) -> Tensor:
            features = self._at(model)

            def activation(inputs_BT: Tensor) -> Tensor:
                read = activations(model, inputs_BT, self.hook, self.architecture)
                return features.encode_some(read, number)[..., 0]

            return contrast(model, self.measured_text, activation)

        return measurement

    def measurements(self, model: PreTrainedModel, units: Sequence[Unit]) -> Tensor:
        """Returns the difference of mean activation of each feature, float64 [U]."""
        features, ids = self._at(model), self.numbers(unit.name for unit in units)
        total = torch.zeros(len(units), dtype=torch.float64)
        for inputs_BT, weights_BT in self.measured_text.chunks(model.device):
            features_BTR = features.encode_some(self._read(model, inputs_BT), ids).double()
            total += torch.einsum("btr,bt->r", features_BTR, weights_BT).cpu()
        return total

    def _auc(self, model: PreTrainedModel, ids: Sequence[int]) -> dict[str, float]:
        features = self._at(model)

        def encoded(inputs_BT: Tensor, some: Sequence[int]) -> Tensor:
            return features.encode_some(self._read(model, inputs_BT), some)

        auc = self.metric_text.auc(model.device, ids, encoded)
        return dict(zip(map(self.name, ids), auc.tolist(), strict=True))

    def _at(self, model: PreTrainedModel) -> Features:
        return self.features.to(model.device, model.dtype)

    @torch.no_grad()
    def _read(self, model: PreTrainedModel, inputs_BT: Tensor) -> Tensor:
        with frozen(model):
            return activations(model, inputs_BT, self.hook, self.architecture)

    def _path(self) -> str:
        arch = self.architecture
        inside = {"attn_out": f".{arch.attention_name}", "mlp_out": f".{arch.mlp_name}"}
        return f"{arch.layers_path}.{self.hook.layer}{inside.get(self.hook.kind, '')}"


class SaeFeatures(LabelledFeatures):
    """The kind of `unit=sae_feature`."""

    def __init__(self, settings: SaeFeatureConfig, materials: Materials) -> None:
        assert materials.sae is not None
        sae, hook = materials.sae, written(materials.sae.hook)
        if settings.named is not None:
            layer, feature = parse(settings.locate)
            if layer != hook.layer or feature >= sae.n_features:
                there = f"L{hook.layer}F0 to L{hook.layer}F{sae.n_features - 1}"
                raise ValueError(f"unit.locate={settings.locate} does not exist; expected {there}")
        blocks = [
            block
            for part in writers(hook, settings.owners)
            for block in materials.architecture.module_blocks(hook.layer, part, settings.biases)
        ]
        super().__init__(settings, materials, sae, blocks)


def written(hook: Hookpoint) -> Hookpoint:
    """Returns the hookpoint as an output of a layer: the input of layer L is written by L - 1."""
    if hook.kind != "resid_pre":
        return hook
    if hook.layer == 0:
        raise ValueError(f"hookpoint {hook} reads the embedding, which no layer writes")
    return Hookpoint("resid_post", hook.layer - 1)


def writers(hook: Hookpoint, owners: Sequence[str]) -> list[str]:
    """Returns the modules of the hookpoint's layer whose parameters are the feature's own."""
    written_by = {"attn_out": ["attention"], "mlp_out": ["mlp"]}.get(hook.kind, list(owners))
    if not set(written_by) & set(owners):
        raise ValueError(f"hookpoint {hook} is written by {written_by[0]} alone")
    return [part for part in ("attention", "mlp") if part in written_by]


def parse(name: str, letter: str = "F", noun: str = "SAE feature") -> tuple[int, int]:
    """Parses `L3F120` to (3, 120). Raises ValueError for anything else."""
    if not (match := re.fullmatch(rf"L(\d+){letter}(\d+)", name)):
        raise ValueError(f"{name!r} names no {noun}; write it like L3{letter}120")
    return int(match[1]), int(match[2])
