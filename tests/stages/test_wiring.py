"""Scores of the whole pipeline, computed again here from their definition.

The other tests hold each formula; these hold the wires between them: which checkpoint, which
labels, which samples, which learning rate, which moments, which unit. Everything is read from the
files of the base run, and nothing of mda/stages is used to compute the other side.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from derivatives import parameter_gradients, sequence_losses
from safetensors.torch import load_file
from tokenizers import Tokenizer

from mda.data.stream import stream_order, unedited
from mda.estimator.replay import TrainingWindow, load_state
from mda.estimator.unrolled import unrolled_influence
from mda.intervention.choice import select
from mda.model.architecture import architecture
from mda.model.build import from_config
from mda.model.loss import label_uniforms
from mda.schema import ConfigError, RemoveConfig
from mda.stages.editing import make_edit
from mda.types import Part
from mda.unit.attention_head import AttentionHeads
from mda.unit.blocks import block_gradients, gather
from mda.unit.capture import capture, modules_of
from mda.unit.kind import Materials

UNIT = "L1H0"
KEPT = [0, 1, 2, 4, 8, 16, 20, 32, 40, 60]
MIDDLE = 40  # of [20, 60]


def model_at(trace, step):
    """The model of a checkpoint, from its files."""
    folder = trace.base.folder
    weights = load_file(folder / f"checkpoints/step_{step}/model.safetensors")
    return from_config(json.loads((folder / "model_config.json").read_text()), weights)


def heads_of(trace, context, model):
    """The kind of unit, made here."""
    return AttentionHeads(context.config.unit, Materials(trace.corpus, architecture(model)))


def own_parts(trace, name=UNIT) -> tuple[Part, ...]:
    return next(unit.parts for unit in trace.unit.units if unit.name == name)


def sample_gradients(trace, model, blocks):
    """Gradient of each sample of the window in each block, by sample id."""
    ids = trace.traced.scores.sample_ids
    for n in ids:
        captured = capture(model, trace.corpus.rows(np.array([n])), modules_of(blocks))
        yield {block: block_gradients(captured, block) for block in blocks}


def assert_scores(trace, expected, name=UNIT):
    ours = trace.traced.scores.of(name)
    error = np.linalg.norm(ours - expected) / np.linalg.norm(expected)
    assert error < 1e-4  # float32 on both sides
    assert np.linalg.norm(expected) > 0


def test_samples_are_those_of_the_window_in_the_order_of_training(traced):
    trace, context = traced("estimator=random")
    order = stream_order(trace.corpus, context.config.seed)
    assert trace.traced.scores.sample_ids.tolist() == order[20 * 4 : 60 * 4].tolist()
    assert trace.traced.scores.steps.tolist() == [20 + i // 4 for i in range(160)]


@pytest.mark.parametrize(
    ("checkpoint", "step"), [("window_middle", MIDDLE), ("window_end", 60), ("32", 32)]
)
def test_the_named_checkpoint_is_the_one_that_is_scored(traced, checkpoint, step):
    trace, _ = traced(f"estimator.checkpoint={checkpoint}", "estimator.fit_sequences=40")
    assert list(trace.base.checkpoints) == KEPT
    assert trace.traced.steps == (step,)
    model = model_at(trace, step)
    losses = capture(model, trace.corpus.rows(trace.traced.scores.sample_ids), [HEAD0]).losses_B
    np.testing.assert_allclose(trace.traced.scores.losses, losses.numpy(), rtol=1e-5)
    elsewhere = capture(
        model_at(trace, 20), trace.corpus.rows(trace.traced.scores.sample_ids), [HEAD0]
    ).losses_B
    assert not np.allclose(trace.traced.scores.losses, elsewhere.numpy(), rtol=1e-3)


HEAD0 = "gpt_neox.layers.0.attention.dense"


@pytest.mark.parametrize(
    ("labels", "step", "n_fitted"),
    [("sampled", MIDDLE, 160), ("empirical", MIDDLE, 160), ("sampled", 32, 160),
     ("sampled", MIDDLE, 40)],
)  # fmt: skip
def test_ekfac_scores_are_their_definition_at_the_scored_checkpoint(traced, labels, step, n_fitted):
    """A, S, their eigenvectors, Lambda with the SAME labels, damping, solve, minus the product."""
    overrides = (f"estimator.labels={labels}", "estimator.seed=5", f"estimator.checkpoint={step}")
    trace, context = traced(*overrides, f"estimator.fit_sequences={n_fitted}")
    model = model_at(trace, step).double()
    ids = trace.traced.scores.sample_ids
    some = ids[np.sort(np.random.default_rng(5).choice(160, n_fitted, replace=False))]
    rows = trace.corpus.rows(some)
    uniforms = label_uniforms(5, some, rows.shape[1] - 1) if labels == "sampled" else None
    parts = own_parts(trace)
    blocks = [part.block for part in parts]
    gradients = heads_of(trace, context, model).gradients(model, trace.unit.units)
    fitted = capture(model, rows, modules_of(blocks), uniforms_BT=uniforms)
    expected = np.zeros(len(ids))
    for block, owner in parts:
        x, dy = fitted.x(block), fitted.dy(block)
        x = x[:, :, owner if x.shape[2] > 1 else 0]
        dy = dy[:, :, owner if dy.shape[2] > 1 else 0]
        q_a = torch.linalg.eigh(torch.einsum("bti,btj->ij", x, x)).eigenvectors
        q_s = torch.linalg.eigh(torch.einsum("bti,btj->ij", dy, dy)).eigenvectors
        g = torch.einsum("bti,btj->bij", x, dy)
        values = (q_a.T @ g @ q_s).square().mean(0)
        damped = values + context.config.estimator.damping * values.mean()
        direction = q_a @ ((q_a.T @ gradients[block][owner] @ q_s) / damped) @ q_s.T
        for n, own in enumerate(sample_gradients(trace, model, [block])):
            expected[n] -= (direction * own[block][owner]).sum().item()
    assert_scores(trace, expected)


def test_scores_by_embedding_compare_the_window_with_the_probe_at_the_scored_checkpoint(traced):
    trace, context = traced("estimator=embedding", "estimator.layer=0", "estimator.checkpoint=32")
    model, scores = model_at(trace, 32), trace.traced.scores
    query = torch.stack(heads_of(trace, context, model).query())

    def mean(rows):
        hidden = model(rows[:, :-1], output_hidden_states=True).hidden_states[1]
        return hidden.double().detach().mean(1)

    of_query = mean(query).mean(0)  # its sequences are as long as each other
    expected = torch.cosine_similarity(mean(trace.corpus.rows(scores.sample_ids)), of_query[None])
    assert_scores(trace, expected.numpy())


@pytest.mark.parametrize("adam", [False, True])
def test_tracin_scores_are_their_definition(traced, adam):
    """sum_k eta_k <grad f, M_k grad L>, with each step's own rate and moments, and Adam's eps."""
    trace, context = traced(
        "estimator=tracin", "estimator.n_checkpoints=3", f"estimator.adam_preconditioning={adam}",
        "training.eps=1e-3",
    )  # fmt: skip
    assert trace.traced.steps == (20, 40, 60)
    training, parts = context.config.training, own_parts(trace)
    blocks = [part.block for part in parts]
    expected = np.zeros(len(trace.traced.scores.sample_ids))
    rates = set()
    for step in trace.traced.steps:
        model = model_at(trace, step)
        done = (step - training.warmup_steps) / (training.total_steps - training.warmup_steps)
        floor = training.min_lr_ratio
        rate = training.peak_lr * (floor + (1 - floor) * (1 + np.cos(np.pi * done)) / 2)
        rates.add(rate)
        gradients = heads_of(trace, context, model).gradients(model, trace.unit.units)
        optimizer = load_file(trace.base.folder / f"checkpoints/step_{step}/optimizer.safetensors")
        moments = {
            name.removesuffix("/exp_avg_sq"): value / (1 - training.beta2**step)
            for name, value in optimizer.items()
            if name.endswith("/exp_avg_sq")
        }
        sizes = {b: 1 / (gather(b, moments).sqrt() + 1e-3) if adam else 1.0 for b in blocks}
        for n, own in enumerate(sample_gradients(trace, model, blocks)):
            for block, owner in parts:
                product = (sizes[block] * gradients[block] * own[block])[owner].sum().item()
                expected[n] -= rate * product
    assert len(rates) == 3
    assert_scores(trace, expected)


def test_a_mechanism_is_measured_together_and_owns_its_heads(traced):
    """Its direction is the gradient of the heads' mean attention, through the layers between."""
    overrides = ("unit=previous_token_head", "unit.locate=mechanism", "unit.k=4")
    trace, context = traced(
        *overrides, "unit.blocks=[qk,v,o]", "estimator=tracin", "estimator.checkpoints=[40]",
        "estimator.lr_weights=false",
    )  # fmt: skip
    assert sorted(trace.unit.members) == ["L0H0", "L0H1", "L1H0", "L1H1"]
    model = model_at(trace, 40)
    kind = heads_of(trace, context, model)
    parts = own_parts(trace, "mechanism")
    blocks = list(dict.fromkeys(part.block for part in parts))
    tokens = kind.measured.tokens_MT
    names = dict(model.named_parameters())
    for parameter in names.values():
        parameter.requires_grad_(True)
    model.set_attn_implementation("eager")
    patterns = model.base_model(tokens, output_attentions=True).attentions
    mean = torch.stack([p.diagonal(-1, 2, 3).mean((0, 2)) for p in patterns]).mean()
    mean.backward()
    own = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in names.items()}
    gradients = {b: gather(b, own) for b in blocks}
    model.set_attn_implementation("sdpa")
    expected = np.zeros(len(trace.traced.scores.sample_ids))
    for n, own in enumerate(sample_gradients(trace, model, blocks)):
        for block, owner in parts:
            expected[n] -= (gradients[block] * own[block])[owner].sum().item()
    assert_scores(trace, expected, "mechanism")


