"""`import mda`: on models in memory it finds and scores what the programs find and score."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import mda
from mda.config import compose
from mda.emergence.measure import make_probes
from mda.library import HEADS, corpus_of
from mda.model.architecture import architecture
from mda.pipeline import trace
from mda.schema import ConfigError, EmergenceConfig
from mda.stages.context import Context
from mda.unit.blocks import add_to, gather

SIZES = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2,
         "intermediate_size": 32, "vocab_size": 60, "max_position_embeddings": 256}  # fmt: skip


WORDS = ["experiment=smoke", "estimator.fit_sequences=null"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, bos_token_id=0, eos_token_id=0)).eval()


@pytest.fixture(scope="module")
def rows():
    return torch.randint(1, 60, (12, 17), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A smoke run's trace, whose curvature was fitted on all samples of the window."""
    folder = tmp_path_factory.mktemp("library")
    return trace(Context.of(compose([*WORDS, f"output_dir={folder}"])))


def output_dir(traced):
    return traced.base.folder.parents[2]


@pytest.mark.parametrize("kind", HEADS)
def test_the_kinds_of_heads_are_those_of_the_configuration(kind):
    assert HEADS[kind] == compose([f"unit={kind}"]).unit


def test_scores_are_those_of_the_trace(traced):
    words = ["estimator.labels=empirical"]  # sampled labels depend on the samples' numbers
    scored = trace(Context.of(compose([*WORDS, *words, f"output_dir={output_dir(traced)}"])))
    (at,) = scored.traced.steps
    rows = scored.corpus.rows(scored.traced.scores.sample_ids)
    unit = mda.LocatedUnit(scored.unit.name, 0.0, scored.unit.kind)
    found = mda.influence(scored.base.model(at), rows, unit, labels="empirical", progress=False)
    expected = scored.traced.scores.of(unit.name)
    # The parts of a pass differ, and with them the order in which float32 numbers are added.
    np.testing.assert_allclose(found.scores, expected, rtol=0, atol=1e-4 * expected.std())
    np.testing.assert_allclose(found.losses, scored.traced.scores.losses, rtol=1e-5)


def test_heads_are_ranked_by_the_models_own_attention(model, rows):
    heads = mda.locate(model, "previous_token_head", rows)
    tokens = make_probes(corpus_of(model, rows, None), EmergenceConfig()).repeated_MT
    eager = GPTNeoXForCausalLM._from_config(model.config, attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    with torch.no_grad():
        patterns = eager(tokens, output_attentions=True).attentions
    for layer, pattern in enumerate(patterns):
        for head in range(2):
            expected = pattern[:, head].diagonal(-1, 1, 2).mean().item()
            assert heads.scores[f"L{layer}H{head}"] == pytest.approx(expected, rel=1e-4)
    assert heads.strongest.score == max(heads.scores.values())
    assert list(heads.scores.values()) == sorted(heads.scores.values(), reverse=True)


@pytest.mark.parametrize("estimator", ["ekfac", "exact", "tracin", "loss", "gradient_norm"])
def test_a_rows_tokens_add_up_to_its_score(model, rows, estimator):
    found = mda.influence(model, rows, "L1H0", estimator, progress=False)
    assert found.scores.shape == (12,)
    assert np.isfinite(found.scores).all() and found.scores.std() > 0
    if estimator in ("ekfac", "exact", "tracin"):
        np.testing.assert_allclose(found.tokens([3, 5]).sum(1), found.scores[[3, 5]], rtol=1e-4)


def test_a_head_is_traced_by_prompts(model, rows, tmp_path):
    """-<grad f, grad L> with f the difference of two logits."""
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": [5, 6, 7], "right": [8], "wrong": [9]}')
    told = {"lr_weights": False, "progress": False}
    found = mda.influence(model, rows, "L0H1", "tracin", prompts=file, **told)
    names, weights = zip(*model.named_parameters(), strict=True)

    def gradient(value):
        parts = torch.autograd.grad(value, weights, allow_unused=True, materialize_grads=True)
        return dict(zip(names, parts, strict=True))

    logits = model(torch.tensor([[5, 6, 7]])).logits[0, -1]
    wanted, expected = gradient(logits[8] - logits[9]), []
    blocks = architecture(model).head_blocks(0).values()
    for row in rows:
        own = gradient(cross_entropy(model(row[None, :-1]).logits[0], row[1:]))
        products = [gather(b, wanted)[1] * gather(b, own)[1] for b in blocks]
        expected.append(-sum(product.sum().item() for product in products))
    error = np.linalg.norm(found.scores - expected) / np.linalg.norm(expected)
    assert error < 1e-4  # float32 on both sides
    with pytest.raises(
        ConfigError, match="prompts: expected with a unit's name, or as `probe=` of"
    ):
        mda.influence(model, rows, mda.locate(model)["L0H1"], prompts=file, progress=False)


def test_scores_of_tokens_need_no_second_fit(model, rows, monkeypatch):
    found = mda.influence(model, rows, "L1H0", progress=False)
    monkeypatch.setattr("mda.library.fit_curvature", None)
    assert found.tokens([0]).sum() == pytest.approx(found.scores[0], rel=1e-4)


def test_a_step_on_the_top_row_raises_the_measurement_and_one_on_the_bottom_row_lowers_it(rows):
    torch.manual_seed(3)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, bos_token_id=0, eos_token_id=0)).double()
    heads = mda.locate(model, rows=rows)
    unit = heads["L1H1"]
    found = mda.influence(model, rows, unit, "tracin", lr_weights=False, progress=False)
    (own,) = [one for one in unit.kind.units([]) if one.name == "L1H1"]
    weights = dict(model.named_parameters())
    saved = {name: one.detach().clone() for name, one in weights.items()}
    before = unit.kind.measurements(model, [own])[0]
    for row, sign in ((found.top(1)[0], 1), (found.bottom(1)[0], -1)):
        tokens = rows[[row]]
        loss = cross_entropy(model(tokens[:, :-1]).logits[0], tokens[0, 1:])
        gradients = dict(zip(weights, torch.autograd.grad(loss, weights.values()), strict=True))
        for block, head in own.parts:
            add_to(block, head, weights, -1e-3 * gather(block, gradients)[head])
        change = float(unit.kind.measurements(model, [own])[0] - before)
        model.load_state_dict(saved)
        assert np.sign(change) == sign
        assert change == pytest.approx(1e-3 * found.scores[row], rel=0.05)


