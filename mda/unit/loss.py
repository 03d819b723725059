"""The next-token loss without its logits: nothing of size [positions, vocabulary] is ever held.

The cross-entropy of a hidden state h with label y is logZ(h) - h . w_y, where w_v are the rows of
the unembedding and logZ(h) = log sum_v exp(h . w_v) is the log-partition function. Only logZ needs
the whole vocabulary, and its gradient is the mean unembedding row under the model's own
distribution p:  grad logZ = sum_v p_v w_v.  Both come out of one sweep over tiles of the
vocabulary with a running maximum (the online softmax of Milakov & Gimelshein 2018,
arXiv 1805.02867): two matrix products a tile, and the tile stays in cache. A backward pass through
stored logits takes three products, and writes and reads the logits several times.

On request the sweep also draws a label from p at every position, by inverse CDF: it keeps the
probability mass of each run of 16 tokens, finds the run, and looks inside that run only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 4096  # vocabulary entries of a tile
CHUNK = 256 * TILE  # positions of a chunk times vocabulary entries of its tiles: 4 MB of float32
GPU_CHUNK = 16 * CHUNK  # which has no such cache to stay in, and wants few large products
RUN = 16  # neighbouring vocabulary entries whose mass is kept for sampling; divides TILE
LOG2E = math.log2(math.e)


def cross_entropy(hidden_BTD: Tensor, weight_VD: Tensor, labels_BT: Tensor) -> Tensor:
    """-log p(label) in nats at every position, [B, T]; differentiable once in `hidden_BTD`.

    Equals `F.cross_entropy(hidden @ weight.T, labels, reduction="none")`. Means over tokens, sums
    over sequences and loss weights are the caller's to take.
    """
    log_z, _ = _LogPartition.apply(hidden_BTD.flatten(0, 1), weight_VD, None)
    return log_z.view_as(labels_BT) - (hidden_BTD * weight_VD[labels_BT]).sum(-1)


def sampled_cross_entropy(
    hidden_BTD: Tensor, weight_VD: Tensor, uniforms_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """`cross_entropy` with labels drawn from the model: losses [B, T] and labels [B, T].

    The label for the uniform number u in [0, 1) is the first v with p_0 + .. + p_v > u. The draw
    itself is not differentiated.
    """
    log_z, labels = _LogPartition.apply(hidden_BTD.flatten(0, 1), weight_VD, uniforms_BT.flatten())
    labels_BT = labels.view_as(uniforms_BT)
    return log_z.view_as(labels_BT) - (hidden_BTD * weight_VD[labels_BT]).sum(-1), labels_BT


def label_uniforms(seed: int, sample_ids: Sequence[int] | np.ndarray, length: int) -> Tensor:
    """Uniform numbers [B, T], float64: a pure function of seed, sample id and position.

    Every sample has a counter-based generator of its own, keyed by (seed, id), so that neither
    the batch size nor the division among processes changes what is drawn.
    """
    generators = (np.random.Generator(np.random.Philox(key=[seed, int(i)])) for i in sample_ids)
    return torch.from_numpy(np.stack([g.random(length) for g in generators]))


def chunk_at_once(device: torch.device) -> int:
    """Logits that are formed together; see `CHUNK` and `GPU_CHUNK`."""
    return GPU_CHUNK if device.type == "cuda" else CHUNK


class _LogPartition(torch.autograd.Function):
    """logZ [R] of hidden states [R, D], and labels [R] if uniform numbers [R] are given.

    The gradient of logZ is formed in the forward pass; the backward pass only scales it.
    """

    @staticmethod
    def forward(ctx, hidden_RD: Tensor, weight_VD: Tensor, uniforms_R: Tensor | None):  # type: ignore[override]
        log_z, mean_RD = hidden_RD.new_empty(len(hidden_RD)), torch.empty_like(hidden_RD)
        labels = torch.zeros(len(hidden_RD), dtype=torch.long, device=hidden_RD.device)
        n_rows = chunk_at_once(hidden_RD.device) // min(TILE, len(weight_VD))
        for start in range(0, len(hidden_RD), n_rows):
            rows = slice(start, start + n_rows)
            hidden = hidden_RD[rows]
            swept = _sweep(hidden, weight_VD, keep_mass=uniforms_R is not None)
            log_z[rows], mean_RD[rows] = swept.log_z, swept.mean_RD
            if uniforms_R is not None:
                labels[rows] = _invert_cdf(uniforms_R[rows], swept.mass_RM, hidden, weight_VD)
        ctx.save_for_backward(mean_RD)
        ctx.mark_non_differentiable(labels)
        return log_z, labels

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_R: Tensor, _grad_labels: Tensor):  # type: ignore[override]
        (mean_RD,) = ctx.saved_tensors
        return grad_R[:, None] * mean_RD, None, None


class _Sweep(NamedTuple):
    log_z: Tensor  # [R]
    mean_RD: Tensor  # sum_v p_v w_v
    mass_RM: Tensor  # mass of each run of RUN entries, up to a factor for each row; or empty


def _sweep(hidden_RD: Tensor, weight_VD: Tensor, keep_mass: bool) -> _Sweep:
    """Log-partition function and its gradient; exp2 throughout, in half the time of exp."""
    scaled = hidden_RD * LOG2E
    peak = hidden_RD.new_full((len(scaled), 1), -torch.inf)
    total, mean = torch.zeros_like(peak), torch.zeros_like(hidden_RD)
    buffer = hidden_RD.new_empty(len(scaled) * min(TILE, len(weight_VD)))
    masses, peaks = [], []
    for tile in weight_VD.split(TILE):
        logits = buffer[: len(scaled) * len(tile)].view(len(scaled), len(tile))
        torch.mm(scaled, tile.T, out=logits)
        new_peak = torch.maximum(peak, logits.amax(1, keepdim=True))
        weights = logits.sub_(new_peak).exp2_()
        shrink = torch.exp2(peak - new_peak)
        total = total * shrink + weights.sum(1, keepdim=True)
        mean.mul_(shrink).addmm_(weights, tile)
        peak = new_peak
        if keep_mass:
            padded = F.pad(weights, (0, -len(tile) % RUN)) if len(tile) % RUN else weights
            masses.append(padded.unflatten(1, (-1, RUN)).sum(-1))
            peaks.append(peak)
    scales = [torch.exp2(then - peak) for then in peaks]
    mass = [m * scale for m, scale in zip(masses, scales, strict=True)]
    log_z = (peak + total.log2()).squeeze(1) / LOG2E
    return _Sweep(log_z, mean.div_(total), torch.cat(mass, 1) if mass else hidden_RD.new_empty(0))


def _invert_cdf(uniforms_R: Tensor, mass_RM: Tensor, hidden_RD: Tensor, weight_VD: Tensor):
    """Labels [R]: the run that holds u by the masses, then the entry of the run by its logits."""
    mass, n_vocab = mass_RM.double(), len(weight_VD)
    cdf = mass.cumsum(1)
    target = uniforms_R.to(cdf)[:, None] * cdf[:, -1:]
    run = torch.searchsorted(cdf, target, right=True).clamp_max(mass.shape[1] - 1)
    inside = target - (cdf.gather(1, run) - mass.gather(1, run))  # mass of u beyond the run's start

    entries = run * RUN + torch.arange(RUN, device=run.device)
    logits = (weight_VD[entries.clamp_max(n_vocab - 1)] @ hidden_RD[:, :, None]).squeeze(2)
    logits = logits.double().masked_fill(entries >= n_vocab, -torch.inf)
    within = logits.softmax(1).cumsum(1) * mass.gather(1, run)
    place = torch.searchsorted(within, inside, right=True)
    return torch.minimum(run * RUN + place, (run * RUN + RUN - 1).clamp_max(n_vocab - 1)).squeeze(1)