@pytest.mark.parametrize("scope", ["upstream", "all"])
def test_beyond_its_own_parameters_the_found_unit_alone_is_scored(traced, scope):
    words = ("estimator.checkpoints=[40]", "estimator.lr_weights=false")
    trace, context = traced(f"unit.locate={UNIT}", "estimator=tracin", f"estimator.scope={scope}",
                            *words)  # fmt: skip
    model = model_at(trace, 40)
    measured = heads_of(trace, context, model).measured.differentiable(model)
    wanted = parameter_gradients(model, measured)
    inside = {name for name in wanted if "norm" not in name}
    if scope == "upstream":
        inside = {name for name in inside if ".layers.0." in name}
    own = own_parts(trace)
    blocks = {part.block: gather(part.block, wanted) for part in own}
    expected = []
    for n in trace.traced.scores.sample_ids:
        found = parameter_gradients(model, sequence_losses(model, trace.corpus.rows([n]))[0])
        products = [(found[name] * wanted[name]).sum().item() for name in inside]
        if scope == "upstream":
            products += [(gather(b, found) * blocks[b])[row].sum().item() for b, row in own]
        expected.append(-sum(products))
    assert trace.traced.scores.units == (UNIT,)
    assert_scores(trace, np.array(expected))
    said = context.store.warnings.get(trace.traced.fingerprint, "")
    assert ("leaves out 160 of the model's" in said) == (scope == "all")  # 5 norms of 16, twice


