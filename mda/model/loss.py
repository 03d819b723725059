"""The next-token loss, from the model's own logits or without forming them.

The cross-entropy of a hidden state h with label y is logZ(h) - z_y(h), where z_v(h) is the logit of
token v, h . w_v up to a scale and a soft cap (`Unembedding`), and logZ(h) = log sum_v exp z_v(h) is
the log-partition function. Only logZ needs the whole vocabulary; its gradient is the mean gradient
of the logits under the model's own distribution p:  grad logZ = sum_v p_v grad z_v. Both come out
of one sweep over tiles of the vocabulary with a running maximum (the online softmax of Milakov &
Gimelshein 2018, arXiv 1805.02867): two matrix products a tile, and the tile stays in cache. A
backward pass through stored logits needs three products, and several reads and writes of the
logits.

On request the sweep also draws a label from p at every position, by inverse CDF: it keeps the
probability mass of each run of 16 tokens, finds the run, and looks inside that run only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TILE = 4096  # vocabulary entries of a tile
CHUNK = 256 * TILE  # positions of a chunk times vocabulary entries of its tiles: 4 MB of float32
GPU_CHUNK = 16 * CHUNK  # which has no such cache to stay in, and wants few large products
RUN = 16  # neighbouring vocabulary entries whose mass is kept for sampling; divides TILE
LOG2E = math.log2(math.e)


@dataclass(frozen=True)
class Unembedding:
    """The output of a family: logits as a function of the last hidden state h.

    z_v = scale h . w_v, and with a soft cap c instead c tanh(scale h . w_v / c).
    """

    weight_VD: Tensor  # the model's own, tied to the input embedding or not
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns logits [.., V] of last hidden states [.., D]."""
        return self.capped(F.linear(self.scaled(hidden), self.weight_VD))

    def scaled(self, hidden: Tensor) -> Tensor:
        """Returns hidden states whose products with the weight are the logits before the cap."""
        return hidden if self.scale == 1 else hidden * self.scale

    def capped(self, logits: Tensor) -> Tensor:
        """Returns logits with the soft cap, from scale h . w_v."""
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def unembedding(model: PreTrainedModel) -> Unembedding:
    """Returns the model's output embedding, scale and soft cap, from its configuration.

    Raises ValueError for an output embedding with a bias, which no supported family has.
    """
    head, config = model.get_output_embeddings(), model.config
    assert head is not None  # a language model has one
    if getattr(head, "bias", None) is not None:
        raise ValueError(f"the unembedding {head} has a bias; expected one without")
    scale = getattr(config, "logit_scale", None) or 1 / getattr(config, "logits_scaling", 1)
    return Unembedding(head.weight, scale, getattr(config, "final_logit_softcapping", None))


def plain_losses(model: PreTrainedModel, tokens_BT1: Tensor) -> Tensor:
    """Returns next-token losses at every position in nats, [B, T], from the model's own logits.

    Differentiable in the parameters any number of times, if the model's attention is.
    """
    logits_BTV = model(input_ids=tokens_BT1[:, :-1], use_cache=False).logits
    losses = logits_cross_entropy(logits_BTV.flatten(0, 1), tokens_BT1[:, 1:].flatten())
    return losses.view(len(tokens_BT1), -1)


def logits_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns each target's cross-entropy in nats, [positions], in float32 or better."""
    at_least_single = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(at_least_single), targets, reduction="none")


def cross_entropy(hidden_BTD: Tensor, unembed: Unembedding, labels_BT: Tensor) -> Tensor:
    """Returns -log p(label) in nats at every position, [B, T], differentiable once in `hidden_BTD`.

    Equals `plain_losses` of a model with these last hidden states. Means over tokens, sums over
    sequences and loss weights are the caller's to take.
    """
    return _losses(hidden_BTD, unembed, labels_BT, None)[0]


