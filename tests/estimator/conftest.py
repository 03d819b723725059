"""A float64 toy model, a few rows of tokens, and a nano model that has begun to learn."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mda.model.pythia import scratch

from mda.schema import ModelConfig

TOY = ModelConfig(
    n_layers=2, d_model=12, n_heads=2, d_ff=24, vocab_size=40, max_seq_len=32, rotary_pct=1.0
)


@pytest.fixture
def toy():
    """Two layers of two heads in float64, with weights large enough for uneven attention."""
    torch.set_num_threads(1)
    model = scratch(TOY, seed=0).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2 if parameter.ndim == 2 else 1)
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).double())
    return model


class Table:
    """Token rows by sample id, as a corpus has them: `rows`, and `ids` that are not 0, 1, 2."""

    def __init__(self, n: int, length: int, n_vocab: int) -> None:
        generator = torch.Generator().manual_seed(2)
        self.tokens = torch.randint(n_vocab, (n, length + 1), generator=generator)
        self.ids = 7 * np.arange(n) + 3

    def rows(self, sample_ids: np.ndarray) -> torch.Tensor:
        return self.tokens[(np.asarray(sample_ids) - 3) // 7]


@pytest.fixture
def table():
    """Nine samples of 8 + 1 tokens."""
    return Table(9, 8, 40)


def structured_rows(n: int, length: int, n_vocab: int) -> torch.Tensor:
    """Random segments that repeat within a row, so that there is something to copy."""
    generator = torch.Generator().manual_seed(3)
    period = torch.randint(4, 9, (n, 1), generator=generator)
    first = torch.randint(n_vocab, (n, 9), generator=generator)
    return first.gather(1, torch.arange(length + 1).expand(n, -1) % period)


@pytest.fixture(scope="session")
def nano():
    """The nano shape after 60 steps on repeating rows, in float64, and its rows."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = scratch(ModelConfig(), seed=0)
    rows = structured_rows(64 * 16, 32, 512)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in rows[: 60 * 16].split(16):
        logits = model(batch[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.double(), rows[60 * 16 :]
