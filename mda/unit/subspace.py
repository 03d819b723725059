"""Which parameters are a unit's own (pi), and the inner products taken inside them.

A block of a layer is a pair of activation sites (input, output gradient); all else follows. A
block's tensors have a leading head dimension, [H, I, J]: weights, gradients, curvature and
directions of all heads of a layer lie in one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import GPTNeoXForCausalLM

from mda.model.head_layout import BLOCKS, attention, block_bias, block_weight, model_shape
from mda.types import HeadId
from mda.unit.gradients import LayerGradients


class Sites(NamedTuple):
    """Names of the activation sites of a block, see `LayerGradients.site`."""

    input: str
    gradient: str


BLOCK_SITES = {"qk": Sites("x", "dqk"), "v": Sites("x", "dv"), "o": Sites("z", "do")}


class BlockId(NamedTuple):
    """One block of one layer, all heads; prints as `L3.qk`."""

    layer: int
    block: str

    def __str__(self) -> str:
        return f"L{self.layer}.{self.block}"


BlockTensors = Mapping[BlockId, Tensor]  # each [H, I, J]


@dataclass(frozen=True)
class Subspace:
    """The blocks that count as a head's own, with or without the biases of q, k and v.

    `dense.bias` belongs to no head (see `head_layout.block_bias`) and is never part of it.
    """

    blocks: tuple[str, ...] = BLOCKS
    bias: bool = False

    def __post_init__(self) -> None:
        if not self.blocks or len(set(self.blocks)) < len(self.blocks):
            raise ValueError(f"blocks={self.blocks}; accepted: some of {BLOCKS}, each once")
        if unknown := set(self.blocks) - set(BLOCKS):
            raise ValueError(f"blocks={self.blocks}: {sorted(unknown)} is none of {BLOCKS}")

    def ids(self, layers: Sequence[int]) -> list[BlockId]:
        """Every block of these layers."""
        return [BlockId(layer, block) for layer in layers for block in self.blocks]


def block_gradients(layer: LayerGradients, block: str, bias: bool = False) -> Tensor:
    """Gradient of the batch's objective with respect to a block of all heads, [H, I, J].

    sum_bt x_bt dy_bt^T. With `bias` the last of the I inputs is the constant 1.
    """
    sites = BLOCK_SITES[block]
    x_BTGI, dy_BTGJ = layer.site(sites.input, bias), layer.site(sites.gradient)
    (x_RGI, dy_RGJ) = (x_BTGI.flatten(0, 1), dy_BTGJ.flatten(0, 1))
    if x_RGI.shape[1] == 1:
        return torch.einsum("ri,rhj->hij", x_RGI[:, 0], dy_RGJ)
    return torch.einsum("rhi,rj->hij", x_RGI, dy_RGJ[:, 0])


@dataclass(frozen=True)
class LayerDirection:
    """A direction in one layer's parameters for each of its heads, packed like the weights.

    Head h's direction fills head h's own rows of `qkv_XD` and columns of `dense_DD` only, so that
    one matrix product serves all heads. Zero where a block is not part of the subspace.
    """

    qkv_XD: Tensor
    bias_X: Tensor | None  # None where biases are not part of the subspace
    dense_DD: Tensor | None  # None without block o


def pack_direction(
    model: GPTNeoXForCausalLM, layer: int, directions: BlockTensors, bias: bool = False
) -> LayerDirection:
    """Packs the blocks of one layer; with `bias`, the last input of qk and v is the constant 1."""
    module, n_heads = attention(model, layer), model_shape(model).n_heads
    qkv = torch.zeros_like(module.query_key_value.weight)
    dense = torch.zeros_like(module.dense.weight)
    bias_X = torch.zeros_like(qkv[:, 0])
    here = {at.block: direction for at, direction in directions.items() if at.layer == layer}
    for block, direction_HIJ in here.items():
        if bias and block != "o":
            block_bias(bias_X, block, n_heads).copy_(direction_HIJ[:, -1:])
            direction_HIJ = direction_HIJ[:, :-1]
        block_weight(qkv, dense, block, n_heads).copy_(direction_HIJ)
    return LayerDirection(qkv, bias_X if bias else None, dense if "o" in here else None)


def token_products(layer: LayerGradients, direction: LayerDirection) -> Tensor:
    """<direction of head h, x_t dy_t^T> for every head and token, [B, T, H].

    The sum over t is the inner product of the direction with the sequence's gradient, which is
    never formed: <P, x dy^T> = (x P) . dy, the gradient applied to what the direction would add
    to the layer's output.
    """
    n_heads = layer.z_BTHK.shape[2]
    added_BTX = torch.nn.functional.linear(layer.x_BTD, direction.qkv_XD, direction.bias_X)
    products = (added_BTX.unflatten(-1, (n_heads, -1)) * layer.dqkv_BTHJ).sum(-1)
    if direction.dense_DD is not None:
        pulled_BTD = layer.do_BTD @ direction.dense_DD
        products = products + (pulled_BTD.unflatten(-1, (n_heads, -1)) * layer.z_BTHK).sum(-1)
    return products


@dataclass(frozen=True)
class Units:
    """What gets a column of scores: a name and the heads whose scores it sums."""

    names: tuple[str, ...]
    heads: tuple[tuple[HeadId, ...], ...]

    @property
    def layers(self) -> list[int]:
        """Layers that have to be captured, ascending."""
        return sorted({head.layer for heads in self.heads for head in heads})

    def combine(self, values_BLH: Tensor) -> Tensor:
        """Values of all heads of `layers` -> values of the units, [B, U]."""
        row = {layer: i for i, layer in enumerate(self.layers)}
        columns = [
            values_BLH[:, [row[h.layer] for h in heads], [h.head for h in heads]].sum(1)
            for heads in self.heads
        ]
        return torch.stack(columns, dim=1)


def single_head(head: HeadId) -> Units:
    """One head, by its name."""
    return Units((str(head),), ((head,),))


def all_heads(n_layers: int, n_heads: int) -> Units:
    """Every head of the model, each a unit of its own."""
    heads = [HeadId(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    return Units(tuple(map(str, heads)), tuple((head,) for head in heads))


def mechanism(heads: Sequence[HeadId]) -> Units:
    """Several heads as one unit: its score is the sum of theirs, for a probe they share.

    With a probe that is each head's own (`previous_token`), take the probe's `together`.
    """
    return Units(("mechanism",), (tuple(heads),))
