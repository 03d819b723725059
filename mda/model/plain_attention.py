"""Attention as matrix products and a softmax: differentiable any number of times, in any precision.

`scaled_dot_product_attention` runs as one fused kernel, which returns no attention patterns and has
no second derivative on a CPU; transformers' `eager` attention takes its softmax in float32 whatever
the model is in. The functions here do neither, for every family that attends through that function,
and for those that attend through `capped_attention`, since the fused kernel has no soft cap.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PlainAttention(TorchFunctionMode):
    """Computes `scaled_dot_product_attention` as softmax(scale q k^T + mask) v inside the block.

    Equal to the fused kernel up to rounding. With `keep`, `patterns` gets the probabilities [B, H,
    T, T] of every call, queries first: those of the layers in order, for one forward pass. Raises
    ValueError under attention dropout, whose draw cannot be repeated.
    """

    def __init__(self, keep: bool = False) -> None:
        super().__init__()
        self.keep = keep
        self.patterns: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (F.scaled_dot_product_attention, capped_attention):
            return func(*args, **(kwargs or {}))
        output, pattern = _attend(*args, **(kwargs or {}))
        if self.keep:
            self.patterns.append(pattern)
        return output


def capped_attention(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
    """Returns `scaled_dot_product_attention` with a `softcap` c: c tanh(logit / c)."""
    if has_torch_function((query,)):  # PlainAttention is on
        return handle_torch_function(capped_attention, (query,), query, key, value, **settings)
    return _attend(query, key, value, **settings)[0]


def _capped_forward(
    module: Any,
    query_BHTK: Tensor,
    key_BHTK: Tensor,
    value_BHTK: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Computes `capped_attention` with the signature that transformers calls."""
    output = capped_attention(
        query_BHTK,
        key_BHTK,
        value_BHTK,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=key_BHTK.shape[1] < query_BHTK.shape[1],
        softcap=softcap,
    )
    return output.transpose(1, 2).contiguous(), None


def register_capped() -> str:
    """Makes `capped_attention` known to transformers; returns its name there."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register("capped", _capped_forward)
    AttentionMaskInterface.register("capped", eager_mask)
    return "capped"


def _attend(
    query_BHTK: Tensor,
    key_BHTK: Tensor,
    value_BHTK: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the heads' outputs, [B, H, T, K], and their patterns, [B, H, T, T]."""
    if dropout_p:
        raise ValueError(f"attention dropout is {dropout_p}; expected 0")
    if enable_gqa:  # query heads in turn share a key head
        repeat = query_BHTK.shape[1] // key_BHTK.shape[1]
        key_BHTK = key_BHTK.repeat_interleave(repeat, 1)
        value_BHTK = value_BHTK.repeat_interleave(repeat, 1)
    shape = (*query_BHTK.shape[:3], key_BHTK.shape[2])
    mask = _additive_mask(shape, attn_mask, is_causal, query_BHTK).expand(shape).flatten(0, 1)
    query = (query_BHTK * (scale or query_BHTK.shape[-1] ** -0.5)).flatten(0, 1)
    key = key_BHTK.flatten(0, 1).transpose(1, 2)
    if softcap is None:
        # One product that starts from the mask, in half the time of a product and a sum.
        logits = torch.baddbmm(mask, query, key)
    else:
        logits = softcap * torch.tanh(query @ key / softcap) + mask
    pattern = logits.softmax(-1)
    return (pattern @ value_BHTK.flatten(0, 1)).view(*shape[:3], -1), pattern.view(shape)


def _additive_mask(
    shape: tuple[int, ...], attn_mask: Tensor | None, is_causal: bool, like: Tensor
) -> Tensor:
    """Returns the mask that is added to the logits: -inf where a query may not look."""
    if is_causal:
        return torch.full(shape[2:], -torch.inf, dtype=like.dtype, device=like.device).triu(1)
    if attn_mask is None:
        return like.new_zeros(())
    if attn_mask.dtype == torch.bool:
        return like.new_zeros(()).masked_fill(~attn_mask, -torch.inf)
    return attn_mask.to(like)


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Lets the model return attention patterns inside the block, which sdpa never forms."""
    before = model.config._attn_implementation or "eager"
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