def test_neurons_are_found_by_the_class_they_tell_apart(model, rows):
    labels = ["code" if number % 3 else "prose" for number in range(12)]
    neurons = mda.locate(model, "mlp_neuron", rows, labels=labels, label="code")
    assert neurons.metric == "label_auc" and len(neurons) == 64
    assert 0.5 < neurons.strongest.score <= 1
    found = mda.influence(model, rows, neurons.strongest, progress=False)
    assert np.isfinite(found.scores).all() and found.scores.any()


def test_emergence_has_a_row_for_every_checkpoint(model, rows):
    heads = mda.locate(model, rows=rows)
    other = GPTNeoXForCausalLM(model.config).eval()
    table = mda.emergence_curve({0: other, 10: model}, heads)
    assert list(table.index) == [0, 10] and list(table.columns) == list(heads.scores)
    assert table.loc[10].to_dict() == dict(heads.scores)
    assert table.loc[0].to_dict() != dict(heads.scores)


def test_results_become_tables_edits_and_figures(model, rows):
    found = mda.influence(model, rows, "L0H1", "loss", progress=False)
    table = found.to_pandas()
    assert list(table.columns) == ["row", "score", "loss"] and len(table) == 12
    assert table.sort_values("score").row.iloc[-1] == found.top(1)[0]
    assert mda.remove(found.top(2)) == [(found.top(2)[0], 0.0), (found.top(2)[1], 0.0)]
    assert mda.upweight([3]) == [(3, 2.0)]
    assert len(found.plot().lines) == 2


class Words:
    """A tokenizer of one id a character."""

    eos_token_id = 59

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [ord(c) - 96 for c in text]}


def test_texts_are_packed_end_to_end():
    rows = mda.pack(["abcd", "ef"], Words(), length=2)
    assert rows.tolist() == [[1, 2, 3], [4, 59, 5]]  # the last f and its end fill no row
    with pytest.raises(ValueError, match="fewer than 10 tokens"):
        mda.pack(["a"], Words(), length=9)


MISTAKES = [
    (lambda m, r: mda.influence(m, r, "L9H9"), "L9H9 does not exist"),
    (lambda m, r: mda.influence(m, r, "L0H0", "ekfak"), "ekfac"),
    (lambda m, r: mda.influence(m, r, "L0H0", dampings=1), "damping"),
    (lambda m, r: mda.influence(m, r, "L0H0", damping=-1.0), "damping"),
    (lambda m, r: mda.influence(m, r, "L0H0", "unrolled"), "not in memory"),
    (lambda m, r: mda.influence(m, r + 60, "L0H0"), "0 to 59"),
    (lambda m, r: mda.influence(m, r.float(), "L0H0"), "integers"),
    (lambda m, r: mda.influence(m.bfloat16(), r, "L0H0"), "float32"),
    (lambda m, r: mda.locate(m, "head"), "induction_head"),
    (lambda m, r: mda.locate(m, "induction_hed"), r"did you mean induction_head\?"),
    (lambda m, r: mda.locate(m, "induction_head", metrik="x"), r"did you mean metric\?"),
    (
        lambda m, r: mda.influence(m, r, "L0H0", "loss", cost="x"),
        "has no cost; expected checkpoint, batch_size$",
    ),
    (lambda m, r: mda.locate(m, "mlp_neuron", r, labels=["a"] * 3, label="a"), "3 labels"),
]


@pytest.mark.parametrize("call, said", MISTAKES)
def test_mistakes_are_refused_in_one_sentence(model, rows, call, said):
    with pytest.raises((ConfigError, ValueError), match=said):
        call(copy.deepcopy(model), rows)


def test_import_mda_imports_nothing_heavy_and_a_comparison_reads_without_torch_and_scipy():
    heavy = "{'torch', 'transformers', 'hydra', 'numpy'}"
    code = f"import sys, mda; assert not {heavy} & set(sys.modules)"
    code += "; import mda.report.compare; assert not {'torch', 'scipy'} & set(sys.modules)"
    code += "; mda.remove([1])"
    code += "; assert 'torch' in sys.modules and 'hydra' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
