"""A small model with every path switched on, and activations of it.

The tests of this folder can import `layouts`, which is no test itself.
"""

import sys
from pathlib import Path

import pytest
import torch

from mda.model.build import scratch
from mda.sae.hooks import GPT_NEOX, Hookpoint, activations
from mda.schema import ScratchConfig

sys.path.insert(0, str(Path(__file__).parent))
TOY = ScratchConfig(
    n_layers=3, d_model=16, n_heads=2, d_ff=32, vocab_size=70, max_seq_len=32, rotary_pct=0.5
)


@pytest.fixture(scope="session")
def model():
    """Three layers in float32. Larger weights than at the start of training make the layers write
    enough for the residual stream to differ from the embedding, and large biases give it a mean
    that is far from 0, as trained models have."""
    torch.set_num_threads(1)
    model = scratch(TOY, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2 if parameter.ndim == 2 else 1)
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="session")
def tokens():
    return torch.randint(70, (64, 32), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="session")
def x(model, tokens):
    """Residual stream after layer 1, [64, 32, 16]."""
    with torch.no_grad():
        return activations(model, tokens, Hookpoint("resid_post", 1), GPT_NEOX)