def test_random_scores_depend_on_the_runs_seed_and_on_the_estimators(traced):
    one, _ = traced("estimator=random")
    other, _ = traced("estimator=random", "estimator.seed=1")
    assert not np.array_equal(one.traced.scores.values, other.traced.scores.values)
    run, _ = traced("estimator=random", "seed=1")
    by_id = dict(zip(one.traced.scores.sample_ids, one.traced.scores.of(UNIT), strict=True))
    common = [i for i in run.traced.scores.sample_ids if i in by_id]
    assert len(common) >= 10
    again = dict(zip(run.traced.scores.sample_ids, run.traced.scores.of(UNIT), strict=True))
    assert all(by_id[i] != again[i] for i in common)


@pytest.mark.parametrize("drawn", [{"select": "random"}, {"match": "label"}])
def test_samples_that_are_drawn_depend_on_the_runs_seed_and_on_the_edits(traced, drawn):
    trace, _ = traced("estimator=random")
    sets = {
        frozenset(select(trace.corpus, UNIT, edit, trace.traced.scores, run).tolist())
        for edit in (RemoveConfig(fraction=0.1, seed=seed, **drawn) for seed in (0, 1))
        for run in (0, 1)
    }
    assert len(sets) == 4


def test_a_matched_set_has_the_labels_of_the_targeted_one_and_none_of_it(traced):
    trace, _ = traced("estimator=random")
    scores, corpus = trace.traced.scores, trace.corpus
    highest = scores.sample_ids[np.argsort(-scores.of(UNIT), kind="stable")[:32]]
    drawn = select(corpus, UNIT, RemoveConfig(match="label", fraction=0.2), scores, 0)
    assert len(scores.sample_ids) == 160 and not {*drawn} & {*highest}
    labels = [sorted(corpus.labels[ids].tolist()) for ids in (drawn, highest)]
    assert labels[0] == labels[1]


