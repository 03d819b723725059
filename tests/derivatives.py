"""Independent truths for gradients: autograd on transformers' own loss, and finite differences."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from mda.model.architecture import Architecture
from mda.types import ParameterBlock
from mda.unit.blocks import add_to


def all_blocks(arch: Architecture, layer: int, bias: bool) -> list[ParameterBlock]:
    """Every kind of block of a layer."""
    return [
        *arch.head_blocks(layer, bias).values(),
        *arch.neuron_blocks(layer, bias).values(),
        *arch.module_blocks(layer, "attention", bias),
        *arch.module_blocks(layer, "mlp", bias),
    ]


def sequence_losses(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Mean token loss of each sequence in nats, from transformers' logits."""
    logits, labels = model(tokens[:, :-1]).logits, tokens[:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view(labels.shape).mean(1)


def parameter_gradients(model: PreTrainedModel, value: Tensor) -> dict[str, Tensor]:
    """Gradient of a scalar by parameter name, by autograd."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """||ours - expected|| / ||expected||."""
    return ((ours - expected).norm() / expected.norm()).item()


def slope(
    model: PreTrainedModel,
    block: ParameterBlock,
    owner: int,
    direction_IJ: Tensor,
    value: Callable[[], float],
    step: float = 1e-4,
) -> float:
    """Derivative of `value()` as an owner's parameters move along a direction of norm 1.

    A fourth-order stencil: an error of order step^4, and 1e-16 / step of rounding.
    """
    names = [f"{path}.{kind}" for path in block.modules for kind in ("weight", "bias")]
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].detach().clone() for name in names if name in parameters}
    moved = {}
    for n in (-2, -1, 1, 2):
        add_to(block, owner, parameters, n * step * direction_IJ)
        with torch.no_grad():
            moved[n] = value()
            for name, original in before.items():
                parameters[name].copy_(original)
    return (8 * (moved[1] - moved[-1]) - (moved[2] - moved[-2])) / (12 * step)
