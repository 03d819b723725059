"""Quality of a sparse autoencoder on activations that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mda.sae.autoencoder import Sae


@dataclass(frozen=True)
class Quality:
    """Reconstruction and sparsity on held-out activations.

    `explained_variance` is 1 - sum ||x - x^||^2 / sum ||x - mean||^2 over tokens, `l0` the mean
    number of active features of a token, and `dead_share` the share of features that are never
    active here.
    """

    explained_variance: float
    l0: float
    dead_share: float
    tokens: int


@torch.no_grad()
def quality(sae: Sae, batches: Iterable[Tensor]) -> Quality:
    """Measures the quality on activations, [.., D] each.

    Raises ValueError without any activation.
    """
    error = square = active = 0.0
    total_D = torch.zeros(sae.d_in, dtype=torch.float64)
    fired_F = torch.zeros(sae.n_features, dtype=torch.bool)
    tokens = 0
    for x in batches:
        x_ND = x.reshape(-1, sae.d_in)
        features_NF = sae.encode(x_ND)
        exact_ND = x_ND.double()
        error += (exact_ND - sae.decode(features_NF, x_ND)).square().sum().item()
        square += exact_ND.square().sum().item()
        total_D += exact_ND.sum(0).cpu()
        active += (features_NF > 0).sum().item()
        fired_F |= (features_NF > 0).any(0).cpu()
        tokens += len(x_ND)
    if not tokens:
        raise ValueError("no activations to measure the quality on")
    variance = square - total_D.square().sum().item() / tokens
    return Quality(
        explained_variance=1 - error / variance,
        l0=active / tokens,
        dead_share=1 - fired_F.double().mean().item(),
        tokens=tokens,
    )