def test_an_arm_starts_from_the_base_runs_state_and_a_control_repeats_it(context_of):
    from mda import pipeline

    arm = pipeline.arm(context_of("intervention=control", "intervention.window=[21,60]"))
    assert arm.unit.window.start == 21  # between two kept checkpoints: the nearest is resumed
    assert 21 not in arm.base.checkpoints
    last = {row["step"]: row for row in arm.base.curve}[60]
    assert arm.run.curve[-1] == last


PROMPTS = [
    {"prompt": "the same words as", "right": " before", "wrong": " after"},
    {"prompt": [70, 80, 90, 70, 80], "right": [90], "wrong": [71]},
]


def contrast_of(model, corpus, lines):
    """The mean of log p(right) - log p(wrong), each from one sequence by itself."""
    tokenizer, total = Tokenizer.from_file(str(corpus.tokenizer)), 0.0

    def ids(value):
        return tokenizer.encode(value).ids if isinstance(value, str) else value

    for line in lines:
        for side, sign in (("right", 1), ("wrong", -1)):
            before, after = ids(line["prompt"]), ids(line[side])
            log_p = model(torch.tensor([[*before, *after]])).logits[0].double().log_softmax(-1)
            for n, token in enumerate(after):
                total += sign * log_p[len(before) + n - 1, token] / len(lines)
    return total


def test_prompts_are_what_scores_and_curves_of_the_base_run_and_of_arms_are_of(
    context_of, tmp_path
):
    from mda import pipeline

    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in PROMPTS))
    given = ("unit.probe.target=prompts", f"unit.probe.file={file}", f"emergence.prompts={file}")
    given += ("estimator=tracin", "estimator.checkpoints=[40]", "estimator.lr_weights=false")
    trace = pipeline.trace(context_of(*given))
    arm = pipeline.arm(context_of(*given, "intervention=control"))
    for curve, step in ((trace.base.curve, 20), (trace.base.curve, 60), (arm.run.curve, 60)):
        row = {row["step"]: row for row in curve}[step]
        expected = contrast_of(model_at(trace, step), trace.corpus, PROMPTS).item()
        assert row["emergence/prompts"] == pytest.approx(expected, rel=1e-4)
    model = model_at(trace, 40)
    wanted = parameter_gradients(model, contrast_of(model, trace.corpus, PROMPTS))
    expected = []
    for id_ in trace.traced.scores.sample_ids:
        losses = sequence_losses(model, trace.corpus.rows(np.array([id_])))
        found = parameter_gradients(model, losses[0])
        pairs = [(gather(b, wanted)[row], gather(b, found)[row]) for b, row in own_parts(trace)]
        expected.append(-sum((mine * its).sum().item() for mine, its in pairs))
    assert_scores(trace, np.array(expected))


def test_prompts_that_are_too_long_are_refused_before_there_is_a_base_run(context_of, tmp_path):
    from mda import pipeline, store

    file, used = tmp_path / "prompts.jsonl", []
    file.write_text(json.dumps({"prompt": "a " * 99, "right": " b"}))
    context = context_of(f"emergence.prompts={file}")
    said = rf"^emergence\.prompts={file}, line 1: \d+ tokens with .* at most 33, data\.seq_len and"
    for stages in (pipeline.trace, pipeline.arm):
        with (
            store.noting_uses(lambda kind, _: used.append(kind)),
            pytest.raises(ConfigError, match=said),
        ):
            stages(context)
    assert set(used) == {"corpus"}
    file.write_text(json.dumps({"prompt": [1, 999], "right": [5]}))
    with pytest.raises(ConfigError, match="line 1: token 999 is invalid; expected ids from 0 to"):
        context_of(f"emergence.prompts={file}")


