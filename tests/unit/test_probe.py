"""Probes: correct to the position, seeded, differentiated through everything that counts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mda.model.head_layout import attention, attention_pattern, block_weight, rotary_tables
from mda.unit.gradients import record
from mda.unit.probe import Probe, draw_probe, probe_gradients, probe_values
from mda.unit.subspace import Subspace

from mda.types import HeadId
from mda.unit import probe as probe_module
from mda.unit.tokens import token_distribution

UNIFORM = torch.full((70,), 1 / 70, dtype=torch.float64)
LAYERS = range(3)
SHARP = 40.0  # logit of a planted prediction


def draw(target: str, **settings) -> Probe:
    return draw_probe(target, UNIFORM, **{"n": 3, "length": 6, "seed": 0} | settings)


def planted(monkeypatch, model, predicted):
    """Make the model predict, with logit SHARP, the token `predicted(inputs)` at each position."""

    def planted_record(model, inputs_BT, layers):
        hidden = SHARP * torch.nn.functional.one_hot(predicted(inputs_BT), 70).double()
        return SimpleNamespace(hidden_BTD=hidden)

    monkeypatch.setattr(probe_module, "record", planted_record)
    monkeypatch.setattr(probe_module, "unembedding", lambda _: torch.eye(70, dtype=torch.float64))


def continuing(inputs, period: int, shift: int):
    """The token `shift` places after the previous occurrence of each position's token."""
    t = torch.arange(inputs.shape[1])
    return inputs[:, (t - period + shift).clamp(0, inputs.shape[1] - 1)]


@pytest.mark.parametrize("repeats", [2, 3])
def test_a_perfect_copier_maximises_the_copy_probe(monkeypatch, toy, repeats):
    probe = draw("copy", repeats=repeats)
    planted(monkeypatch, toy, lambda inputs: continuing(inputs, 6, 1))
    # log p = -log(1 + 69 e^-40), zero to float64
    assert probe_values(toy, probe)[0, 0].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shift", [-1, 0, 2])
def test_a_copier_that_is_one_position_off_fails(monkeypatch, toy, shift):
    probe = draw("copy")
    planted(monkeypatch, toy, lambda inputs: continuing(inputs, 6, shift))
    assert probe_values(toy, probe)[0, 0].item() < -SHARP / 2


def test_what_is_predicted_within_the_first_copy_does_not_count(monkeypatch, toy):
    probe = draw("copy")

    def right_only_from_the_second_copy(inputs):
        predicted = continuing(inputs, 6, 1)
        predicted[:, :6] = 0
        return predicted

    planted(monkeypatch, toy, right_only_from_the_second_copy)
    assert probe_values(toy, probe)[0, 0].item() == pytest.approx(0, abs=1e-12)


def test_copy_probe_is_the_mean_log_probability_of_its_targets(toy):
    probe = draw("copy", repeats=3)
    log_p = toy(probe.tokens_MS[:, :-1]).logits.log_softmax(-1)
    expected = np.mean(
        [
            log_p[row, t, probe.tokens_MS[row, t - 6 + 1]].item()
            for row in range(3)
            for t in range(6, 18)
        ]
    )
    assert probe_values(toy, probe)[0, 0].item() == pytest.approx(expected, rel=1e-12)


def test_previous_token_probe_is_the_mean_of_its_diagonal(toy):
    probe = draw("previous_token", length=9, repeats=1)
    tape = record(toy, probe.tokens_MS, LAYERS)
    cos, sin = rotary_tables(toy, 9)
    for layer in LAYERS:
        pattern = attention_pattern(tape.qkv_BTX[layer], 2, cos, sin)
        for head in range(2):
            diagonal = [pattern[m, head, t, t - 1].item() for m in range(3) for t in range(1, 9)]
            value = probe_values(toy, probe)[layer, head].item()
            assert value == pytest.approx(np.mean(diagonal), rel=1e-12)


def finite_difference(model, weight, direction, value, step=1e-3):
    """Fourth-order derivative of `value()` when `weight` moves along `direction`."""
    original, moved = weight.detach().clone(), {}
    with torch.no_grad():
        for n in (-2, -1, 1, 2):
            weight.copy_(original + n * step * direction)
            moved[n] = value()
        weight.copy_(original)
    return (8 * (moved[1] - moved[-1]) - (moved[2] - moved[-2])) / (12 * step)


@pytest.mark.parametrize("kind", ["copy", "previous_token", "together"])
def test_probe_gradients_equal_finite_differences(toy, kind, monkeypatch):
    monkeypatch.setattr(probe_module, "CHUNK", 2)  # three sequences in two chunks
    target = "copy" if kind == "copy" else "previous_token"
    together = [HeadId(1, 0), HeadId(2, 1)] if kind == "together" else []
    probe = draw(target)
    gradients = probe_gradients(toy, probe, LAYERS, Subspace(), together).blocks
    assert len(gradients) == 9
    for at, gradient_HIJ in gradients.items():
        module = attention(toy, at.layer)
        weight = block_weight(module.query_key_value.weight, module.dense.weight, at.block, 2)
        for head in range(2):

            def value(at=at, head=head):
                values = probe_values(toy, probe)
                if together:
                    return (values[1, 0] + values[2, 1]).item() / 2
                return values[at.layer, head].item()

            gradient = gradient_HIJ[head]
            idle = kind == "previous_token" and at.block != "qk"  # own A depends on own q, k only
            idle |= kind == "together" and at.layer == 2 and (at.block != "qk" or head == 0)
            if idle:
                assert gradient.abs().max() == 0
                continue
            norm = gradient.norm()
            assert norm > 1e-6, (at, head)
            numeric = finite_difference(toy, weight[head], gradient / norm, value)
            assert numeric == pytest.approx(norm.item(), rel=1e-6), (at, head)


def test_special_ids_and_padding_are_never_drawn():
    counts = np.zeros(70, dtype=np.int64)
    counts[:50] = 100  # 50 to 69 pad the vocabulary
    probabilities = token_distribution(counts, special_ids=(0, 3))
    for target in ("copy", "previous_token"):
        drawn = draw_probe(target, probabilities, n=64, length=32, seed=0).tokens_MS
        assert set(drawn.unique().tolist()) == set(range(50)) - {0, 3}


def test_the_seed_alone_decides_the_tokens():
    assert torch.equal(draw("copy").tokens_MS, draw("copy").tokens_MS)
    assert not torch.equal(draw("copy").tokens_MS, draw("copy", seed=1).tokens_MS)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="repeats=1 with target=copy; accepted: 2 or more"):
        draw("copy", repeats=1)
    with pytest.raises(ValueError, match="probe target 'paste'; accepted: copy, previous_token"):
        draw("paste")
