"""What attribution must know of a model family: one adapter each, and nothing else knows more.

An adapter says where the family keeps its layers and how it packs heads and neurons into linear
maps; the rest of the project speaks of `ParameterBlock`s and units. The blocks of a head are

    block   input I        output J                parameters
    qk      D              2K (query, key)         W_Q and W_K of the head, one joint block
    v       D              K                       W_V
    o       K (z)          D                       W_O

those of an MLP neuron

    in      D              1, or 2 (gate and up)   its column of the input matrix, and of the gate
    out     1              D                       its row of the output matrix

and those of a whole attention (qkv, o) or MLP (in, out) are the same maps with one owner. Under
grouped-query attention the query heads of a group share W_K and W_V: these parameters count as
every such head's own, so an edit that concerns them concerns the whole group.

Biases of maps that write into the residual stream are added once for all owners and belong to none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mda.schema import ConfigError
from mda.schema.model import FAMILIES, ScratchConfig
from mda.types import ParameterBlock


class Architecture(Protocol):
    """One model's sizes and layout. `layers_path` and the two names locate its modules."""

    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_ff: int
    layers_path: str  # gpt_neox.layers
    attention_name: str  # within a layer
    mlp_name: str

    def head_blocks(self, layer: int, bias: bool = False) -> dict[str, ParameterBlock]:
        """Blocks qk, v and o of all heads of a layer."""
        ...

    def neuron_blocks(self, layer: int, bias: bool = False) -> dict[str, ParameterBlock]:
        """Blocks `in` and `out` of all MLP neurons of a layer."""
        ...

    def module_blocks(self, layer: int, part: str, bias: bool = False) -> list[ParameterBlock]:
        """Every linear map of a layer's `attention` or `mlp`, a block with one owner each."""
        ...

    def query_key_modules(self, layer: int) -> tuple[str, ...]:
        """Paths of the modules whose outputs `queries_and_keys` needs."""
        ...

    def queries_and_keys(
        self, model: PreTrainedModel, layer: int, outputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Rotated queries and keys of all heads, [B, T, H, K] each, from those outputs."""
        ...

    def neuron_activation(self, layer: int) -> str:
        """Path of the module whose input [B, T, d_ff] is the layer's neurons' activation."""
        ...


class Family(Protocol):
    """What an adapter's class offers besides its instances."""

    def __call__(self, model: PreTrainedModel) -> Architecture: ...

    residual_writers: Sequence[str]  # endings of the weights that write into the residual stream

    def refuse(self, config: Mapping[str, Any]) -> str | None:
        """What of a configuration, defaults filled in, is not supported; None if all is."""
        ...

    def scratch(self, sizes: ScratchConfig) -> Any:
        """transformers' configuration of a model with these sizes."""
        ...


def family(model_type: str) -> Family:
    """The adapter's class of a model type. Raises ConfigError with the types there are."""
    if model_type not in FAMILIES:
        accepted = ", ".join(sorted(FAMILIES))
        raise ConfigError(f"model_type={model_type} is not supported; accepted: {accepted}")
    module, _, name = FAMILIES[model_type].partition(":")
    return getattr(import_module(module), name)


def architecture(model: PreTrainedModel) -> Architecture:
    """The adapter of a model. Raises ConfigError for a family without one."""
    return family(model.config.model_type)(model)


def unembedding(model: PreTrainedModel) -> Tensor:
    """Output embedding [V, D]: logits are h . w_v, tied to the input embedding or not.

    Raises ValueError if it has a bias, which none of the supported families has.
    """
    head = model.get_output_embeddings()
    assert head is not None  # a language model has one
    if getattr(head, "bias", None) is not None:
        raise ValueError(f"the unembedding {head} has a bias; accepted: one without")
    return head.weight.detach()


def check_layer(layer: int, n_layers: int) -> None:
    """Raises ValueError for a layer the model does not have."""
    if not 0 <= layer < n_layers:
        raise ValueError(f"layer {layer} does not exist; the model has 0 to {n_layers - 1}")


def rotary_tables(model: PreTrainedModel, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary embedding, [T, R] each, in the model's precision.

    R is the number of rotated dimensions of a head.
    """
    weight = model.get_input_embeddings().weight
    positions = torch.arange(length, device=model.device).unsqueeze(0)
    cos, sin = model.base_model.rotary_emb(weight, position_ids=positions)  # type: ignore[operator]
    return cos[0], sin[0]


def rotate(x_BTHK: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Applies the rotary embedding to the first R of the K dimensions of queries or keys."""
    n_rotary = cos_TR.shape[-1]
    turned, kept = x_BTHK[..., :n_rotary], x_BTHK[..., n_rotary:]
    first, second = turned.chunk(2, dim=-1)
    quarter_turn = torch.cat((-second, first), dim=-1)
    turned = turned * cos_TR[:, None] + quarter_turn * sin_TR[:, None]
    return torch.cat((turned, kept), dim=-1)


def attention_pattern(query_BTHK: Tensor, key_BTHK: Tensor) -> Tensor:
    """Causal attention probabilities [B, H, T, T], query index first.

    softmax_s(q_t . k_s / sqrt(K)) over s <= t, of rotated queries and keys, in their precision
    (transformers' eager attention computes its softmax in float32 whatever the model is in).
    """
    logits = torch.einsum("bthk,bshk->bhts", query_BTHK, key_BTHK) * query_BTHK.shape[-1] ** -0.5
    future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
    return logits.masked_fill(future, -torch.inf).softmax(-1)
