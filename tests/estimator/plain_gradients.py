"""Where a block's parameters lie, written out by hand, and gradients by plain autograd.

The truth that this project's blocks and its capture pass are compared with: nothing here uses them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from mda.types import ParameterBlock

ALL = slice(None)


def _span(place: int, size: int) -> slice:
    return slice(place * size, (place + 1) * size)


def pieces(model: PreTrainedModel, block: ParameterBlock, owner: int = 0):
    """(Linear, its output features, its input features) of what one owner has of a block."""
    config, (layer, _, name) = model.config, block.name.partition(".")
    heads, k = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    if config.model_type == "gpt_neox":
        home, start = f"gpt_neox.layers.{layer[1:]}", 3 * k * owner
        qkv, dense = f"{home}.attention.query_key_value", f"{home}.attention.dense"
        up, down = f"{home}.mlp.dense_h_to_4h", f"{home}.mlp.dense_4h_to_h"
        return {
            "qk": [(qkv, slice(start, start + 2 * k), ALL)],
            "v": [(qkv, slice(start + 2 * k, start + 3 * k), ALL)],
            "o": [(dense, ALL, _span(owner, k))],
            "neurons.in": [(up, _span(owner, 1), ALL)],
            "neurons.out": [(down, ALL, _span(owner, 1))],
            "attn.qkv": [(qkv, ALL, ALL)],
            "attn.o": [(dense, ALL, ALL)],
            "mlp.in": [(up, ALL, ALL)],
            "mlp.out": [(down, ALL, ALL)],
        }[name]
    home = f"model.layers.{layer[1:]}"
    q, key, value, o = (f"{home}.self_attn.{p}_proj" for p in "qkvo")
    gate, up, down = (f"{home}.mlp.{p}_proj" for p in ("gate", "up", "down"))
    group = owner * config.num_key_value_heads // heads
    return {
        "qk": [(q, _span(owner, k), ALL), (key, _span(group, k), ALL)],
        "v": [(value, _span(group, k), ALL)],
        "o": [(o, ALL, _span(owner, k))],
        "neurons.in": [(gate, _span(owner, 1), ALL), (up, _span(owner, 1), ALL)],
        "neurons.out": [(down, ALL, _span(owner, 1))],
        "attn.qkv": [(q, ALL, ALL), (key, ALL, ALL), (value, ALL, ALL)],
        "attn.o": [(o, ALL, ALL)],
        "mlp.in": [(gate, ALL, ALL), (up, ALL, ALL)],
        "mlp.out": [(down, ALL, ALL)],
    }[name]


def own(
    model: PreTrainedModel, block: ParameterBlock, owner: int, tensors: Mapping[str, Tensor]
) -> Tensor:
    """One owner's part of tensors that are named and shaped like parameters, [I, J]."""
    parts = []
    for linear, outputs, inputs in pieces(model, block, owner):
        part = tensors[f"{linear}.weight"][outputs, inputs].T
        if block.bias:
            part = torch.cat((part, tensors[f"{linear}.bias"][outputs][None]))
        parts.append(part)
    return torch.cat(parts, 1)


@torch.no_grad()
def step(model: PreTrainedModel, block: ParameterBlock, owner: int, delta_IJ: Tensor) -> None:
    """Adds to one owner's parameters in place."""
    parameters, place = dict(model.named_parameters()), 0
    for linear, outputs, inputs in pieces(model, block, owner):
        weight = parameters[f"{linear}.weight"][outputs, inputs]
        delta = delta_IJ[:, place : place + len(weight)]
        weight += delta[: weight.shape[1]].T
        if block.bias:
            parameters[f"{linear}.bias"][outputs] += delta[-1]
        place += len(weight)


def sample_gradient(
    model: PreTrainedModel, row: Tensor, labels: Tensor | None = None
) -> dict[str, Tensor]:
    """Gradient of one row's mean token loss in every parameter, the labels the row's or others."""
    named = dict(model.named_parameters())
    logits = model(row[None, :-1]).logits[0]
    loss = F.cross_entropy(logits, row[1:] if labels is None else labels)
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(named[name]) if gradient is None else gradient
        for name, gradient in zip(named, gradients, strict=True)
    }


def block_gradients(
    model: PreTrainedModel,
    blocks: Sequence[ParameterBlock],
    row: Tensor,
    labels: Tensor | None = None,
) -> dict[ParameterBlock, Tensor]:
    """`sample_gradient` of every owner of some blocks, [H, I, J]."""
    tensors = sample_gradient(model, row, labels)
    return {
        block: torch.stack([own(model, block, h, tensors) for h in range(block.owners)])
        for block in blocks
    }
