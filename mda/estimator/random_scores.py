"""The baseline: scores that know nothing of the model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def random_scores(sample_ids: np.ndarray, n_units: int, seed: int) -> Tensor:
    """Independent standard normal scores, float32 [N, U].

    A sample's scores depend on seed and sample id only, so that they are the same in every window
    and on any number of processes.
    """
    generators = (np.random.Generator(np.random.Philox(key=[seed, int(i)])) for i in sample_ids)
    scores = [g.standard_normal(n_units, dtype=np.float32) for g in generators]
    return torch.from_numpy(np.stack(scores)) if scores else torch.zeros(0, n_units)
