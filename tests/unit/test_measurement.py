"""Measurements: right to the position, seeded, differentiated through everything that counts."""

import numpy as np
import pytest
import torch
from derivatives import all_blocks, slope
from families import FAMILIES, N_LAYERS, N_VOCAB, InputPrecision, toy_tokens
from families import toy as make_toy
from torch import nn
from transformers import PretrainedConfig

from mda.model.architecture import architecture
from mda.model.plain_attention import eager_attention
from mda.schema import ConfigError, HeadConfig, ProbeConfig
from mda.unit import attention_head, measurement
from mda.unit.attention_head import AttentionHeads, OwnAttention
from mda.unit.kind import Materials
from mda.unit.measurement import attention_tokens, copy_objective, label_objective
from mda.unit.metrics import previous_token
from mda.unit.tokens import token_distribution

UNIFORM = torch.full((N_VOCAB,), 1 / N_VOCAB, dtype=torch.float64)
PERIOD = 6
NEWER = ["granite", "gemma2", "gemma3", "qwen3", "olmo clipped", "olmo3", "smollm3"]
NEWER += ["apertus", "phi3", "gpt2"]
SHARP = 40.0  # logit of a planted prediction


class Planted(nn.Module):
    """Plays a model that predicts, with logit SHARP, the token `predicted(inputs)` everywhere."""

    def __init__(self, predicted):
        super().__init__()
        self.predicted = predicted
        self.unembed = nn.Linear(N_VOCAB, N_VOCAB, bias=False, dtype=torch.float64)
        self.unembed.weight.data.copy_(torch.eye(N_VOCAB))
        self.device, self.config = torch.device("cpu"), PretrainedConfig()

    @property
    def base_model(self):
        return self

    def get_output_embeddings(self):
        return self.unembed

    def forward(self, inputs, use_cache):
        hidden = SHARP * nn.functional.one_hot(self.predicted(inputs), N_VOCAB).double()
        return type("Output", (), {"last_hidden_state": hidden})


def copying(shift):
    """The token `shift` places after the previous occurrence of each position's token."""

    def predicted(inputs):
        t = torch.arange(inputs.shape[1])
        return inputs[:, (t - PERIOD + shift).clamp(0, inputs.shape[1] - 1)]

    return predicted


def copy_of(**settings):
    return copy_objective(UNIFORM, **{"n": 3, "length": PERIOD, "seed": 0} | settings)


@pytest.mark.parametrize("repeats", [2, 3])
def test_a_perfect_copier_maximises_the_copy_measurement(repeats):
    # log p = -log(1 + 30 e^-40), zero to float64
    assert copy_of(repeats=repeats).value(Planted(copying(1))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shift", [-1, 0, 2])
@pytest.mark.parametrize("repeats", [2, 3])
def test_a_copier_that_is_one_position_off_fails(shift, repeats):
    assert copy_of(repeats=repeats).value(Planted(copying(shift))) < -SHARP / 2


def test_what_is_predicted_within_the_first_copy_does_not_count():
    def right_only_from_the_second_copy(inputs):
        predicted = copying(1)(inputs).clone()
        predicted[:, :PERIOD] = 0
        return predicted

    found = copy_of().value(Planted(right_only_from_the_second_copy))
    assert found == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "case", ["neox", "neox tied", "llama groups of 3", "qwen2", "olmo2", *NEWER]
)
def test_copy_is_the_mean_log_probability_of_its_targets(case, monkeypatch):
    monkeypatch.setattr(measurement, "CHUNK", 2)  # three sequences in two chunks
    model, objective = make_toy(case), copy_of(repeats=3)
    tokens = objective.tokens_MS
    assert torch.equal(tokens[:, :6], tokens[:, 6:12]) and tokens.shape == (3, 19)
    log_p = model(tokens[:, :-1]).logits.log_softmax(-1)
    expected = np.mean(
        [log_p[m, t, tokens[m, t - 6 + 1]].item() for m in range(3) for t in range(6, 18)]
    )
    assert objective.value(model) == pytest.approx(expected, rel=1e-12)


