"""Updates of an edit that reaches some parameters only.

With g the gradient of the edited stream and g' that of the unedited one, both at the same weights,
the update takes g where `inside` is True and g' elsewhere. Each is clipped by its own norm first.
So from the same state the update is the edited stream's inside and the unedited one's elsewhere, to
the last bit: AdamW treats every number by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from mda.types import Stream


@dataclass(frozen=True)
class Reach:
    """The unedited stream, and the parameters that the edit reaches, bool by their names."""

    unedited: Stream
    inside: Mapping[str, torch.Tensor]

    def edits(self, stream: Stream, step: int) -> bool:
        """Returns whether a step of the edited stream trains on anything else."""
        pairs = zip(stream.at(step), self.unedited.at(step), strict=True)
        masked = stream.masked_at(step), self.unedited.masked_at(step)
        return not all(np.array_equal(*pair) for pair in (*pairs, masked))

    def keep(self, model: torch.nn.Module, edited: Mapping[str, torch.Tensor | None]) -> None:
        """Puts the edited gradients back into the parameters where the edit reaches them."""
        for name, parameter in model.named_parameters():
            gradient = edited[name]
            assert gradient is not None and parameter.grad is not None  # nothing is frozen
            inside = self.inside[name].to(parameter.device)
            parameter.grad = torch.where(inside, gradient, parameter.grad)
