"""Whole modules: mean ablation where the answer is known, and gradients through the model."""

import math

import numpy as np
import pytest
import torch
from derivatives import slope
from families import N_VOCAB
from families import toy as make_toy
from torch import nn
from transformers import PretrainedConfig

from mda.model.architecture import architecture
from mda.schema import ConfigError, ModuleConfig, ProbeConfig
from mda.unit import measurement
from mda.unit.ablation import ablated, mean_inputs
from mda.unit.kind import Materials
from mda.unit.measurement import TokenObjective, label_objective
from mda.unit.module import Modules

SHARP = 5.0


class Successor(nn.Module):
    """Writes SHARP at each token's successor."""

    def forward(self, inputs):
        return SHARP * nn.functional.one_hot((inputs + 1) % N_VOCAB, N_VOCAB).double()


class Counter(nn.Module):
    """A model that knows by one module alone that t + 1 follows t."""

    def __init__(self):
        super().__init__()
        self.successor = Successor()
        self.out, self.unembed = (
            nn.Linear(N_VOCAB, N_VOCAB, bias=False, dtype=torch.float64) for _ in range(2)
        )
        for linear in (self.out, self.unembed):
            linear.weight.data.copy_(torch.eye(N_VOCAB))
        self.device, self.config = torch.device("cpu"), PretrainedConfig()

    @property
    def base_model(self):
        return self

    def get_output_embeddings(self):
        return self.unembed

    def forward(self, inputs, use_cache):
        return type("Output", (), {"last_hidden_state": self.out(self.successor(inputs))})


def test_mean_ablation_where_the_answer_is_known(monkeypatch):
    """Rows of t, t + 1, ..: known, a prediction has the logit S; ablated, S times its share."""
    monkeypatch.setattr(measurement, "CHUNK", 2)  # means are taken over both chunks
    model, starts, length = Counter(), [0, 0, 5], 4
    rows = torch.tensor([[start + t for t in range(length + 1)] for start in starts])
    text = label_objective(rows)
    z = math.log(math.exp(SHARP) + N_VOCAB - 1)
    assert text.value(model) == pytest.approx(SHARP - z, rel=1e-12)
    share = np.bincount([s + t + 1 for s in starts for t in range(length)], minlength=N_VOCAB)
    logits = SHARP * share / share.sum()
    log_p = logits - np.log(np.exp(logits).sum())
    expected = np.mean([log_p[s + t + 1] for s in starts for t in range(length)])
    place = ("out", slice(None))
    means = mean_inputs(model, [place], [tokens[:, :-1] for tokens, _ in text.chunks(model)])
    with ablated(model, [place], means):
        assert text.value(model) == pytest.approx(expected, rel=1e-12)
    assert text.value(model) == pytest.approx(SHARP - z, rel=1e-12)
    assert not model.out._forward_pre_hooks


def module_kind(model, corpus, **settings):
    settings = ModuleConfig(name="module", **settings)
    return Modules(settings, Materials(corpus, architecture(model)))


LABEL = {"label": "code", "probe": ProbeConfig(target="label")}
COPY = {"probe": ProbeConfig(n_sequences=3, length=6)}


@pytest.mark.parametrize("settings", [LABEL, COPY], ids=["label", "copy"])
def test_a_module_that_writes_a_constant_costs_nothing(corpus, settings):
    model = make_toy("llama biased")
    model.model.layers[1].mlp.down_proj.weight.data.zero_()  # its bias is left
    kind = module_kind(model, corpus, parts=["attention", "mlp", "both"], **settings)
    found = kind.ranking(model)
    assert list(found) == ["L0.attn", "L0.mlp", "L0", "L1.attn", "L1.mlp", "L1"]
    assert found["L1.mlp"] == pytest.approx(0, abs=1e-12)
    assert found["L1"] == pytest.approx(found["L1.attn"], rel=1e-9)
    assert all(abs(found[name]) > 1e-3 for name in ("L0.attn", "L0.mlp", "L0", "L1.attn"))
    assert kind.metrics(model, ["L0"]) == {"L0": found["L0"]}