def test_label_is_the_mean_log_probability_of_the_tokens():
    model, tokens = make_toy("llama"), toy_tokens(5)
    log_p = model(tokens[:, :-1]).logits.log_softmax(-1)
    expected = log_p.gather(2, tokens[:, 1:, None]).mean().item()
    assert label_objective(tokens).value(model) == pytest.approx(expected, rel=1e-12)


def head_kind(model, corpus, target="previous_token", **settings):
    probe = ProbeConfig(target=target, n_sequences=3, length=6, repeats=1)
    settings = HeadConfig(metric=target, probe=probe, **settings)
    return AttentionHeads(settings, Materials(corpus, architecture(model)))


@pytest.mark.parametrize(("target", "back"), [("previous_token", 1), ("second_previous_token", 2)])
@pytest.mark.parametrize("case", FAMILIES)
def test_own_attention_is_the_mean_of_its_diagonal(case, target, back, corpus, monkeypatch):
    monkeypatch.setattr(attention_head, "CHUNK", 2)
    model = make_toy(case)
    own = head_kind(model, corpus, target).measured
    assert isinstance(own, OwnAttention) and own.tokens_MT.shape == (3, 6)
    found = own.values(model)
    with eager_attention(model), InputPrecision(), torch.no_grad():
        patterns = model(own.tokens_MT, output_attentions=True).attentions
    assert found.shape == (N_LAYERS, architecture(model).n_heads)
    for layer, pattern in enumerate(patterns):
        for head in range(found.shape[1]):
            diagonal = [
                pattern[m, head, t, t - back].item() for m in range(3) for t in range(back, 6)
            ]
            assert found[layer, head].item() == pytest.approx(np.mean(diagonal), abs=1e-12)


