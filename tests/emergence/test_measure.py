"""Metrics against closed-form values, and against attention that is planted by hand."""

import numpy as np
import pytest
import torch

from mda.emergence.measure import copy_gain, icl_positions, icl_score
from mda.emergence.onset import crossing, onset
from mda.unit.metrics import prefix_matching, previous_token
from mda.unit.tokens import repeated_tokens, token_distribution

P = 16  # length of one copy


def planted(shift: int) -> torch.Tensor:
    """Attention of one head that puts all its mass `shift` positions back, [1, 1, 2P, 2P]."""
    attention = torch.zeros(1, 1, 2 * P, 2 * P)
    for t in range(2 * P):
        attention[0, 0, t, max(0, t - shift)] = 1
    return attention


def test_perfect_induction_scores_one_and_its_shifts_zero():
    assert prefix_matching(planted(P - 1), P).item() == pytest.approx(1)
    assert prefix_matching(planted(P), P).item() == pytest.approx(0)
    assert prefix_matching(planted(P - 2), P).item() == pytest.approx(0)


def test_perfect_previous_token_head_scores_one_and_its_shifts_zero():
    assert previous_token(planted(1), P).item() == pytest.approx(1)
    assert previous_token(planted(2), P).item() == pytest.approx(1 / (2 * P - 1))  # t = 1 sees 0
    assert previous_token(planted(0), P).item() == pytest.approx(0)


def test_uniform_causal_attention_has_the_closed_form():
    attention = torch.ones(2 * P, 2 * P).tril()
    attention = (attention / attention.sum(1, keepdim=True))[None, None]
    second_copy = np.mean([1 / (t + 1) for t in range(P, 2 * P)])
    assert prefix_matching(attention, P).item() == pytest.approx(second_copy)
    everywhere = np.mean([1 / (t + 1) for t in range(1, 2 * P)])
    assert previous_token(attention, P).item() == pytest.approx(everywhere)


def test_metrics_keep_sequences_and_heads_apart():
    attention = torch.cat([planted(P - 1), planted(1)], 1).repeat(3, 1, 1, 1)
    assert prefix_matching(attention, P).tolist() == [[1.0, 0.0]] * 3
    assert previous_token(attention, P)[:, 1].tolist() == [1.0] * 3


def test_copy_gain_of_a_perfect_copier_is_what_the_first_copy_costs():
    vocab, rng = 11, torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocab, (4, P), generator=rng).repeat(1, 2)
    logits = torch.zeros(4, 2 * P, vocab)  # first copy: uniform, log p = -log V
    for t in range(P, 2 * P - 1):
        logits[torch.arange(4), t, tokens[:, t + 1]] = 50
    assert copy_gain(logits, tokens, P) == pytest.approx(np.full(4, np.log(vocab)), abs=1e-4)
    shifted = torch.roll(logits, 1, 1)
    assert (copy_gain(shifted, tokens, P) < 0).all()


def test_icl_score_takes_the_stated_positions():
    loss = torch.arange(20.0).repeat(3, 1)
    assert icl_score(loss, late=12, early=(0, 4)) == 12 - 1.5
    assert icl_positions(2048, None, None) == (500, (0, 50))
    assert icl_positions(128, None, None) == (31, (0, 3))
    assert icl_positions(128, 100, [2, 8]) == (100, (2, 8))


def test_onset_interpolates_the_first_crossing():
    steps, values = np.array([0, 100, 200, 300]), np.array([0.0, 0.1, 0.3, 0.2])
    assert crossing(steps, values, 0.2) == pytest.approx(150)
    assert crossing(steps, values, 0.5) is None
    assert crossing(steps, values, -1) == 0


def test_onset_band_brackets_the_crossing():
    steps, values = np.arange(0, 500, 100), np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    found = onset(steps, values, np.full(5, 0.05 / 1.96), 0.2)
    assert (found.low, found.step, found.high) == pytest.approx((150, 200, 250))
    assert onset(steps, values, None, 0.2).low == found.step


def test_probe_tokens_are_seeded_and_never_special():
    counts = np.array([1000, 1000, 4, 0, 16, 64])
    probabilities = token_distribution(counts, (0, 1), "unigram_sqrt")
    assert probabilities.tolist() == pytest.approx([0, 0, 2 / 14, 0, 4 / 14, 8 / 14])
    assert token_distribution(counts, (0, 1), "uniform").tolist() == pytest.approx(
        [0, 0, 1 / 3, 0, 1 / 3, 1 / 3]
    )
    draw = [
        repeated_tokens(probabilities, 50, 8, generator=torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    ]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])
    assert torch.equal(draw[0][:, :8], draw[0][:, 8:])
    assert not set(draw[0].unique().tolist()) & {0, 1, 3}
    with pytest.raises(ValueError, match="accepted: unigram_sqrt"):
        token_distribution(counts, (), "zipf")
