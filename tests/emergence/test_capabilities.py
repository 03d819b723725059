"""Few-shot tasks and ablation on models whose capabilities are planted and known."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PretrainedConfig

from mda.data.stream import Corpus
from mda.emergence.capabilities import capabilities, head_sets, make_trials, try_out
from mda.emergence.prompts import copy_prompts, label_prompts, shots_that_fit
from mda.model.architecture import architecture
from mda.model.build import scratch
from mda.schema import CapabilitiesConfig, ScratchConfig
from mda.types import HeadId

V, S, BAR = 60, 65, 0
SURE = 20.0  # logit of what a planted model believes
BANDS = ((32, 64), (0, 4))
SMALL = CapabilitiesConfig(held_out=20, prompts=40, shots=4, span=5, snippet=6, random_sets=2)


def corpus(labels=("code", "generated_xml", "prose"), n=48, seed=0) -> Corpus:
    """Distinct tokens in every row; code is made of even ones, prose of odd ones."""
    rng = np.random.default_rng(seed)
    which = np.arange(n) % len(labels)
    kinds = {"code": np.arange(2, V, 2), "prose": np.arange(1, V, 2)}
    rows = np.stack([
        rng.choice(kinds.get(labels[i], np.arange(1, V)), S) for i in which
    ]).astype(np.uint16)  # fmt: skip
    counts = np.ones(V, np.int64)
    counts[BAR] = 1000  # the most frequent one separates
    return Corpus(rows, which, tuple(labels), V, (), counts, None, np.arange(n), "planted")


class Planted(nn.Module):
    """A model whose logits at a position are what `believe` makes of the tokens up to there."""

    def __init__(self, believe):
        super().__init__()
        self.believe, self.device = believe, torch.device("cpu")
        self.config = PretrainedConfig()
        self.head = nn.Linear(V, V, bias=False)
        self.head.weight.data = torch.eye(V)

    def get_output_embeddings(self):
        return self.head

    def base_model(self, tokens_MT, use_cache):
        logits = torch.zeros(*tokens_MT.shape, V)
        for row, out in zip(tokens_MT.tolist(), logits, strict=True):
            for t in range(len(row)):
                for token, logit in self.believe(row[: t + 1]).items():
                    out[t, token] = logit
        return SimpleNamespace(last_hidden_state=logits)


def induction(seen):
    """The token that followed the last earlier occurrence of the last two."""
    for i in range(len(seen) - 2, 0, -1):
        if seen[i - 1 : i + 1] == seen[-2:]:
            return {seen[i + 1]: SURE}
    return {}


def shown_again(seen):
    """After a separator, the span before it; then on: a few-shot copier of spans of 5."""
    ends = [i for i, token in enumerate(seen) if token == BAR]
    if len(ends) % 2 == 0:
        return {}
    return {seen[ends[-1] - 5 + len(seen) - 1 - ends[-1]]: SURE} if ends[-1] >= 5 else {}


def told_apart(seen):
    """After a separator, the token that followed snippets with the parity of the last one."""
    if seen[-1] != BAR:
        return {}
    blocks = [seen[i : i + 8] for i in range(0, len(seen), 8)]
    parity = blocks[-1][0] % 2
    return {block[-1]: SURE for block in blocks[:-1] if block[0] % 2 == parity}


def trials(**labels):
    return make_trials(corpus(**labels), SMALL, BANDS)


def test_a_model_that_knows_nothing_is_at_chance():
    found = try_out(Planted(lambda seen: {}), trials())
    assert found["capabilities/real_loss"] == pytest.approx(np.log(V), rel=1e-6)
    for name in ("icl_score", "copy_gain", "label_margin"):
        assert found[f"capabilities/{name}"] == pytest.approx(0, abs=1e-6)
    assert found["capabilities/copy_accuracy"] < 0.1


def test_the_icl_score_is_the_loss_late_minus_the_loss_early():
    """At 4 tokens it knows nothing, at 28 it is sure and wrong, at the late 32 sure and right."""
    made = trials()
    late, early = BANDS
    known = {tuple(row[:n]): row[n] for row in made.text_MT1.tolist() for n in range(1, S)}

    def right_late(seen):
        at, token = len(seen) - 1, known.get(tuple(seen))
        if token is None or at < early[1]:
            return {}
        return {token if at >= late[0] else BAR: SURE}

    found = try_out(Planted(right_late), made)
    assert found["capabilities/icl_score"] == pytest.approx(0 - np.log(V), abs=1e-5)
    everywhere = (4 * np.log(V) + 28 * SURE + 32 * 0) / 64
    assert found["capabilities/real_loss"] == pytest.approx(everywhere, abs=1e-5)


def test_a_planted_copier_copies_and_gains_what_the_first_showing_costs():
    found = try_out(Planted(shown_again), trials())
    assert found["capabilities/copy_accuracy"] == 1
    assert found["capabilities/copy_gain"] == pytest.approx(np.log(V), abs=0.01)


def test_a_planted_induction_head_copies_all_but_a_spans_first_tokens():
    """The separator and the first token tell where it is; spans share hardly any two tokens."""
    found = try_out(Planted(induction), trials())
    assert 0.7 < found["capabilities/copy_accuracy"] <= 1
    assert found["capabilities/copy_gain"] > 0.6 * np.log(V)


def test_the_gain_of_a_copy_leaves_the_separator_out():
    """Who expects a separator everywhere is as wrong about the first showing as about the copy."""
    found = try_out(Planted(lambda seen: {BAR: SURE}), trials())
    assert found["capabilities/copy_gain"] == pytest.approx(0, abs=1e-6)
    assert found["capabilities/copy_accuracy"] == 0


def test_a_planted_reader_of_classes_knows_every_label():
    found = try_out(Planted(told_apart), trials())
    assert found["capabilities/label_accuracy"] == 1
    assert found["capabilities/label_margin"] == pytest.approx(SURE)
    contrary = Planted(lambda seen: dict.fromkeys(told_apart(seen), -SURE))
    found = try_out(contrary, trials())
    assert found["capabilities/label_accuracy"] == 0
    assert found["capabilities/label_margin"] == pytest.approx(-SURE)


def test_text_is_real_and_labels_are_of_classes():
    made = trials()
    assert len(made.text_MT1) == 20
    assert not (made.text_MT1 % 2).any(1)[made.text_MT1[:, 0] % 2 == 0].any()  # code or prose
    only = trials(labels=("generated_xml", "generated_json"))
    assert len(only.text_MT1) == 20 and only.labelling is not None
    assert trials(labels=("code",)).labelling is None
    assert "capabilities/label_margin" not in try_out(
        Planted(lambda seen: {}), trials(labels=("code",))
    )


def test_prompts_are_laid_out_as_written_down():
    source = corpus()
    rows = np.asarray(source.tokens)
    copies = copy_prompts(rows, 30, 5, 4, BAR, seed=3)
    blocks = np.pad(copies.tokens_MS.numpy(), ((0, 0), (0, 1))).reshape(30, 5, 12)
    assert (blocks[..., :5] == blocks[..., 6:11]).all() and (blocks[..., [5, 11]] == BAR).all()
    labels = ["code" if row[0] % 2 == 0 else "prose" for row in rows]
    asked = label_prompts(rows, labels, 30, 6, 4, BAR, np.full(V, 1 / V), seed=3)
    assert asked is not None
    blocks = asked.tokens_MS.numpy().reshape(30, 5, 8)
    for prompt, wrong in zip(blocks, asked.wrong_M.tolist(), strict=True):
        right = prompt[-1, -1]
        assert sorted(prompt[:-1, -1].tolist()) == sorted([right, right, wrong, wrong])
    again = copy_prompts(rows, 30, 5, 4, BAR, seed=3).tokens_MS
    assert torch.equal(copies.tokens_MS, again)
    assert not torch.equal(copies.tokens_MS, copy_prompts(rows, 30, 5, 4, BAR, 4).tokens_MS)


def test_fewer_examples_are_shown_where_the_context_is_short():
    assert shots_that_fit(8, 10, 128) == 8
    assert shots_that_fit(8, 10, 33) == 2
    with pytest.raises(ValueError, match="19 tokens are needed; the context has 18"):
        shots_that_fit(8, 10, 18)


def test_ablation_changes_what_it_says_by_the_difference_of_two_measurements():
    sizes = ScratchConfig(n_layers=2, d_model=16, n_heads=4, d_ff=24, vocab_size=V, max_seq_len=S)
    model, made = scratch(sizes, seed=0), trials()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5 if p.ndim == 2 else 1)
    arch, heads = architecture(model), [HeadId(at, h) for at in (1, 0) for h in range(4)]
    found = capabilities(model, arch, made, heads, SMALL)
    plain = try_out(model, made)
    assert {name: found[name] for name in plain} == plain
    top, *others = sets = head_sets(heads, SMALL)
    assert top == heads[:2] and len(others) == 2
    assert all(len(one) == 2 and not set(one) & set(top) for one in others)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    means = {}
    dense = [model.get_submodule(f"gpt_neox.layers.{at}.attention.dense") for at in (0, 1)]
    hooks = [
        module.register_forward_pre_hook(
            lambda _m, args, at=at: means.__setitem__(at, args[0].mean((0, 1)))
        )
        for at, module in enumerate(dense)
    ]
    changes = []
    with torch.no_grad():
        model(made.text_MT1[:, :-1])
        for hook in hooks:
            hook.remove()
        for one in sets:
            for layer, head in one:  # a constant output is a column of zeros and a bias
                own = slice(4 * head, 4 * head + 4)
                dense[layer].bias += dense[layer].weight[:, own] @ means[layer][own]
                dense[layer].weight[:, own] = 0
            without = try_out(model, made)
            changes.append({name: without[name] - value for name, value in plain.items()})
            for name, p in model.named_parameters():
                p.copy_(weights[name])
    for name in plain:
        top_change, *other_changes = (change[name] for change in changes)
        assert found[f"{name}/top_heads"] == pytest.approx(top_change, abs=2e-5), name
        random_change = sum(other_changes) / 2
        assert found[f"{name}/random_heads"] == pytest.approx(random_change, abs=2e-5), name
    real = [change["capabilities/real_loss"] for change in changes]
    assert min(abs(a - b) for a, b in itertools.combinations([*real, 0], 2)) > 1e-3
    off = CapabilitiesConfig(**(vars(SMALL) | {"ablation": False}))
    assert capabilities(model, arch, made, heads, off) == plain
    assert head_sets([HeadId(0, 0)], SMALL) == []


def test_random_heads_are_never_among_the_strongest():
    """Of eight heads every one but the two strongest is drawn, and none of those two ever is."""
    heads = [HeadId(at, h) for at in (1, 0) for h in range(4)]
    for seed in range(20):
        settings = CapabilitiesConfig(heads=2, random_sets=20, seed=seed)
        top, *others = head_sets(heads, settings)
        assert top == heads[:2] and len(others) == 20
        assert {head for one in others for head in one} == set(heads[2:])


def test_a_question_is_never_cut_from_the_row_of_an_example():
    """Every row has a token of its own, all over, and a class only two rows."""
    rows = np.repeat(np.arange(1, 5), S).reshape(4, S).astype(np.uint16)
    asked = label_prompts(rows, list("aabb"), 40, 6, 4, BAR, np.full(V, 1 / V), seed=0)
    assert asked is not None
    blocks = np.asarray(asked.tokens_MS).reshape(40, 5, 8)
    for prompt in blocks:
        *examples, question = prompt[:, 0].tolist()
        assert question not in examples
