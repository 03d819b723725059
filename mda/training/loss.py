"""The loss of a schedule's samples, and its gradient one micro-batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

LOGITS = 2**24
GPU_LOGITS = 2**27
"""Logits that are held at once, 64 MiB in float32, and on a GPU 512 MiB.

A batch of fewer is computed whole (nano's has 2^19); a larger one in chunks, whose sums are
taken in another order, so that the two ways differ in the last bits of float32.
"""

Backward = Callable[[torch.Tensor, bool], None]
"""Takes the loss of a micro-batch, and whether it is the update's last."""


def sample_losses(model: PreTrainedModel, tokens_BT1: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of each sample in nats, [B]."""
    return token_losses(model, tokens_BT1).mean(1)


def weighted_losses(
    model: PreTrainedModel, tokens_BT1: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """w_j l_j of each sample, [B]; with a weight for every token, [B, T], mean_t w_jt l_jt."""
    losses_BT = token_losses(model, tokens_BT1)
    if weights.ndim == 1:
        return weights * losses_BT.mean(1)
    return (weights * losses_BT).mean(1)


def token_losses(model: PreTrainedModel, tokens_BT1: torch.Tensor) -> torch.Tensor:
    """Next-token loss at every position in nats, [B, T].

    Where they are many the logits never exist as a whole. That takes a model whose logits are its
    output embedding times the last hidden state, as those of GPT-NeoX, Llama and OLMo-2 are.
    """
    inputs_BT, targets = tokens_BT1[:, :-1], tokens_BT1[:, 1:].flatten()
    head: Any = model.get_output_embeddings()
    if len(targets) * len(head.weight) <= logits_at_once(targets.device):
        logits_BTV = model(input_ids=inputs_BT, use_cache=False).logits
        losses = _cross_entropy(logits_BTV.flatten(0, 1), targets)
    else:
        hidden_BTD = model.base_model(input_ids=inputs_BT, use_cache=False).last_hidden_state
        losses = vocabulary_losses(hidden_BTD.flatten(0, 1), head, targets)
    return losses.view(len(tokens_BT1), -1)


def logits_at_once(device: torch.device) -> int:
    """Logits that are held at once; see `LOGITS` and `GPU_LOGITS`."""
    return GPU_LOGITS if device.type == "cuda" else LOGITS


def vocabulary_losses(
    hidden: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of each target in nats, [positions], some logits at a time.

    `hidden` [positions, D] are the last hidden states. In full precision torch's own chunked
    loss does it, where torch has it. Under autocast, and with an older torch, chunks form their
    logits as the whole batch would, and again in the backward pass instead of keeping them.
    """
    rows = max(1, logits_at_once(hidden.device) // len(head.weight))
    if hasattr(F, "linear_cross_entropy") and not torch.is_autocast_enabled(hidden.device.type):
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows, chunking_method=None)
        return F.linear_cross_entropy(
            hidden, head.weight, targets, linear_bias=head.bias, reduction="none", options=options
        )
    return _in_checkpointed_chunks(hidden, head, targets, rows)


def _in_checkpointed_chunks(
    hidden: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor, rows: int
) -> torch.Tensor:
    def losses(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return _cross_entropy(head(hidden), targets)

    parts = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(losses, *part, use_reentrant=False) for part in parts])


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    at_least_single = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(at_least_single), targets, reduction="none")


def accumulate_gradients(
    model: PreTrainedModel,
    tokens_BT1: torch.Tensor,
    weights: torch.Tensor,
    batch_size: int,
    micro_batch_size: int | None = None,
    backward: Backward = lambda loss, last: loss.backward(),
) -> torch.Tensor:
    """Add the gradient of sum_j w_j l_j / batch_size to the parameters'; returns that sum.

    `weights` are those of samples, [B], or of tokens, [B, T], see `weighted_losses`. `batch_size`
    is that of the unedited stream: editing one sample leaves the others' share as it is. The sum
    does not depend on how it is cut into micro-batches (null: not at all), but for the order of
    its addition.
    """
    if not len(tokens_BT1):  # an edit dropped every sample: the gradient is zero, not missing
        tokens_BT1 = tokens_BT1.new_zeros(1, tokens_BT1.shape[1])
        weights = weights.new_zeros(1)
    size = micro_batch_size or len(tokens_BT1)
    parts = list(zip(tokens_BT1.split(size), weights.split(size), strict=True))
    done = []
    for i, part in enumerate(parts):
        loss = weighted_losses(model, *part).sum() / batch_size
        backward(loss, i == len(parts) - 1)
        done.append(loss.detach())
    return torch.stack(done).sum()
