"""The parameters that an influence is computed in: the unit's own, those below it, or the model's.

`unit`      the unit's own blocks
`upstream`  every linear map of the layers before the unit's last one, and the unit's own blocks of
            that layer; for a part of an MLP the attention before it too, where the MLP reads it
`all`       every linear map of the model: those of all layers, the embedding and the unembedding

A map counts with its bias. An embedding is the map of a one-hot token, and the unembedding the map
to the logits, of which both have to be formed as a whole. What is no such map is left out
(`left_out` counts it): norms, position embeddings, and embeddings that are scaled, padded or tied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from mda.model.architecture import Architecture, architecture
from mda.types import ParameterBlock, Part, Tap, Unit
from mda.unit.blocks import add_to, gather
from mda.unit.capture import frozen, output_path
from mda.unit.kind import Measurement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UNIT, UPSTREAM, ALL = "unit", "upstream", "all"


def scoped(unit: Unit, scope: str, model: PreTrainedModel) -> Unit:
    """Returns the unit with all parameters of a scope as its own; `model` gives the layout.

    Whole maps are blocks with one owner. No parameter is in two parts.
    """
    if scope == UNIT:
        return unit
    arch = architecture(model)
    if scope == ALL:
        blocks = [*_layers(arch, arch.n_layers), *_vocabulary(model)]
        return Unit(unit.name, tuple(Part(block, 0) for block in blocks))
    last = max(_layer(arch, part) for part in unit.parts)
    parts_of_last = [part for part in unit.parts if _layer(arch, part) == last]
    below = list(_layers(arch, last))
    in_attention = f".{last}.{arch.attention_name}."
    parallel = getattr(model.config, "use_parallel_residual", False)
    if not parallel and not any(in_attention in part.block.input.module for part in parts_of_last):
        below += arch.module_blocks(last, "attention", bias=True)
    rows = (Part(block, row if block.owners > 1 else 0) for block, row in parts_of_last)
    return Unit(unit.name, (*(Part(block, 0) for block in below), *rows))


def scored(
    units: Sequence[Unit], found: str, scope: str, model: PreTrainedModel
) -> tuple[Unit, ...]:
    """Returns the units that are scored: all, or beyond their own parameters the found one."""
    if scope == UNIT:
        return tuple(units)
    located = next(unit for unit in units if unit.name == found)
    return (scoped(located, scope, model),)


def left_out(unit: Unit, model: PreTrainedModel) -> tuple[int, int]:
    """Returns how many of the model's parameters are none of the unit's, and how many it has."""
    held = sum(block.shape[1] * block.shape[2] for block, _ in unit.parts)
    total = sum(parameter.numel() for parameter in model.parameters())
    return total - held, total


def masks_of(unit: Unit, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Returns which of the model's parameters are a unit's own, bool by parameter name."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    marks = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for block, row in unit.parts:
        ones = torch.ones(block.shape[1:], device=model.device)
        add_to(block, row if block.owners > 1 else 0, marks, ones)
    return {name: mark > 0 for name, mark in marks.items()}


def gradients_of(
    measurement: Measurement, model: PreTrainedModel, unit: Unit
) -> dict[ParameterBlock, torch.Tensor]:
    """Returns the gradient of a measurement in the unit's blocks, [H, I, J], by plain autograd."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    with frozen(model, gradients=True), torch.enable_grad():
        value = measurement(model)
        gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
    by_name = dict(zip(names, gradients, strict=True))
    return {block: gather(block, by_name) for block in dict.fromkeys(b for b, _ in unit.parts)}


def _layers(arch: Architecture, end: int) -> Iterator[ParameterBlock]:
    """Yields the linear maps of the layers before `end`, with their biases."""
    for layer in range(end):
        for part in ("attention", "mlp"):
            yield from arch.module_blocks(layer, part, bias=True)


def _layer(arch: Architecture, part: Part) -> int:
    """Returns the layer of a unit's part."""
    return int(part.block.input.module.removeprefix(f"{arch.layers_path}.").partition(".")[0])


def _vocabulary(model: PreTrainedModel) -> list[ParameterBlock]:
    """Returns the embedding and the unembedding, as far as they are linear maps of their own."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding.weight is head.weight:  # type: ignore[union-attr]
        return []
    n_vocab, width = head.weight.shape  # type: ignore[union-attr]
    path = output_path(model)
    blocks = [ParameterBlock("unembedding", Tap(path, width), (Tap(path, n_vocab),))]
    if type(embedding) is nn.Embedding and embedding.padding_idx is None:
        path = next(name for name, module in model.named_modules() if module is embedding)
        ids, rows = (Tap(path, size, transposed=True) for size in embedding.weight.shape)
        blocks.insert(0, ParameterBlock("embedding", ids, (rows,)))
    return blocks