def test_a_direction_is_traced_by_what_writes_to_it(traced, tmp_path):
    """Of three vectors the one that tells XML best; scores from the definition of its contrast."""
    vectors = np.random.default_rng(2).normal(size=(3, 16))
    np.save(tmp_path / "vectors.npy", vectors)
    given = ("unit=direction", f"unit.file={tmp_path}/vectors.npy", "unit.layer=0")
    scored = ("estimator=tracin", "estimator.checkpoints=[40]", "estimator.lr_weights=false")
    trace, context = traced(*given, *scored)
    assert vectors.shape[1] == context.config.model.d_model
    ranked = trace.unit.kind.ranking(model_at(trace, 60))
    assert trace.unit.name == max(ranked, key=lambda n: ranked[n])
    assert {str(block) for block, _ in own_parts(trace, trace.unit.name)} == {
        "L0.attn.o", "L0.mlp.out",
    }  # fmt: skip
    model, ids = model_at(trace, 40), np.asarray(trace.corpus.held_out)[1::2]
    vector = torch.from_numpy(vectors[int(trace.unit.name.removeprefix("L0D"))])
    x = model(trace.corpus.rows(ids)[:, :-1], output_hidden_states=True).hidden_states[1]
    along = x.double() @ (vector / vector.norm())
    labels = np.array(trace.corpus.labels_of(ids)) == context.config.unit.label
    has = torch.from_numpy(labels)
    wanted = parameter_gradients(model, along[has].mean() - along[~has].mean())
    expected = []
    for id_ in trace.traced.scores.sample_ids:
        losses = sequence_losses(model, trace.corpus.rows(np.array([id_])))
        found = parameter_gradients(model, losses[0])
        total = 0.0
        for block, _ in own_parts(trace, trace.unit.name):
            total -= (gather(block, wanted)[0] * gather(block, found)[0]).sum().item()
        expected.append(total)
    assert_scores(trace, np.array(expected), trace.unit.name)


def test_a_file_of_directions_of_another_width_is_refused_before_there_is_a_corpus(
    context_of, tmp_path
):
    from mda import pipeline, store

    np.save(tmp_path / "wide.npy", np.ones(17))
    context = context_of("unit=direction", f"unit.file={tmp_path}/wide.npy", "unit.layer=0")
    used = []
    for stages in (pipeline.trace, pipeline.arm):
        with (
            store.noting_uses(lambda kind, _: used.append(kind)),
            pytest.raises(ConfigError, match=r"vectors of 17 numbers are invalid; expected 16"),
        ):
            stages(context)
    assert not used


@pytest.mark.parametrize("unit", ["mlp_neuron", "module"])
def test_another_kind_of_unit_is_followed_like_a_head(context_of, unit):
    from mda import pipeline

    context = context_of(f"unit={unit}", "intervention=control")
    arm = pipeline.arm(context)
    name = f"emergence/{context.config.unit.metric}/{arm.unit.name}"
    there = {row["step"]: row[name] for row in arm.unit.curve if name in row}
    assert sorted(there) == KEPT
    assert arm.run.curve[-1][name] == pytest.approx(there[60], rel=1e-6)
    assert arm.run.curve[0][name] == pytest.approx(there[20], rel=1e-6)
    model = model_at(arm, 60)
    ranked = arm.unit.kind.ranking(model)
    assert max(ranked, key=lambda n: ranked[n]) == arm.unit.name


@pytest.fixture
def pile(tmp_path):
    """Words for rows of two kinds of tokens, of which the 32 that are held out have labels."""
    rng, high = np.random.default_rng(0), np.arange(2000) // 2 % 2
    rows = rng.integers(1, 100, (2000, 33)) + 100 * high[:, None]
    rows.astype("<u2").tofile(tmp_path / "rows-0.bin")
    np.save(tmp_path / "labels.npy", high[-32:])
    given = {"source": tmp_path, "files": "'rows-{shard}.bin'", "shard_bytes": 10**6}
    given |= {"total_rows": 2000, "labels": tmp_path / "labels.npy"}
    return ["data=pile", *(f"data.{name}={value}" for name, value in given.items())]