def sampled_cross_entropy(
    hidden_BTD: Tensor, unembed: Unembedding, uniforms_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns losses [B, T] with labels drawn from the model, and the labels [B, T].

    The label for the uniform number u in [0, 1) is the first v with p_0 + .. + p_v > u. The draw
    itself is not differentiated.
    """
    return _losses(hidden_BTD, unembed, None, uniforms_BT)


def _losses(
    hidden_BTD: Tensor, unembed: Unembedding, labels_BT: Tensor | None, uniforms_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    weight_VD = unembed.weight_VD.detach()
    hidden_BTD = unembed.scaled(hidden_BTD)
    uniforms_R = None if uniforms_BT is None else uniforms_BT.flatten()
    log_z, drawn = _LogPartition.apply(hidden_BTD.flatten(0, 1), weight_VD, unembed.cap, uniforms_R)
    shape = hidden_BTD.shape[:2]
    labels = drawn.view(shape) if labels_BT is None else labels_BT
    logits_BT = unembed.capped((hidden_BTD * weight_VD[labels]).sum(-1))
    return log_z.view(shape) - logits_BT, labels


def label_uniforms(seed: int, sample_ids: Sequence[int] | np.ndarray, length: int) -> Tensor:
    """Returns uniform numbers [B, T], float64: a function of seed, sample id and position alone.

    Every sample has a counter-based generator of its own, keyed by (seed, id), so that neither
    the batch size nor the division among processes changes what is drawn.
    """
    generators = (np.random.Generator(np.random.Philox(key=[seed, int(i)])) for i in sample_ids)
    return torch.from_numpy(np.stack([g.random(length) for g in generators]))


def chunk_at_once(device: torch.device) -> int:
    """Returns how many logits are formed together; see `CHUNK` and `GPU_CHUNK`."""
    return GPU_CHUNK if device.type == "cuda" else CHUNK


class _LogPartition(torch.autograd.Function):
    """logZ [R] of hidden states [R, D] that are already multiplied by the unembedding's scale.

    Returns labels [R] too if uniform numbers [R] are given.

    The gradient of logZ is formed in the forward pass; the backward pass only scales it.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx, hidden_RD: Tensor, weight_VD: Tensor, cap: float | None, uniforms_R: Tensor | None
    ):
        log_z, mean_RD = hidden_RD.new_empty(len(hidden_RD)), torch.empty_like(hidden_RD)
        labels = torch.zeros(len(hidden_RD), dtype=torch.long, device=hidden_RD.device)
        n_rows = chunk_at_once(hidden_RD.device) // min(TILE, len(weight_VD))
        for start in range(0, len(hidden_RD), n_rows):
            rows = slice(start, start + n_rows)
            hidden = hidden_RD[rows]
            swept = _sweep(hidden, weight_VD, cap, keep_mass=uniforms_R is not None)
            log_z[rows], mean_RD[rows] = swept.log_z, swept.mean_RD
            if uniforms_R is not None:
                run = uniforms_R[rows], swept.mass_RM
                labels[rows] = _invert_cdf(*run, hidden, Unembedding(weight_VD, cap=cap))
        ctx.save_for_backward(mean_RD)
        ctx.mark_non_differentiable(labels)
        return log_z, labels

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_R: Tensor, _grad_labels: Tensor):  # type: ignore[override]
        (mean_RD,) = ctx.saved_tensors
        return grad_R[:, None] * mean_RD, None, None, None


class _Sweep(NamedTuple):
    log_z: Tensor  # [R]
    mean_RD: Tensor  # sum_v p_v grad z_v
    mass_RM: Tensor  # mass of each run of RUN entries, up to a factor for each row; or empty


def _sweep(hidden_RD: Tensor, weight_VD: Tensor, cap: float | None, keep_mass: bool) -> _Sweep:
    """Returns the log-partition function and its gradient; exp2 takes half the time of exp."""
    scaled = hidden_RD * (LOG2E if cap is None else 1 / cap)
    peak = hidden_RD.new_full((len(scaled), 1), -torch.inf)
    total, mean = torch.zeros_like(peak), torch.zeros_like(hidden_RD)
    buffer = hidden_RD.new_empty(len(scaled) * min(TILE, len(weight_VD)))
    masses, peaks = [], []
    for tile in weight_VD.split(TILE):
        logits = buffer[: len(scaled) * len(tile)].view(len(scaled), len(tile))
        torch.mm(scaled, tile.T, out=logits)
        slope = None
        if cap is not None:
            slope = 1 - logits.tanh_().square()
            logits.mul_(cap * LOG2E)
        new_peak = torch.maximum(peak, logits.amax(1, keepdim=True))
        weights = logits.sub_(new_peak).exp2_()
        shrink = torch.exp2(peak - new_peak)
        total = total * shrink + weights.sum(1, keepdim=True)
        mean.mul_(shrink).addmm_(weights if slope is None else weights * slope, tile)
        peak = new_peak
        if keep_mass:
            padded = F.pad(weights, (0, -len(tile) % RUN)) if len(tile) % RUN else weights
            masses.append(padded.unflatten(1, (-1, RUN)).sum(-1))
            peaks.append(peak)
    scales = [torch.exp2(then - peak) for then in peaks]
    mass = [m * scale for m, scale in zip(masses, scales, strict=True)]
    log_z = (peak + total.log2()).squeeze(1) / LOG2E
    return _Sweep(log_z, mean.div_(total), torch.cat(mass, 1) if mass else hidden_RD.new_empty(0))


def _invert_cdf(uniforms_R: Tensor, mass_RM: Tensor, hidden_RD: Tensor, unembed: Unembedding):
    """Returns labels [R]: finds the run that holds u by its mass, then the entry by its logits."""
    mass, weight_VD = mass_RM.double(), unembed.weight_VD
    n_vocab = len(weight_VD)
    cdf = mass.cumsum(1)
    target = uniforms_R.to(cdf)[:, None] * cdf[:, -1:]
    # A u just below 1 may round to the whole mass, which lies beyond the last run.
    run = torch.searchsorted(cdf, target, right=True).clamp_max(mass.shape[1] - 1)
    inside = target - (cdf.gather(1, run) - mass.gather(1, run))  # mass of u beyond the run's start

    entries = run * RUN + torch.arange(RUN, device=run.device)
    logits = (weight_VD[entries.clamp_max(n_vocab - 1)] @ hidden_RD[:, :, None]).squeeze(2)
    logits = unembed.capped(logits).double().masked_fill(entries >= n_vocab, -torch.inf)
    within = logits.softmax(1).cumsum(1) * mass.gather(1, run)
    place = torch.searchsorted(within, inside, right=True)
    return torch.minimum(run * RUN + place, (run * RUN + RUN - 1).clamp_max(n_vocab - 1)).squeeze(1)
