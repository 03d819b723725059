"""Random tokens for probes: from a stated distribution, seeded, never special ids or padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def token_distribution(
    counts: np.ndarray, special_ids: Sequence[int], kind: str = "unigram_sqrt"
) -> torch.Tensor:
    """Returns the probability of each token id, float64 [V].

    `unigram` follows the corpus' counts, `unigram_sqrt` their square roots (closer to uniform,
    still made of tokens the model knows), `uniform` every token that occurs. Special ids and ids
    that never occur (such as the padding of a vocabulary) have probability 0.
    """
    weights = np.asarray(counts, dtype=np.float64).copy()
    weights[list(special_ids)] = 0
    if kind == "unigram_sqrt":
        weights = np.sqrt(weights)
    elif kind == "uniform":
        weights = (weights > 0).astype(np.float64)
    elif kind != "unigram":
        raise ValueError(f"token distribution {kind!r}; expected unigram_sqrt, unigram, uniform")
    return torch.from_numpy(weights / weights.sum())


def random_tokens(
    probabilities_V: torch.Tensor, n: int, length: int, *, generator: torch.Generator
) -> torch.Tensor:
    """Returns independent draws, int64 [n, length]."""
    drawn = torch.multinomial(probabilities_V, n * length, replacement=True, generator=generator)
    return drawn.view(n, length)


def repeated_tokens(
    probabilities_V: torch.Tensor,
    n: int,
    length: int,
    *,
    repeats: int = 2,
    generator: torch.Generator,
) -> torch.Tensor:
    """Returns random tokens followed by copies of themselves, int64 [n, repeats * length]."""
    return random_tokens(probabilities_V, n, length, generator=generator).repeat(1, repeats)
