"""Training a top-k sparse autoencoder (Gao et al. 2024, arXiv 2406.04093).

With x in units in which its mean square distance from the centre is 1 a dimension,

    f = relu of the k largest of W_enc (x - b_dec) + b_enc          x^ = W_dec^T f + b_dec
    loss = (sum ||x - x^||^2 + a sum ||(x - x^) - e^||^2) / sum ||x - mean||^2

over the tokens of a batch. e^ is the reconstruction of the error by the largest D / 2 dead
features, and the only term that gives them a gradient. b_dec starts at the geometric median, W_enc
as W_dec, whose rows keep norm 1. Adam; the learning rate rises for `warmup` steps and falls to 0
over the last fifth. At the end the units are folded back into the biases, so that the SAE reads the
activations as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mda.sae.autoencoder import Sae
from mda.sae.hooks import Hookpoint

DECAY = 0.2  # share of the steps over which the learning rate falls
LOG_EVERY = 50  # steps


@dataclass(frozen=True)
class Progress:
    """A point of a training's history.

    `explained_variance` is the share of the batch's variance that is explained, `dead_share` the
    share of features that were not active in the last `dead_tokens` tokens.
    """

    step: int
    explained_variance: float
    dead_share: float


def train_topk_sae(
    batches: Iterable[Tensor],
    *,
    hook: Hookpoint,
    n_features: int,
    k: int,
    steps: int,
    seed: int,
    lr: float = 3e-3,
    warmup: int = 50,
    dead_tokens: int = 100_000,
    aux_weight: float = 1 / 32,
) -> tuple[Sae, list[Progress]]:
    """Trains on `steps` batches of activations, [.., D] each.

    Returns the SAE in float32, and its history. The first batch sets the centre and the units. On a
    CPU, with the same number of threads, the result is a function of the batches and the seed, bit
    for bit. A feature is dead when it was not active in the last `dead_tokens` tokens. Raises
    ValueError where there are fewer batches than steps, or where the activations of the first batch
    do not vary.
    """
    taken = (x.detach().float().flatten(0, -2) for x, _ in zip(batches, range(steps), strict=False))
    if (first := next(taken, None)) is None:
        raise ValueError("no activations to train on")
    centre_D = geometric_median(first)
    scale = (first - centre_D).square().mean().sqrt()
    if not scale > 0:
        raise ValueError("the activations of the first batch are all the same")
    weights = Weights.drawn(first.shape[1], n_features, seed, first.device)
    optimizer = torch.optim.Adam(weights.parameters(), lr=lr)
    silent_F = torch.zeros(n_features, device=first.device)  # tokens since a feature was active
    history: list[Progress] = []
    step = 0
    for step, x_ND in enumerate(_chain(first, taken), start=1):
        x_ND = (x_ND - centre_D) / scale
        optimizer.zero_grad()
        with torch.enable_grad():  # the batches may come from a model that runs without
            loss, explained, fired_F = weights.loss(x_ND, k, silent_F >= dead_tokens, aux_weight)
            loss.backward()
        weights.keep_decoder_norms()
        for group in optimizer.param_groups:
            group["lr"] = lr * _factor(step, steps, warmup)
        optimizer.step()
        weights.normalize_decoder()
        silent_F = torch.where(fired_F, 0, silent_F + len(x_ND))
        if step % LOG_EVERY == 0 or step == steps:
            dead = (silent_F >= dead_tokens).float().mean().item()
            history.append(Progress(step, explained.item(), dead))
    if step < steps:
        raise ValueError(f"{step} batches of activations for {steps} steps")
    return weights.sae(hook, k, centre_D, scale), history


@torch.no_grad()
def geometric_median(x_ND: Tensor, iterations: int = 50) -> Tensor:
    """Returns the point with the least sum of distances to the rows, [D] (Weiszfeld's iteration).

    Unlike the mean, it is robust to the few positions of very large norm that language models have.
    """
    median_D = x_ND.mean(0)
    for _ in range(iterations):
        weights_N = 1 / (x_ND - median_D).norm(dim=1).clamp(min=1e-8)
        median_D = (weights_N[:, None] * x_ND).sum(0) / weights_N.sum()
    return median_D


@dataclass(frozen=True)
class Weights:
    """The parameters while they are trained, in units of the scaled activations."""

    W_enc_FD: Tensor
    b_enc_F: Tensor
    W_dec_FD: Tensor
    b_dec_D: Tensor

    @classmethod
    def drawn(cls, d_in: int, n_features: int, seed: int, device: torch.device) -> Weights:
        generator = torch.Generator().manual_seed(seed)
        W_dec_FD = F.normalize(torch.randn(n_features, d_in, generator=generator)).to(device)
        zeros = torch.zeros(n_features, device=device), torch.zeros(d_in, device=device)
        made = cls(W_dec_FD.clone(), zeros[0], W_dec_FD, zeros[1])
        for parameter in made.parameters():
            parameter.requires_grad_()
        return made

    def parameters(self) -> list[Tensor]:
        return [self.W_enc_FD, self.b_enc_F, self.W_dec_FD, self.b_dec_D]

    def loss(
        self, x_ND: Tensor, k: int, dead_F: Tensor, aux_weight: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the loss, the explained share of the variance, and which features were active."""
        pre_NF = F.linear(x_ND - self.b_dec_D, self.W_enc_FD, self.b_enc_F).relu()
        f_NF = _top(pre_NF, k)
        error_ND = x_ND - f_NF @ self.W_dec_FD - self.b_dec_D
        variance = (x_ND - x_ND.mean(0)).square().sum()
        unexplained = error_ND.square().sum() / variance
        loss = unexplained
        if n_dead := int(dead_F.sum()):
            dead_NF = _top(pre_NF * dead_F, min(n_dead, max(1, x_ND.shape[1] // 2)))
            left_ND = error_ND.detach() - dead_NF @ self.W_dec_FD
            loss = loss + aux_weight * left_ND.square().sum() / variance
        return loss, 1 - unexplained.detach(), (f_NF.detach() > 0).any(0)

    @torch.no_grad()
    def keep_decoder_norms(self) -> None:
        """Removes from the gradient the part that only changes the norms of decoder rows."""
        gradient = self.W_dec_FD.grad
        assert gradient is not None
        gradient -= (gradient * self.W_dec_FD).sum(1, keepdim=True) * self.W_dec_FD

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        self.W_dec_FD.div_(self.W_dec_FD.norm(dim=1, keepdim=True))

    def sae(self, hook: Hookpoint, k: int, centre_D: Tensor, scale: Tensor) -> Sae:
        """Returns the SAE of x itself, which is centre + scale times the x of the training."""
        W_enc, b_enc, W_dec, b_dec = (parameter.detach() for parameter in self.parameters())
        b_dec = centre_D + scale * b_dec
        return Sae("topk", hook, W_enc, scale * b_enc, W_dec, b_dec, centred=True, k=k)


def _top(values_NF: Tensor, k: int) -> Tensor:
    """Returns the k largest of each row in place, and 0 elsewhere."""
    largest = values_NF.topk(k, dim=1, sorted=False)
    return torch.zeros_like(values_NF).scatter(1, largest.indices, largest.values)


def _factor(step: int, steps: int, warmup: int) -> float:
    left = (steps - step + 1) / (DECAY * steps)
    return min(1.0, step / warmup if warmup else 1.0, left)


def _chain(first: Tensor, rest: Iterable[Tensor]) -> Iterable[Tensor]:
    yield first
    yield from rest
