"""A model small enough for float64 and finite differences, with every path switched on."""

import numpy as np
import pytest
import torch
from families import LENGTH, N_VOCAB, toy_tokens
from families import toy as make_toy

from mda.data.stream import Corpus


@pytest.fixture
def toy():
    """Three GPT-NeoX layers of two heads, residuals parallel."""
    return make_toy("neox sequential", num_hidden_layers=3, use_parallel_residual=True)


@pytest.fixture
def tokens():
    """Four rows of 9 + 1 tokens."""
    return toy_tokens(4)


@pytest.fixture
def corpus():
    """Sixty rows of three classes, half of them held out; tokens 0 and 3 are special."""
    rows = torch.randint(N_VOCAB, (60, LENGTH + 1), generator=torch.Generator().manual_seed(4))
    counts = np.bincount(rows.numpy().ravel(), minlength=N_VOCAB)
    return Corpus(
        tokens=rows.numpy().astype(np.uint16),
        labels=(np.arange(60) // 2 % 3).astype(np.int16),
        label_names=("code", "latex", "prose"),
        vocab_size=N_VOCAB,
        special_ids=(0, 3),
        counts=counts,
        tokenizer=None,
        held_out=np.arange(1, 60, 2),
        fingerprint="made up",
    )