def test_a_metric_of_the_table_is_measured_of_each_head_on_its_own(corpus):
    """The induction score on a probe whose tokens repeat: A[t, t - 5] in the second copy."""
    model = make_toy("neox")
    probe = ProbeConfig(target="prefix_matching", n_sequences=3, length=6, repeats=2)
    settings = HeadConfig(probe=probe)
    kind = AttentionHeads(settings, Materials(corpus, architecture(model)))
    found = kind.measurements(model, kind.units([]))
    tokens = kind.measured.tokens_MT
    assert torch.equal(tokens[:, :6], tokens[:, 6:])
    with eager_attention(model), InputPrecision(), torch.no_grad():
        patterns = model(tokens, output_attentions=True).attentions
    expected = [
        np.mean([pattern[m, head, t, t - 5].item() for m in range(3) for t in range(6, 12)])
        for pattern in patterns
        for head in range(pattern.shape[1])
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


def test_uniform_attention_has_its_closed_form():
    """Query 0: every pattern is 1 / (t + 1), of which the mean over t = 1 .. T - 1 is taken."""
    model = make_toy("neox")
    for layer in model.get_submodule("gpt_neox.layers").children():
        features = layer.attention.query_key_value.weight.data.view(3, 3, 8, 24)
        features[:, 0] = 0
        layer.attention.query_key_value.bias.data.view(3, 3, 8)[:, 0] = 0
    tokens = attention_tokens(UNIFORM, n=2, length=9, seed=0)
    found = OwnAttention(architecture(model), tokens, previous_token, 9).values(model)
    expected = np.mean([1 / (t + 1) for t in range(1, 9)])
    torch.testing.assert_close(found, torch.full_like(found, expected))


@pytest.mark.parametrize("kind", ["copy", "label"])
@pytest.mark.parametrize(
    "case", ["neox", "neox sequential", "llama groups of 3", "qwen2", "mistral", "olmo2", *NEWER]
)
def test_gradients_of_token_measurements_equal_finite_differences(case, kind, monkeypatch):
    monkeypatch.setattr(measurement, "CHUNK", 2)  # three sequences in two chunks
    model = make_toy(case)
    objective = copy_of() if kind == "copy" else label_objective(toy_tokens())
    blocks = all_blocks(architecture(model), 0, bias=True)
    for block, gradients in objective.gradients(model, blocks).items():
        assert gradients.shape == block.shape
        owner = block.owners - 1
        norm = gradients[owner].norm().item()
        numeric = slope(
            model, block, owner, gradients[owner] / norm, lambda: objective.value(model)
        )
        assert norm > 1e-6 and numeric == pytest.approx(norm, rel=1e-6), block


@pytest.mark.parametrize(
    ("case", "target"),
    [*((case, "previous_token") for case in FAMILIES), ("neox", "second_previous_token")],
)
def test_gradients_of_own_attention_equal_finite_differences(case, target, corpus, monkeypatch):
    """Every head of its own: heads of a group share a key, OLMo-2's heads share norms."""
    monkeypatch.setattr(attention_head, "CHUNK", 2)
    model = make_toy(case)
    kind = head_kind(model, corpus, target, biases=True)
    units = kind.units([])
    gradients = kind.gradients(model, units)
    assert sorted(block.name for block in gradients) == ["L0.qk", "L1.qk"]  # nothing else counts
    heads = len(units) // N_LAYERS
    for unit in {units[0], units[heads - 1], units[heads + heads // 2]}:
        (block, row), *_ = unit.parts
        norm = gradients[block][row].norm().item()
        numeric = slope(
            model,
            block,
            row,
            gradients[block][row] / norm,
            lambda unit=unit: kind.measurements(model, [unit])[0].item(),
        )
        assert norm > 1e-6 and numeric == pytest.approx(norm, rel=1e-6), unit


@pytest.mark.parametrize("case", ["neox", "llama groups of 3", "olmo2", "gemma2"])
def test_gradients_of_a_mechanism_equal_finite_differences(case, corpus, monkeypatch):
    """The mean of L0H0's and L1H1's attention, in every block: through the layers in between."""
    monkeypatch.setattr(attention_head, "CHUNK", 2)
    model = make_toy(case)
    kind = head_kind(model, corpus)
    heads = kind.units([])
    (mechanism,) = kind.units(["L1H1", "L0H0"], together=True)
    alone = dict(zip((head.name for head in heads), kind.measurements(model, heads), strict=True))
    pair = (alone["L0H0"] + alone["L1H1"]) / 2
    assert kind.measurements(model, [mechanism]).item() == pytest.approx(pair.item(), rel=1e-12)
    units = [*heads, mechanism]
    gradients = kind.gradients(model, units)
    idle = []
    for block, row in (part for unit in units for part in unit.parts):
        norm = gradients[block][row].norm().item()
        if norm == 0:
            idle.append(block.name)
            continue
        if norm < 1e-9 or row not in (0, block.owners - 1):
            continue
        numeric = slope(
            model,
            block,
            row,
            gradients[block][row] / norm,
            lambda: kind.measurements(model, [mechanism])[0].item(),
        )
        assert numeric == pytest.approx(norm, rel=1e-6, abs=1e-10), (block, row)
    assert {name for name in idle if not name.endswith("qk")} == {"L1.v", "L1.o"}
    below = [part for unit in units[: len(units) // 2] for part in unit.parts]
    assert any(gradients[b][r].norm() > 1e-6 for b, r in below if b.name == "L0.v")


def test_a_mechanism_that_attends_is_scored_alone_as_its_gradient_is_no_head_s_own(corpus):
    """In the blocks of its heads stands the mechanism's gradient, and no other."""
    model = make_toy("neox")
    kind = head_kind(model, corpus)
    (mechanism,) = kind.units(["L1H1", "L0H0"], together=True)
    heads = {unit.name: unit for unit in kind.units([])}
    assert set(mechanism.parts) == {*heads["L1H1"].parts, *heads["L0H0"].parts}
    together, own = kind.gradients(model, [mechanism]), kind.gradients(model, [*heads.values()])
    for name in ("L1H1", "L0H0"):
        block, row = next(part for part in heads[name].parts if part.block.name.endswith("qk"))
        assert not torch.allclose(together[block][row], own[block][row], rtol=1e-3)


def test_copy_of_heads_is_one_number_for_all(toy, corpus):
    probe = ProbeConfig(n_sequences=3, length=6)
    kind = AttentionHeads(
        HeadConfig(probe=probe, blocks=["v", "qk"]), Materials(corpus, architecture(toy))
    )
    units = kind.units(["L0H0"], together=True)
    assert [unit.name for unit in units] == [
        *(f"L{layer}H{head}" for layer in range(3) for head in range(2)),
        "mechanism",
    ]
    assert [str(part.block) for part in units[0].parts] == ["L0.v", "L0.qk"]
    values = kind.measurements(toy, units)
    assert values.dtype == torch.float64 and len(values.unique()) == 1
    assert {block.name for block in kind.gradients(toy, units)} == {
        f"L{layer}.{name}" for layer in range(3) for name in ("qk", "v")
    }
    assert kind.ranking(toy) == kind.metrics(toy, ["L0H0"]) == {}


def test_special_ids_and_padding_are_never_drawn():
    counts = np.zeros(N_VOCAB, dtype=np.int64)
    counts[:20] = 100  # 20 to 30 pad the vocabulary
    probabilities = token_distribution(counts, special_ids=(0, 3))
    for drawn in (
        copy_objective(probabilities, n=64, length=32, seed=0).tokens_MS,
        attention_tokens(probabilities, n=64, length=32, seed=0),
    ):
        assert set(drawn.unique().tolist()) == set(range(20)) - {0, 3}


def test_token_distributions():
    counts = np.array([5, 0, 4, 16, 9])
    found = {
        kind: token_distribution(counts, [0], kind).tolist()
        for kind in ("unigram", "unigram_sqrt", "uniform")
    }
    assert found["unigram"] == pytest.approx([0, 0, 4 / 29, 16 / 29, 9 / 29])
    assert found["unigram_sqrt"] == pytest.approx([0, 0, 2 / 9, 4 / 9, 3 / 9])
    assert found["uniform"] == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3])
    with pytest.raises(ValueError, match="'flat'; expected unigram_sqrt, unigram, uniform"):
        token_distribution(counts, [0], "flat")


def test_the_seed_alone_decides_the_tokens():
    torch.manual_seed(0)
    first = copy_of().tokens_MS
    torch.manual_seed(1)
    assert torch.equal(copy_of().tokens_MS, first)
    assert not torch.equal(copy_of(seed=1).tokens_MS, first)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="repeats=1 with target=copy; expected 2 or more"):
        copy_of(repeats=1)
    with pytest.raises(ValueError, match="n=0 with target=copy; expected 1 or more"):
        copy_of(n=0)
    with pytest.raises(ValueError, match="length=1 with target=previous_token; expected 2"):
        attention_tokens(UNIFORM, n=1, length=1, seed=0)
    with pytest.raises(ConfigError, match=r"unit.probe.length=2 .* at least 3 with"):
        ProbeConfig(target="second_previous_token", length=2, repeats=1)
    for settings, says in (
        ({"blocks": ["qk", "mlp"]}, r"unit.blocks=\[qk,mlp\] .* qk, v, o"),
        ({"blocks": ["qk", "qk"]}, "at most once"),
        ({"blocks": []}, "one at least"),
    ):
        with pytest.raises(ConfigError, match=says):
            HeadConfig(**settings)
    with pytest.raises(
        ConfigError,
        match=r"paste .* copy, prefix_matching, previous_token, second_previous_token, label",
    ):
        ProbeConfig(target="paste")
    with pytest.raises(ConfigError, match="qk among them"):
        HeadConfig(blocks=["v"], probe=ProbeConfig(target="previous_token", repeats=1))