def test_a_neuron_is_traced_on_rows_of_the_pile_by_labels_of_the_held_out_ones(traced, pile):
    trace, _ = traced(*pile, "data.label_names=[low,high]", "unit=mlp_neuron", "unit.label=high")
    held_out = trace.corpus.rows(trace.corpus.held_out)[:, 0].numpy()
    said = np.array(trace.corpus.labels_of(trace.corpus.held_out))
    assert np.array_equal(said == "high", held_out > 100)
    assert trace.unit.curve[-1][f"emergence/label_auc/{trace.unit.name}"] > 0.8
    assert np.isfinite(trace.traced.scores.of(trace.unit.name)).all()


def test_a_class_that_no_held_out_row_has_is_refused_before_there_is_a_base_run(context_of, pile):
    from mda import pipeline, store

    context, used = context_of(*pile, "unit=mlp_neuron", "unit.label=high"), []
    for stages in (pipeline.trace, pipeline.arm):
        with (
            store.noting_uses(lambda kind, _: used.append(kind)),
            pytest.raises(ConfigError, match=r"unit\.label=high: 0 of 16 .* of class_0, class_1"),
        ):
            stages(context)
    assert set(used) == {"corpus"}


def test_rows_that_cannot_be_read_are_no_fault_of_the_edit(traced, context_of, pile, tmp_path):
    own = (*pile, "estimator=random", "intervention.mode=spans")
    trace, context = traced(*own)
    (tmp_path / "rows-0.bin").unlink()
    with pytest.raises(ConfigError, match=r"^data\.source=.*: there is no rows-0\.bin in it"):
        make_edit(context.config.intervention, trace.unit, trace.traced.scores)


@pytest.mark.parametrize("target", ["metric", "measurement"])
def test_unrolled_scores_are_what_one_more_weight_does_to_the_unit(traced, target):
    """The whole window is trained again here, plainly, with one sample's weight changed."""
    asked = ("estimator=unrolled", "estimator.segment=7", f"estimator.target={target}")
    trace, context = traced(*asked)
    assert trace.traced.steps == (20, 32, 40)  # the window's start, and what is known inside it
    scores, name = trace.traced.scores, trace.unit.name
    others = [unit.name for unit in trace.unit.units if unit.name != name]
    assert all(np.isnan(scores.of(other)).all() for other in others)
    ours, kind = scores.of(name), heads_of(trace, context, model_at(trace, 20))
    unit = next(one for one in trace.unit.units if one.name == name)
    values = {"metric": kind.differentiable(name, [name]),
              "measurement": lambda model: kind.measurements(model, [unit])[0]}  # fmt: skip
    chosen = np.argsort(-np.abs(ours))[:3]
    for row in chosen:
        ends = {}
        for weight in (0.9, 1.1):
            weights = np.ones(len(ours))
            weights[row] = weight
            ends[weight] = values[target](retrained_plainly(trace, context, weights)).item()
        numeric = (ends[1.1] - ends[0.9]) / 0.2
        assert ours[row] == pytest.approx(numeric, rel=0.02)


@pytest.mark.parametrize("estimator", ["tracin", "exact"])
def test_influence_on_the_metric_is_that_of_its_gradient(traced, estimator):
    """With a large damping the inverse curvature is a multiple of the identity."""
    own = {"tracin": ("estimator.checkpoints=[20]", "estimator.lr_weights=false"),
           "exact": ("estimator.checkpoint=20", "estimator.damping=1e6")}[estimator]  # fmt: skip
    trace, context = traced(f"estimator={estimator}", *own, "estimator.target=metric")
    model, scores = model_at(trace, 20), trace.traced.scores
    kind = heads_of(trace, context, model)
    unit = next(one for one in trace.unit.units if one.name != trace.unit.name)
    wanted = parameter_gradients(model, kind.differentiable(unit.name, [unit.name])(model))
    products = []
    for id_ in scores.sample_ids[:3]:
        losses = sequence_losses(model, trace.corpus.rows(np.array([id_])))
        found = parameter_gradients(model, losses[0])
        pairs = [(gather(b, wanted)[row], gather(b, found)[row]) for b, row in unit.parts]
        products.append(-sum((mine * its).sum().item() for mine, its in pairs))
    ours = scores.of(unit.name)[:3]
    scale = ours[0] / products[0] if estimator == "exact" else 1
    assert ours == pytest.approx(scale * np.array(products), rel=1e-3) and scale > 0


