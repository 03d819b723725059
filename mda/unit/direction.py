"""Directions in the model as units: those along which one class of text stands apart.

With v a vector of a file, the unit's activation at a position is x . v / |v|, where x is what the
layer leaves in the residual stream, or the output of its attention or MLP. The vector may be a
linear probe's, or a row of an autoencoder's decoder. Its own parameters are those that write x
directly: the output projections of that layer's attention and MLP (W_O and the MLP's second
matrix), or one of the two. A direction is a feature whose encoder is linear; all else is as in
`mda.unit.sae_feature`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mda import store
from mda.sae.hooks import Hookpoint
from mda.schema import ConfigError, DirectionConfig, refuse
from mda.types import ParameterBlock, Unit
from mda.unit.kind import Materials
from mda.unit.sae_feature import LabelledFeatures, writers

OUTPUTS = ("o", "out")  # what the maps that write to the residual stream are called
ACCEPTED = "a .npy of numbers: a vector [d_model], or several [n, d_model]"


@dataclass(frozen=True, eq=False)  # tensors have no truth value to compare by
class Vectors:
    """Vectors of length 1 at a hookpoint, read as features: f = x . v."""

    hook: Hookpoint
    unit_FD: Tensor

    @property
    def n_features(self) -> int:
        """F."""
        return len(self.unit_FD)

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None) -> Vectors:
        """Returns a copy on another device or in another precision."""
        return replace(self, unit_FD=self.unit_FD.to(device, dtype))

    def encode_some(self, x_BTD: Tensor, ids: Sequence[int]) -> Tensor:
        """Returns the activations along some vectors, [B, T, len(ids)]."""
        return x_BTD.to(self.unit_FD.dtype) @ self.unit_FD[list(ids)].T


class StreamDirections(LabelledFeatures):
    """The kind of `unit=direction`."""

    letter, noun = "D", "direction"

    def __init__(self, settings: DirectionConfig, materials: Materials) -> None:
        vectors = read_directions(settings, materials.architecture.d_model)
        super().__init__(settings, materials, vectors, self._blocks(settings, materials))
        self.settings = settings

    @staticmethod
    def _blocks(settings: DirectionConfig, materials: Materials) -> list[ParameterBlock]:
        return [
            block
            for part in writers(Hookpoint(settings.hook, settings.layer), settings.owners)
            for block in materials.architecture.module_blocks(settings.layer, part, settings.biases)
            if block.name.rpartition(".")[2] in OUTPUTS
        ]

    def units(self, names: Sequence[str], together: bool = False) -> list[Unit]:
        """Returns the directions found; without any, as in a plan, as many as would be."""
        named = [self.settings.locate] if self.settings.named else []
        others = [self.name(row) for row in range(self.features.n_features)]
        expected = dict.fromkeys([*named, *others])
        return super().units(names or list(expected)[: self.settings.k])


def read_directions(settings: DirectionConfig, width: int | None) -> Vectors:
    """Returns the file's vectors, float64, each divided by its norm.

    Raises ConfigError for another file, vectors that are not of the model's `width`, where that is
    known, and a direction in `unit.locate` that the file does not have.
    """
    try:
        vectors = np.asarray(store.read_npy(Path(settings.file)))
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"unit.file={settings.file}: {error}; expected {ACCEPTED}") from error
    vectors_FD = np.atleast_2d(vectors)
    if vectors_FD.ndim != 2 or not vectors_FD.size or vectors_FD.dtype.kind not in "fiu":
        about = f"{vectors.dtype} {list(vectors.shape)}"
        raise ConfigError(f"unit.file={settings.file}: {about} is invalid; expected {ACCEPTED}")
    if width is not None and vectors_FD.shape[1] != width:
        about = f"vectors of {vectors_FD.shape[1]} numbers are invalid; expected {width}"
        raise ConfigError(f"unit.file={settings.file}: {about}, the model's d_model")
    vectors_FD = vectors_FD.astype(np.float64)
    norms_F1 = np.linalg.norm(vectors_FD, axis=1, keepdims=True)
    if bad := np.flatnonzero(~np.isfinite(norms_F1[:, 0]) | (norms_F1[:, 0] == 0)).tolist():
        about = f"row {bad[0]} is zero or not finite; expected vectors with a length"
        raise ConfigError(f"unit.file={settings.file}: {about}")
    if settings.named is not None and int(settings.named[1]) >= len(vectors_FD):
        there = f"L{settings.layer}D0 to L{settings.layer}D{len(vectors_FD) - 1}"
        raise refuse("unit.locate", settings.locate, there)
    hook = Hookpoint(settings.hook, settings.layer)
    return Vectors(hook, torch.from_numpy(vectors_FD / norms_F1))