@pytest.mark.parametrize("case", ["neox", "neox sequential", "olmo2"])
def test_ablation_of_both_replaces_each_by_its_unablated_mean(case, corpus):
    model = make_toy(case)
    arch = architecture(model)
    kind = module_kind(model, corpus, parts=["both"], **LABEL)
    layer = model.get_submodule(arch.layers_path)[0]
    modules = [layer.get_submodule(name) for name in (arch.attention_name, arch.mlp_name)]
    ids = [i for i, label in zip(corpus.held_out[::2], corpus.labels_of(corpus.held_out[::2]),
                                 strict=True) if label == "code"]  # fmt: skip
    rows = corpus.rows(np.array(ids))

    def value():
        log_p = model(rows[:, :-1]).logits.log_softmax(-1)
        return log_p.gather(2, rows[:, 1:, None]).mean().item()

    def first(output):
        return output[0] if isinstance(output, tuple) else output

    with torch.no_grad():
        seen = []
        hooks = [
            m.register_forward_hook(lambda _m, _a, out: seen.append(first(out))) for m in modules
        ]
        whole = value()
        for hook in hooks:
            hook.remove()
        for module, written in zip(modules, seen, strict=True):
            mean, tupled = written.mean((0, 1)), module is modules[0]
            constant = mean.expand_as(written)
            module.forward = lambda *_a, c=constant, t=tupled, **_k: (c, None) if t else c
        without = value()
        for module in modules:
            del module.forward
    assert kind.metrics(model, ["L0"])["L0"] == pytest.approx(whole - without, rel=1e-9)


@pytest.mark.parametrize("settings", [LABEL, COPY], ids=["label", "copy"])
@pytest.mark.parametrize("case", ["neox", "llama biased", "olmo2 groups of 3"])
def test_gradients_of_modules_equal_finite_differences(case, settings, corpus, monkeypatch):
    monkeypatch.setattr(measurement, "CHUNK", 2)
    model = make_toy(case)
    kind = module_kind(model, corpus, parts=["mlp", "both"], biases=True, **settings)
    units = kind.units([])
    assert [unit.name for unit in units] == ["L0.mlp", "L0", "L1.mlp", "L1"]
    gradients = kind.gradients(model, units)
    for block, row in dict.fromkeys(part for unit in units for part in unit.parts):
        norm = gradients[block][row].norm().item()
        numeric = slope(
            model,
            block,
            row,
            gradients[block][row] / norm,
            lambda: kind.measurements(model, units[:1])[0].item(),
        )
        assert norm > 1e-6 and numeric == pytest.approx(norm, rel=1e-6), block


def test_metric_and_measurement_use_different_text(corpus):
    model = make_toy("neox")
    for settings in (LABEL, COPY):
        kind = module_kind(model, corpus, **settings)
        assert not torch.equal(kind.measured.tokens_MS, kind.on_metric.tokens_MS)
    kind = module_kind(model, corpus, **LABEL)
    rows = corpus.held_out[1::2]
    code = np.array(corpus.labels_of(rows)) == "code"
    assert torch.equal(kind.measured.tokens_MS, corpus.rows(rows[code]))
    assert isinstance(kind.measured, TokenObjective)


def test_wrong_settings_are_named():
    for settings, says in (
        ({"parts": ["mlp", "mlp"]}, "at most once"),
        (
            {"probe": ProbeConfig(target="previous_token", repeats=1)},
            "copy, label or prompts for mod",
        ),
        ({"probe": ProbeConfig(target="label")}, "a class of text"),
        ({"label": "code"}, "a class of text"),
    ):
        with pytest.raises(ConfigError, match=says):
            ModuleConfig(name="module", **settings)
