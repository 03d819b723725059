"""Where one attention head lives inside GPTNeoX's packed weights: the only file that knows.

`query_key_value` is head-major: its 3D output features are H groups of 3K, and a group holds
that head's query, key and value, K features each. `dense` reads the H concatenated head outputs
z, so that head h owns its input columns h*K .. (h+1)*K. The other files speak of *blocks*:

    block   input I        output J             parameters
    qk      D              2K (query, key)      W_Q and W_K of the head, one joint block
    v       D              K                    W_V
    o       K (z)          D                    W_O

A block's weight is written [H, I, J] for all heads of a layer, so that y = x @ W.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import GPTNeoXForCausalLM
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention

BLOCKS = ("qk", "v", "o")


class ModelShape(NamedTuple):
    """The sizes that attribution needs: layers, heads of a layer, d_model and d_head."""

    n_layers: int
    n_heads: int
    d_model: int
    d_head: int


def model_shape(model: GPTNeoXForCausalLM) -> ModelShape:
    """Sizes of a `GPTNeoXForCausalLM`."""
    config = model.config
    d_head = config.hidden_size // config.num_attention_heads
    return ModelShape(
        config.num_hidden_layers, config.num_attention_heads, config.hidden_size, d_head
    )


def attention(model: GPTNeoXForCausalLM, layer: int) -> GPTNeoXAttention:
    """The attention module of a layer, with its `query_key_value` and `dense`.

    Raises ValueError for a layer the model does not have.
    """
    layers = model.gpt_neox.layers
    if not 0 <= layer < len(layers):
        raise ValueError(f"layer {layer} does not exist; the model has 0 to {len(layers) - 1}")
    return layers[layer].attention  # type: ignore[return-value]


def per_head(qkv: Tensor, n_heads: int) -> Tensor:
    """Packed features [.., 3D] as [.., H, 3K], a view."""
    return qkv.unflatten(-1, (n_heads, -1))


def output_features(block: str, d_head: int) -> slice:
    """Which of a head's 3K packed features are the output of block `qk` or `v`."""
    return {"qk": slice(0, 2 * d_head), "v": slice(2 * d_head, 3 * d_head)}[block]


def split_qkv(qkv: Tensor, n_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Packed features [.., 3D] as query, key and value, [.., H, K] each, views."""
    query, key, value = per_head(qkv, n_heads).chunk(3, dim=-1)
    return query, key, value


def block_weight(qkv_weight: Tensor, dense_weight: Tensor, block: str, n_heads: int) -> Tensor:
    """One block of all heads, [H, I, J], as a view: writing to it writes to the parameters.

    Takes the two weights of a layer or anything laid out like them, such as their gradients or
    an optimizer's second moments.
    """
    d_head = dense_weight.shape[1] // n_heads
    if block == "o":
        return dense_weight.unflatten(1, (n_heads, d_head)).permute(1, 2, 0)
    rows = qkv_weight.unflatten(0, (n_heads, 3 * d_head))[:, output_features(block, d_head)]
    return rows.transpose(1, 2)


def block_bias(qkv_bias: Tensor, block: str, n_heads: int) -> Tensor:
    """Bias of block `qk` or `v` of all heads, [H, 1, J], a view: the weight of a constant input.

    `dense.bias` is added once for all heads and belongs to none, so that block `o` has no bias.
    """
    rows = per_head(qkv_bias, n_heads)
    return rows[:, output_features(block, rows.shape[1] // 3)].unsqueeze(1)


def rotary_tables(model: GPTNeoXForCausalLM, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary embedding, [T, R] each, in the model's precision.

    R is the number of rotated dimensions of a head (`partial_rotary_factor` times K).
    """
    weight = model.get_input_embeddings().weight
    positions = torch.arange(length, device=model.device).unsqueeze(0)
    cos, sin = model.gpt_neox.rotary_emb(weight, position_ids=positions)
    return cos[0], sin[0]


def rotate(x_BTHK: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Applies the rotary embedding to the first R of the K dimensions of queries or keys."""
    n_rotary = cos_TR.shape[-1]
    turned, kept = x_BTHK[..., :n_rotary], x_BTHK[..., n_rotary:]
    first, second = turned.chunk(2, dim=-1)
    quarter_turn = torch.cat((-second, first), dim=-1)
    turned = turned * cos_TR[:, None] + quarter_turn * sin_TR[:, None]
    return torch.cat((turned, kept), dim=-1)


def attention_pattern(qkv_BTX: Tensor, n_heads: int, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Causal attention probabilities [B, H, T, T] from packed features, query index first.

    softmax_s(q_t . k_s / sqrt(K)) over s <= t, with rotated q and k, in the input's precision
    (transformers' eager attention computes its softmax in float32 whatever the model is in).
    """
    query, key, _ = split_qkv(qkv_BTX, n_heads)
    query, key = rotate(query, cos_TR, sin_TR), rotate(key, cos_TR, sin_TR)
    logits = torch.einsum("bthk,bshk->bhts", query, key) * query.shape[-1] ** -0.5
    future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
    return logits.masked_fill(future, -torch.inf).softmax(-1)
