"""The chunked loss equals the plain one, and its labels follow the model's distribution."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import toy

from mda.model import loss
from mda.model.loss import (
    Unembedding,
    cross_entropy,
    label_uniforms,
    sampled_cross_entropy,
    unembedding,
)

UNEMBEDDINGS = {
    "plain": {},
    "scaled": {"scale": 0.3},
    "capped": {"cap": 1.5},
    "scaled and capped": {"scale": 2.0, "cap": 4.0},
}
VOCABULARIES = (5, 64, 70, 130)  # below, at and beside multiples of a run


def problem(n_vocab: int, rows: int = 6, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(n_vocab)
    hidden = torch.randn(2, rows // 2, 8, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(n_vocab, 8, generator=generator, dtype=dtype)
    return hidden, weight, torch.randint(n_vocab, (2, rows // 2), generator=generator)


def logits_of(hidden, weight, scale=1.0, cap=None):
    logits = scale * (hidden @ weight.T)
    return logits if cap is None else cap * (logits / cap).tanh()


@pytest.mark.parametrize("n_vocab", VOCABULARIES)
@pytest.mark.parametrize("tile", [64, 4096])
@pytest.mark.parametrize("rows", [4, 256])
@pytest.mark.parametrize("kind", UNEMBEDDINGS)
def test_loss_and_gradient_equal_those_of_the_logits(monkeypatch, n_vocab, tile, rows, kind):
    monkeypatch.setattr(loss, "TILE", tile)
    monkeypatch.setattr(loss, "CHUNK", rows * min(tile, n_vocab))
    hidden, weight, labels = problem(n_vocab)
    upstream = torch.rand(labels.shape, dtype=torch.float64)
    logits = logits_of(hidden, weight, **UNEMBEDDINGS[kind])
    plain = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    ours = cross_entropy(hidden, Unembedding(weight, **UNEMBEDDINGS[kind]), labels)
    torch.testing.assert_close(ours.flatten(), plain)
    (expected,) = torch.autograd.grad(plain, hidden, upstream.flatten())
    torch.testing.assert_close(torch.autograd.grad(ours, hidden, upstream)[0], expected)


def test_logits_far_from_zero_neither_overflow_nor_vanish():
    hidden, weight, labels = problem(130, dtype=torch.float32)
    for scale in (1e-3, 30.0):
        far = (hidden * scale).detach().requires_grad_()
        plain = F.cross_entropy((far @ weight.T).flatten(0, 1), labels.flatten(), reduction="none")
        # float32 logits of size 100 are known to 1e-5
        torch.testing.assert_close(
            cross_entropy(far, Unembedding(weight), labels).flatten(), plain, rtol=1e-5, atol=2e-5
        )


@pytest.mark.parametrize("n_vocab", VOCABULARIES)
@pytest.mark.parametrize("kind", UNEMBEDDINGS)
def test_sampled_labels_are_the_inverse_cdf(monkeypatch, n_vocab, kind):
    monkeypatch.setattr(loss, "TILE", 64)
    hidden, weight, _ = problem(n_vocab, rows=600)
    uniforms = label_uniforms(0, [3, 7], 300)
    unembed = Unembedding(weight, **UNEMBEDDINGS[kind])
    losses, labels = sampled_cross_entropy(hidden, unembed, uniforms)
    cdf = logits_of(hidden, weight, **UNEMBEDDINGS[kind]).softmax(-1).cumsum(-1)
    expected = torch.searchsorted(cdf.detach(), uniforms[..., None], right=True).squeeze(-1)
    assert torch.equal(labels, expected.clamp_max(n_vocab - 1))
    torch.testing.assert_close(losses, cross_entropy(hidden, unembed, labels))


def test_the_ends_of_the_cdf_are_the_ends_of_the_vocabulary():
    hidden, weight, _ = problem(70)
    for u, label in ((0.0, 0), (1 - 1e-16, 69)):
        _, labels = sampled_cross_entropy(
            hidden, Unembedding(weight), torch.full((2, 3), u).double()
        )
        assert labels.eq(label).all()


def test_uniforms_depend_on_seed_and_id_only():
    together = label_uniforms(5, [11, 12, 13], 8)
    assert torch.equal(label_uniforms(5, np.array([12]), 8)[0], together[1])
    assert torch.equal(label_uniforms(5, [12], 4)[0], together[1, :4])
    assert not torch.equal(label_uniforms(6, [12], 8)[0], together[1])
    assert len(together.unique()) == together.numel()


def test_a_biased_unembedding_is_refused():
    model = toy()
    model.set_output_embeddings(torch.nn.Linear(24, 31))
    with pytest.raises(ValueError, match="has a bias"):
        unembedding(model)
