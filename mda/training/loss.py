"""The loss of a stream's samples, and its gradient by micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from mda.model.loss import Unembedding, logits_cross_entropy, plain_losses, unembedding

if TYPE_CHECKING:
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
    """Returns the mean next-token loss of each sample in nats, [B]."""
    return token_losses(model, tokens_BT1).mean(1)


def weighted_losses(
    model: PreTrainedModel, tokens_BT1: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Returns w_j l_j of each sample, [B]; with token weights [B, T], mean_t w_jt l_jt."""
    losses_BT = token_losses(model, tokens_BT1)
    if weights.ndim == 1:
        return weights * losses_BT.mean(1)
    return (weights * losses_BT).mean(1)


def token_losses(model: PreTrainedModel, tokens_BT1: torch.Tensor) -> torch.Tensor:
    """Returns the next-token loss at every position in nats, [B, T].

    Large logits are never formed as a whole.
    """
    inputs_BT, targets = tokens_BT1[:, :-1], tokens_BT1[:, 1:].flatten()
    unembed = unembedding(model)
    if len(targets) * len(unembed.weight_VD) <= logits_at_once(targets.device):
        return plain_losses(model, tokens_BT1)
    hidden_BTD = model.base_model(input_ids=inputs_BT, use_cache=False).last_hidden_state
    return vocabulary_losses(hidden_BTD.flatten(0, 1), unembed, targets).view(inputs_BT.shape)


def logits_at_once(device: torch.device) -> int:
    """Returns how many logits are held at once; see `LOGITS` and `GPU_LOGITS`."""
    return GPU_LOGITS if device.type == "cuda" else LOGITS


def vocabulary_losses(
    hidden: torch.Tensor, unembed: Unembedding, targets: torch.Tensor
) -> torch.Tensor:
    """Returns the cross-entropy of each target in nats, [positions], in chunks of logits.

    `hidden` [positions, D] are the last hidden states. In full precision, torch's own chunked loss
    is used where torch has it. Under autocast, with a soft cap on the logits, and with an older
    torch, chunks form their logits as the whole batch would, and again in the backward pass instead
    of keeping them.
    """
    rows = max(1, logits_at_once(hidden.device) // len(unembed.weight_VD))
    autocast = torch.is_autocast_enabled(hidden.device.type)
    if hasattr(F, "linear_cross_entropy") and not autocast and unembed.cap is None:
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows, chunking_method=None)
        hidden, weight = unembed.scaled(hidden), unembed.weight_VD
        return F.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options)
    return _in_checkpointed_chunks(hidden, unembed, targets, rows)


def _in_checkpointed_chunks(
    hidden: torch.Tensor, unembed: Unembedding, targets: torch.Tensor, rows: int
) -> torch.Tensor:
    def losses(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return logits_cross_entropy(unembed.logits(hidden), targets)

    parts = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(losses, *part, use_reentrant=False) for part in parts])


def accumulate_gradients(
    model: PreTrainedModel,
    tokens_BT1: torch.Tensor,
    weights: torch.Tensor,
    batch_size: int,
    micro_batch_size: int | None = None,
    backward: Backward = lambda loss, last: loss.backward(),
) -> torch.Tensor:
    """Adds the gradient of sum_j w_j l_j / batch_size to the parameters', and returns the sum.

    `weights` are those of samples, [B], or of tokens, [B, T], see `weighted_losses`. `batch_size`
    is that of the unedited stream: editing one sample does not change the share of the others.
    Micro-batches (null: a single one) change only the order of addition.
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
