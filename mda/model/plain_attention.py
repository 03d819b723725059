"""Attention as matrix products and a softmax: differentiable any number of times, in any precision.

`scaled_dot_product_attention` runs as one fused kernel, which returns no attention patterns and has
no second derivative on a CPU; transformers' `eager` attention takes its softmax in float32 whatever
the model is in. What follows does neither, for every family that attends through that function.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class PlainAttention(TorchFunctionMode):
    """Within, `scaled_dot_product_attention` is softmax(scale q k^T + mask) v, written out.

    Equal to the fused kernel up to rounding. With `keep`, `patterns` gets the probabilities
    [B, H, T, T] of every call, queries first: those of the layers in order, for one forward pass.
    Raises ValueError under attention dropout, whose draw can't be repeated.
    """

    def __init__(self, keep: bool = False) -> None:
        super().__init__()
        self.keep = keep
        self.patterns: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(
        self,
        query_BHTK: Tensor,
        key_BHTK: Tensor,
        value_BHTK: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if dropout_p:
            raise ValueError(f"attention dropout is {dropout_p}; accepted: 0")
        if enable_gqa:  # query heads in turn share a key head
            repeat = query_BHTK.shape[1] // key_BHTK.shape[1]
            key_BHTK = key_BHTK.repeat_interleave(repeat, 1)
            value_BHTK = value_BHTK.repeat_interleave(repeat, 1)
        shape = (*query_BHTK.shape[:3], key_BHTK.shape[2])
        mask = _additive_mask(shape, attn_mask, is_causal, query_BHTK).expand(shape)
        # One product that starts from the mask, in half the time of a product and a sum.
        logits = torch.baddbmm(
            mask.flatten(0, 1),
            (query_BHTK * (scale or query_BHTK.shape[-1] ** -0.5)).flatten(0, 1),
            key_BHTK.flatten(0, 1).transpose(1, 2),
        )
        pattern = logits.softmax(-1)
        if self.keep:
            self.patterns.append(pattern.view(shape))
        return (pattern @ value_BHTK.flatten(0, 1)).view(*shape[:3], -1)


def _additive_mask(
    shape: tuple[int, ...], attn_mask: Tensor | None, is_causal: bool, like: Tensor
) -> Tensor:
    """What is added to the logits: -inf where a query may not look."""
    if is_causal:
        return torch.full(shape[2:], -torch.inf, dtype=like.dtype, device=like.device).triu(1)
    if attn_mask is None:
        return like.new_zeros(())
    if attn_mask.dtype == torch.bool:
        return like.new_zeros(()).masked_fill(~attn_mask, -torch.inf)
    return attn_mask.to(like)
