"""A model small enough for float64 and finite differences, with every path switched on."""

import pytest
import torch
from mda.model.pythia import scratch

from mda.schema import ModelConfig

TOY = ModelConfig(
    n_layers=3, d_model=16, n_heads=2, d_ff=32, vocab_size=70, max_seq_len=32, rotary_pct=0.5
)


@pytest.fixture
def toy():
    """Three layers of two heads in float64. Larger weights than at the start of training make
    attention far from uniform, and no bias is zero."""
    torch.set_num_threads(1)
    model = scratch(TOY, seed=0).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2 if parameter.ndim == 2 else 1)
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).double())
    return model


@pytest.fixture
def tokens():
    """Four rows of 12 + 1 tokens."""
    return torch.randint(70, (4, 13), generator=torch.Generator().manual_seed(2))
