"""Metrics against closed-form values, and against attention that is planted by hand."""

import math

import numpy as np
import pytest
import torch

from mda.data.stream import Corpus
from mda.emergence.measure import (
    Probes,
    copy_gain,
    icl_bands,
    icl_olsson,
    icl_scores,
    make_probes,
    measure,
)
from mda.emergence.onset import crossing, onset, unit_onset
from mda.model.build import scratch
from mda.model.plain_attention import eager_attention
from mda.schema import EmergenceConfig, ScratchConfig
from mda.unit.metrics import prefix_matching, previous_token, second_previous_token
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


def test_perfect_second_previous_token_head_scores_one_and_its_shifts_zero():
    assert second_previous_token(planted(2), P).item() == pytest.approx(1)
    assert second_previous_token(planted(3), P).item() == pytest.approx(1 / (2 * P - 2))  # t = 2
    assert second_previous_token(planted(1), P).item() == pytest.approx(0)


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
    vocab = 11
    loss = torch.full((4, 2 * P - 1), float(np.log(vocab)))  # first copy: uniform
    loss[:, P:] = 0  # position t predicts token t + 1: the copy is known from t = P on
    assert copy_gain(loss, P) == pytest.approx(np.full(4, np.log(vocab)), abs=1e-6)
    shifted = torch.roll(loss, 1, 1)
    shifted[:, 0] = float(np.log(vocab))
    assert copy_gain(shifted, P) == pytest.approx(np.full(4, np.log(vocab) * (P - 2) / (P - 1)))


def test_icl_score_takes_the_stated_bands():
    loss = torch.arange(20.0).repeat(3, 1) + torch.tensor([0.0, 10.0, 20.0])[:, None]
    assert icl_scores(loss, late=(12, 15), early=(0, 4)).tolist() == [13 - 1.5] * 3
    assert icl_bands(2048, None, None) == ((1024, 2048), (0, 50))
    assert icl_bands(128, None, None) == ((64, 128), (0, 3))
    assert icl_bands(160, None, None) == ((80, 160), (0, 4))  # 3.9 positions
    assert icl_bands(8, None, None) == ((4, 8), (0, 1))
    assert icl_bands(128, [100, 110], [2, 8]) == ((100, 110), (2, 8))


def test_the_bands_of_the_icl_score_are_those_of_the_settings():
    tokens = np.random.default_rng(0).integers(2, 40, (30, 17), dtype=np.uint16)
    counts, held_out = np.bincount(tokens.ravel(), minlength=40), np.arange(30)
    corpus = Corpus(tokens, np.zeros(30, np.int32), ("all",), 40, (), counts, None, held_out, "fp")
    shared = {"n_sequences": 2, "length": 4}
    for bands in ({"icl_late": [9, 14]}, {"icl_early": [2, 5]}):
        probes = make_probes(corpus, EmergenceConfig(**shared, **bands))
        plain = {"icl_late": [8, 16], "icl_early": [0, 1]}
        assert {name: list(getattr(probes, name)) for name in plain} == plain | bands


def test_all_held_out_rows_are_measured_unless_fewer_are_asked_for():
    tokens = np.random.default_rng(0).integers(2, 40, (60, 17), dtype=np.uint16)
    counts = np.bincount(tokens.ravel(), minlength=40)
    held_out = np.arange(20, 60)
    labels = np.zeros(60, dtype=np.int32)
    corpus = Corpus(tokens, labels, ("all",), 40, (), counts, None, held_out, "fp")

    def rows(**settings) -> list[list[int]]:
        probes = make_probes(corpus, EmergenceConfig(n_sequences=2, length=4, **settings))
        assert len(probes.held_out_labels) == len(probes.held_out_MT1)
        return probes.held_out_MT1.tolist()

    assert rows() == rows(held_out=40) == tokens[20:].tolist()
    few = rows(held_out=9)
    assert len(few) == 9 and all(row in rows() for row in few)
    assert few == rows(held_out=9) != rows(held_out=9, seed=1)


def test_olssons_score_takes_two_positions():
    loss = torch.arange(2048.0).repeat(2, 1)
    assert icl_olsson(loss) == 450
    assert icl_olsson(loss[:, :128]) == 31 - 3


