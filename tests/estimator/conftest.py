"""Float64 toy models, a few rows of tokens, and a nano model that has begun to learn."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mda.model.build import scratch
from mda.schema import ScratchConfig

sys.path.insert(0, str(Path(__file__).parent))
from in_memory import Case, Table, corpus_of
from nano_run import trained

N_VOCAB = 40
TOY = ScratchConfig(
    n_layers=2, d_model=12, n_heads=2, d_ff=24, vocab_size=N_VOCAB, max_seq_len=32, rotary_pct=1.0
)
CASES = [f"{family} {kind}" for family in ("neox", "llama")
         for kind in ("heads", "neurons", "mlp", "attention")]  # fmt: skip


def shaken(model):
    """In float64, with weights large enough for uneven attention, no bias 0 and no norm 1."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.mul_(2 if parameter.ndim == 2 else 1)
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).double())
    return model


@pytest.fixture
def toy():
    """GPT-NeoX: two layers of two heads."""
    return shaken(scratch(TOY, seed=0))


@pytest.fixture
def llama():
    """Llama with biases: two layers of four heads, two for each key-value head, a gated MLP."""
    config = LlamaConfig(
        num_hidden_layers=2,
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=20,
        vocab_size=N_VOCAB,
        max_position_embeddings=32,
        attention_bias=True,
        mlp_bias=True,
        pad_token_id=None,
        use_cache=False,
    )
    model, generator = LlamaForCausalLM(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.16, generator=generator)
    return shaken(model)


@pytest.fixture(params=CASES)
def case(request, toy, llama):
    """All blocks of one kind, biases included, of a GPT-NeoX or a Llama."""
    family, kind = request.param.split()
    return Case.of(toy if family == "neox" else llama, kind)


@pytest.fixture
def table():
    """Nine samples of 8 + 1 tokens, and others with one of two labels."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.randint(N_VOCAB, (70, 9), generator=generator)
    labels = ["code" if i % 3 == 0 else "prose" for i in range(70)]
    ids = 7 * np.arange(9) + 3
    return Table(corpus_of(rows, N_VOCAB, labels, np.setdiff1d(np.arange(70), ids)[:20]), ids)


@pytest.fixture(scope="session")
def nano():
    """The nano shape after the steps of `nano_run`, in float64."""
    torch.set_num_threads(1)
    return trained(scratch(ScratchConfig(), seed=0))