def test_unrolled_scores_of_a_perturbed_start_are_those_of_noise_drawn_here(traced):
    """0.05 of each parameter's spread, from seed 4 and the first of the perturbed runs."""
    perturbed = ("estimator.n_perturbed=1", "estimator.seed=4", "estimator.perturbation=0.05")
    trace, context = traced("estimator=unrolled", "estimator.last_steps=3", *perturbed)
    settings, model, name = context.config.training, model_at(trace, 20), trace.unit.name
    state = load_state(trace.base.folder / "checkpoints/step_20", model, settings)
    noise = np.random.default_rng([4, 0]).standard_normal(len(state.weights_P))
    parts = [p.detach().flatten() for p in model.parameters()]
    spread = torch.cat([p.std(correction=0).expand(len(p)) for p in parts])
    moved = torch.cat(parts) + 0.05 * spread * torch.from_numpy(noise).float()
    order = stream_order(trace.corpus, context.config.seed)
    window = TrainingWindow(model, unedited(order, 4, 20, 60), trace.corpus.rows, settings)
    metric = heads_of(trace, context, model).differentiable(name, [name])
    *_, last = unrolled_influence(
        window, {20: replace(state, weights_P=moved)}, [metric], last_steps=3
    )
    assert not last.values_NU[:-12].any()
    assert_scores(trace, last.values_NU[:, 0].numpy(), name)


def test_unrolled_scores_are_of_the_unit_and_the_metric_that_are_asked_for(traced):
    asked = ("estimator=unrolled", "estimator.last_steps=2")
    first, context = traced(*asked)
    names = [unit.name for unit in first.unit.units]
    other = next(name for name in names if name != first.unit.name)
    second, _ = traced(*asked, f"unit.locate={other}")
    third, renamed = traced(*asked, f"unit.locate={other}", "unit.metric=previous_token")
    again, _ = traced(*asked, f"unit.locate={first.unit.name}")
    assert again.traced.fingerprint == first.traced.fingerprint  # located, or named: one unit
    assert not np.isnan(second.traced.scores.of(other)).any()
    one, two = second.traced.scores.of(other), third.traced.scores.of(other)
    assert not np.isnan(two).any() and not np.allclose(one, two)
    assert context.config.unit.metric != renamed.config.unit.metric


def retrained_plainly(trace, context, weights):
    """The window from its start in float64: AdamW, clipping and rates written out once more."""
    settings = context.config.training
    model = model_at(trace, 20).double()
    optimizer = load_file(trace.base.folder / "checkpoints/step_20/optimizer.safetensors")
    states = {
        n: [optimizer[f"{n}/{key}"].double() for key in ("exp_avg", "exp_avg_sq")]
        for n, _ in model.named_parameters()
    }
    ids, size = trace.traced.scores.sample_ids, settings.batch_size
    for step in range(20, 60):
        here = slice((step - 20) * size, (step - 19) * size)
        rows = trace.corpus.rows(ids[here])
        logits = model(rows[:, :-1]).logits
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), rows[:, 1:], reduction="none"
        ).mean(1)
        loss = (torch.from_numpy(weights[here]) * losses).sum() / size
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.stack([g.norm() for g in gradients]).norm()
        clip = min(1.0, settings.grad_clip / (norm.item() + 1e-6))
        done = (step - settings.warmup_steps) / (settings.total_steps - settings.warmup_steps)
        floor = settings.min_lr_ratio
        rate = settings.peak_lr * (floor + (1 - floor) * (1 + np.cos(np.pi * done)) / 2)
        with torch.no_grad():
            for (name, p), g in zip(model.named_parameters(), gradients, strict=True):
                first, second = states[name]
                first.lerp_(g * clip, 1 - settings.beta1)
                second.mul_(settings.beta2).add_((g * clip) ** 2, alpha=1 - settings.beta2)
                p.mul_(1 - rate * settings.weight_decay * (p.ndim >= 2))
                hat = (second / (1 - settings.beta2 ** (step + 1))).sqrt() + settings.eps
                p.sub_(rate / (1 - settings.beta1 ** (step + 1)) * first / hat)
    return model