def test_a_measured_row_is_what_transformers_says():
    """Losses, bands, classes and heads of a real model, computed here from its own logits."""
    torch.manual_seed(0)
    model = scratch(
        ScratchConfig(n_layers=2, d_model=16, n_heads=2, d_ff=32, vocab_size=40, max_seq_len=32), 1
    )
    held_out = torch.randint(40, (6, 25))
    labels = ("code", "generated_xml", "code", "prose", "generated_xml", "prose")
    repeated = torch.randint(40, (4, 8)).repeat(1, 2)
    row = measure(model, Probes(repeated, 8, held_out, labels, (12, 24), (0, 2)))
    with torch.no_grad():
        log_p = model(held_out[:, :-1]).logits.log_softmax(-1)
    loss = -log_p.gather(2, held_out[:, 1:, None]).squeeze(2)
    score = loss[:, 12:24].mean(1) - loss[:, :2].mean(1)
    with torch.no_grad(), eager_attention(model):
        own = model(repeated, output_attentions=True).attentions[1][:, 0].double()
    found = {
        "prefix_matching": torch.stack([own[:, t, t - 7] for t in range(8, 16)]).mean(0),
        "previous_token": torch.stack([own[:, t, t - 1] for t in range(1, 16)]).mean(0),
    }
    expected = {
        **{f"emergence/{metric}/L1H0": of.mean() for metric, of in found.items()},
        **{f"emergence/{metric}_se/L1H0": of.std() / 4**0.5 for metric, of in found.items()},
        "val/loss": loss.mean(),
        "val/loss/prose": loss[[3, 5]].mean(),
        "emergence/icl_score": score.mean(),
        "emergence/icl_score_se": score.std() / 6**0.5,
        "emergence/icl_score/generated": score[[1, 4]].mean(),
        "emergence/icl_score/real": score[[0, 2, 3, 5]].mean(),
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(value.item(), rel=1e-5), name
    without = measure(model, Probes(repeated, 8, held_out, labels, (12, 24), (0, 2)), False)
    assert list(without) == list(row)
    for name, value in without.items():
        held = name.startswith(("val/", "emergence/icl"))
        assert math.isnan(value) if held else value == row[name], name
    heads = [row[f"emergence/prefix_matching/L{n}H{h}"] for n in range(2) for h in range(2)]
    assert row["emergence/prefix_matching/strongest"] == max(heads)
    with torch.no_grad():
        log_p = model(repeated[:, :-1]).logits.log_softmax(-1)
    told = log_p.gather(2, repeated[:, 1:, None]).squeeze(2)
    gain = told[:, 8:].mean() - told[:, :7].mean()
    assert row["emergence/copy_gain"] == pytest.approx(gain.item(), rel=1e-4)


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


def test_a_curve_that_begins_above_the_threshold_has_no_onset_of_its_own():
    steps = np.array([0, 100, 200])
    for first, before in ((0.19, False), (0.2, True), (0.9, True)):
        found = onset(steps, [first, 0.1, 0.3], None, 0.2)
        assert found.before is before
        assert found.step == (0 if before else pytest.approx(150))


def test_a_units_onset_is_that_of_its_own_rows_and_errors():
    """Crosses 0.2 at 200; the band is 0.05 wide on either side, the other metric's has no width."""
    curve = [{"step": step, "val/loss": 1.0} for step in range(0, 500, 50)]
    for row, value in zip(curve[::2], (0.0, 0.1, 0.2, 0.3, 0.4), strict=True):
        row |= {"emergence/previous_token/L2H1": value, "emergence/previous_token/L2H0": 0.9}
        row |= {
            "emergence/previous_token_se/L2H1": 0.05 / 1.96,
            "emergence/previous_token_se/L2H0": 0.0,
            "emergence/prefix_matching_se/L2H1": 0.0,
        }
    found = unit_onset(curve, "previous_token", "L2H1", 0.2)
    assert (found.low, found.step, found.high) == pytest.approx((150, 200, 250))
    for row in curve[::2]:
        del row["emergence/previous_token_se/L2H1"]
    found = unit_onset(curve, "previous_token", "L2H1", 0.2)
    assert (found.low, found.step, found.high) == pytest.approx((200, 200, 200))


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
    with pytest.raises(ValueError, match="expected unigram_sqrt"):
        token_distribution(counts, (), "zipf")
