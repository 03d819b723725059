"""Every setting is changed in turn: the first stage that it touches gets another key, none before.

A key that misses a setting returns the result of another configuration; one that has too many
computes again what is there. So both sides are written down here, for every setting there is.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from mda import pipeline, store
from mda.config import compose
from mda.estimator.ekfac import Fit
from mda.model.build import saved_config, scratch
from mda.programs import run
from mda.schema import OPTIONS, ConfigError, TracinConfig, UnrolledConfig
from mda.schema.keys import settings
from mda.schema.metrics import HEAD_METRICS, HeadMetric
from mda.stages.attribution import work_of
from mda.stages.preview import fingerprints, preview_job
from mda.stages.recipe import Recipe
from mda.stages.runs import model_inputs

STAGES = ("corpus", "base", "ranking", "scores", "tokens", "arm", "capabilities")

NOTHING = "nothing"

CHANGES = {  # setting -> overrides that change it, and the first stage they touch
    "seed": ("seed=1", "base"),
    "name": ("name=other", NOTHING),
    # data
    "data.seq_len": ("data.seq_len=40", "corpus"),
    "data.vocab_size": ("data.vocab_size=290", "corpus"),
    "data.held_out": ("data.held_out=30", "corpus"),
    "data.n_sequences": ("data.n_sequences=1900", "corpus"),
    "data.seed": ("data.seed=1", "corpus"),
    "data.shuffle": ("data.shuffle=false", "base"),
    "data.order_seed": ("data.order_seed=7", "base"),
    "data.templates.repeat": ("data.templates.repeat=2", "corpus"),
    "data.templates.xml": ("data.templates.xml=2", "corpus"),
    "data.templates.latex": ("data.templates.latex=2", "corpus"),
    "data.templates.json": ("data.templates.json=2", "corpus"),
    "data.templates.log": ("data.templates.log=2", "corpus"),
    "data.templates.salad": ("data.templates.salad=2", "corpus"),
    # model
    "model.name": ("model.name=other", NOTHING),
    "model.peak_lr": ("model.peak_lr=2e-3", "base"),  # training.peak_lr takes it
    "model.family": ("model.family=llama", "base"),
    "model.n_layers": ("model.n_layers=3", "base"),
    "model.d_model": ("model.d_model=32", "base"),
    "model.d_ff": ("model.d_ff=64", "base"),
    "model.vocab_size": ("model.vocab_size=320", "base"),
    "model.max_seq_len": ("model.max_seq_len=64", "base"),
    "model.rotary_pct": ("model.rotary_pct=1.0", "base"),
    "model.rotary_base": ("model.rotary_base=500", "base"),
    # training
    "training.batch_size": ("training.batch_size=5", "base"),
    "training.micro_batch_size": ("training.micro_batch_size=2", "base"),
    "training.total_steps": ("training.total_steps=80", "base"),
    "training.schedule": ("training.schedule=neox", "base"),
    "training.ends": ("training.ends=window", "base"),
    "training.peak_lr": ("training.peak_lr=1e-3", "base"),
    "training.min_lr_ratio": ("training.min_lr_ratio=0.2", "base"),
    "training.warmup_steps": ("training.warmup_steps=6", "base"),
    "training.beta1": ("training.beta1=0.8", "base"),
    "training.beta2": ("training.beta2=0.9", "base"),
    "training.eps": ("training.eps=1e-7", "base"),
    "training.weight_decay": ("training.weight_decay=0.1", "base"),
    "training.grad_clip": ("training.grad_clip=0.5", "base"),
    "training.checkpoint_every": ("training.checkpoint_every=10", "base"),
    "training.checkpoint_log_spaced": ("training.checkpoint_log_spaced=false", "base"),
    "training.accelerator": ("training.accelerator=auto", NOTHING),  # the device's kind is a key
    "training.devices": ("training.devices=2", "base"),
    "training.precision": ("training.precision=bf16-mixed", "base"),
    "training.activation_checkpointing": ("training.activation_checkpointing=true", "base"),
    "training.threads": ("training.threads=2", "base"),
    # emergence
    "emergence.every": ("emergence.every=20", "base"),
    "emergence.n_sequences": ("emergence.n_sequences=5", "base"),
    "emergence.length": ("emergence.length=12", "base"),
    "emergence.distribution": ("emergence.distribution=uniform", "base"),
    "emergence.seed": ("emergence.seed=3", "base"),
    "emergence.held_out": ("emergence.held_out=12", "base"),
    "emergence.held_out_every": ("emergence.held_out_every=3", "base"),
    "emergence.arm_held_out_every": ("emergence.arm_held_out_every=1", "arm"),
    "emergence.icl_late": ("emergence.icl_late=[20,30]", "base"),
    "emergence.icl_early": ("emergence.icl_early=[1,3]", "base"),
    # unit
    "unit.name": ("unit.name=other", NOTHING),
    "unit.threshold": ("unit.threshold=0.5", NOTHING),
    "unit.locate": ("unit.locate=mechanism", "scores"),
    "unit.only": ("unit.only=true", "scores"),
    "unit.blocks": ("unit.blocks=[qk,o]", "scores"),
    "unit.biases": ("unit.biases=true", "scores"),
    "unit.probe.target": ("unit.probe.target=previous_token", "scores"),
    "unit.probe.n_sequences": ("unit.probe.n_sequences=5", "scores"),
    "unit.probe.length": ("unit.probe.length=12", "scores"),
    "unit.probe.distribution": ("unit.probe.distribution=uniform", "scores"),
    "unit.probe.seed": ("unit.probe.seed=9", "scores"),
    # estimator
    "estimator.name": ("estimator=tracin", "scores"),
    "estimator.checkpoint": ("estimator.checkpoint=32", "scores"),
    "estimator.damping": ("estimator.damping=0.5", "scores"),
    "estimator.skip_positions": ("estimator.skip_positions=1", "scores"),
    "estimator.target": ("estimator.target=metric", "scores"),
    "estimator.scope": ("estimator.scope=upstream", "scores"),
    "estimator.factors": ("estimator.factors=sequence", "scores"),
    "estimator.fit_sequences": ("estimator.fit_sequences=20", "scores"),
    "estimator.labels": ("estimator.labels=empirical", "scores"),
    "estimator.seed": ("estimator.seed=4", "scores"),
    "estimator.adam_damping": ("estimator.adam_damping=true", "scores"),
    "estimator.batch_size": ("estimator.batch_size=8", NOTHING),
    # intervention
    "intervention.name": ("intervention=augment", "arm"),
    "intervention.window": ("intervention.window=[20,50]", "scores"),
    "intervention.before_onset": ("intervention.before_onset=9", NOTHING),  # a window is given
    "intervention.after_onset": ("intervention.after_onset=9", NOTHING),
    "intervention.mode": ("intervention.mode=drop", "arm"),
    "intervention.select": ("intervention.select=bottom", "arm"),
    "intervention.fraction": ("intervention.fraction=0.2", "arm"),
    "intervention.label": ("intervention.label=generated_xml", "arm"),
    "intervention.scope": ("intervention.scope=unit", "arm"),
    "intervention.match": ("intervention.match=label", "arm"),
}
for name, value in {
    "held_out": 8, "prompts": 4, "shots": 1, "span": 5, "snippet": 7, "ablation": "false",
    "heads": 1, "random_sets": 2, "seed": 1,
}.items():  # fmt: skip
    CHANGES[f"capabilities.{name}"] = (f"capabilities.{name}={value}", "capabilities")
ELSEWHERE = (
    "plan.", "report.", "logger.", "study.", "truth.", "sae.", "motifs.", "synthesis.", "output_dir"
)  # fmt: skip
"""Settings that no stage of this experiment reads; `sae` and `truth` have tests of their own."""
BESIDE = {  # setting -> the words that it needs beside it, its value, the first stage it touches
    "model.n_heads": ("model.rotary_pct=1.0", "4", "base"),
    "model.n_key_value_heads": ("model.family=llama", "1", "base"),
    "training.stop_step": ("training.total_steps=80", "60", "base"),
    "unit.metric": ("unit.locate={unit}", "previous_token", "capabilities"),  # orders its heads
    "unit.k": ("unit.locate=mechanism", "3", "scores"),
    "unit.layers": ("unit=mlp_neuron", "[1]", "ranking"),
    "unit.label": ("unit=mlp_neuron", "generated_json", "ranking"),
    "unit.parts": ("unit=module", "[mlp]", "ranking"),
    "unit.probe.repeats": ("unit.probe.length=10", "3", "scores"),
    "unit.probe.file": (
        "unit.probe.target=prompts unit.probe.file={prompts}", "{others}", "scores",
    ),
    "unit.file": ("unit=direction unit.layer=0 unit.file={vector}", "{vectors}", "ranking"),
    "unit.layer": ("unit=direction unit.file={vector} unit.layer=0", "1", "ranking"),
    "unit.hook": (
        "unit=direction unit.file={vector} unit.layer=0", "attn_out", "ranking",
    ),
    "unit.owners": (
        "unit=direction unit.file={vector} unit.layer=0", "[mlp]", "ranking",
    ),
    "emergence.prompts": ("emergence.prompts={prompts}", "{others}", "base"),
    "estimator.checkpoints": ("estimator=tracin", "[20]", "scores"),
    "estimator.n_checkpoints": ("estimator=tracin", "1", "scores"),
    "estimator.lr_weights": ("estimator=tracin", "false", "scores"),
    "estimator.n": ("estimator=ngram", "3", "scores"),
    "estimator.layer": ("estimator=embedding", "0", "scores"),
    "estimator.adam_preconditioning": ("estimator=tracin", "true", "scores"),
    "intervention.until": ("intervention=control intervention.window=[20,40]", "50", "arm"),
    "intervention.within": (
        "intervention.mode=mask_tokens intervention.select=random", "0.5", "arm",
    ),
    "intervention.spans": (
        "intervention.mode=spans intervention.fraction=0.03", "renamed", "arm",
    ),
    "intervention.ngram": ("intervention.mode=spans intervention.fraction=0.03", "4", "arm"),
    "intervention.weight": ("intervention=augment intervention.mode=upweight", "3", "arm"),
    "intervention.rows": (
        "intervention=augment intervention.mode=insert intervention.rows={rows}", "{other}", "arm",
    ),
    "intervention.at_step": (
        "intervention=augment intervention.mode=insert intervention.rows={rows}", "30", "arm",
    ),
    "intervention.per_step": (
        "intervention=augment intervention.mode=insert intervention.rows={rows}", "2", "arm",
    ),
    "intervention.count": ("intervention.fraction=null intervention.count=6", "5", "arm"),
    "intervention.ids": ("intervention.select=ids intervention.ids=[{ids}]", "[{id}]", "arm"),
    "intervention.band": (
        "intervention.select=band intervention.band=[0.1,0.2]", "[0.1,0.3]", "arm",
    ),
    "intervention.seed": ("intervention.select=random", "2", "arm"),
    "intervention.match_targeted": ("intervention.match=label", "allow", "arm"),
}  # fmt: skip
PUBLISHED = {  # settings of a published base run, whose stages are corpus, weights, curve, base
    "base.folder": ("base.folder={others}", "weights"),
    "base.repo": ("base.folder=null base.repo=me/tiny", "weights"),
    "base.steps": ("base.steps=[0,20,60]", "curve"),
    "emergence.seed": ("emergence.seed=3", "curve"),  # of the probes it is measured on
    "base.revision": ("base.folder={renamed} base.revision=rev*", NOTHING),  # the same files
    "base.state": ("base.state={state}", "base"),
    "base.allow_bad": ("base.allow_bad=true", NOTHING),
    "base.other_training": ("base.other_training=true", NOTHING),
}


@pytest.fixture(scope="module")
def baseline(context_of):
    context = context_of()
    arm = pipeline.arm(context)
    return fingerprints(context.config, pipeline.arm), arm


def first_difference(
    before: dict[str, str], after: dict[str, str], stages: tuple[str, ...] = STAGES
) -> str:
    return next((s for s in stages if s in after and before.get(s) != after[s]), NOTHING)


@pytest.mark.parametrize("setting", CHANGES)
def test_a_setting_changes_the_key_of_the_first_stage_that_reads_it(context_of, baseline, setting):
    overrides, stage = CHANGES[setting]
    after = fingerprints(context_of(*overrides.split()).config, pipeline.arm)
    if setting == "training.accelerator" and torch.cuda.is_available():
        stage = "base"
    assert first_difference(baseline[0], after) == stage


@pytest.mark.parametrize(
    ("estimator", "reads"),
    [
        ("bm25", True),
        ("ngram", True),
        ("embedding", True),
        ("gradient_norm", False),
        ("repetition", False),
    ],
)
def test_scores_are_of_one_probe_where_their_estimator_reads_it(
    context_of, baseline, estimator, reads
):
    words = (f"estimator={estimator}", "unit.locate=L1H0")
    before, after = (
        fingerprints(context_of(*words, *changed).config, pipeline.trace)
        for changed in ((), ("unit.probe.seed=9",))
    )
    assert first_difference(before, after) == ("scores" if reads else NOTHING)


def test_a_metric_of_heads_that_is_added_is_in_the_key_of_what_measures_it(
    context_of, baseline, monkeypatch
):
    added = HeadMetric("added", "mda.unit.metrics:previous_token", "added", 0.5)
    monkeypatch.setitem(HEAD_METRICS, "added", added)
    after = fingerprints(context_of().config, pipeline.arm)
    assert first_difference(baseline[0], after) == "base"


def test_the_device_that_trains_is_in_the_key(context_of, baseline, monkeypatch):
    """`meta` stands in for a GPU: nothing is trained on it, the key alone is asked for."""
    monkeypatch.setattr("mda.stages.recipe.device_of", lambda config: torch.device("meta"))
    after = fingerprints(context_of().config, pipeline.arm)
    assert first_difference(baseline[0], after) == "base"


@pytest.fixture(scope="module")
def inserted(context_of, tmp_path_factory):
    """Two files of rows, two of prompts and two of directions, by the words of `BESIDE`."""
    folder, config = tmp_path_factory.mktemp("rows"), context_of().config
    data = config.data
    for n, name in ((1, "vector"), (2, "vectors")):
        vectors = np.random.default_rng(0).normal(size=(n, config.model.d_model))
        np.save(folder / f"{name}.npy", vectors)
    for name, seed in (("rows", 0), ("other", 1)):
        rows = np.random.default_rng(seed).integers(2, 250, (6, data.seq_len + 1))
        np.save(folder / f"{name}.npy", rows.astype(np.uint16))
        line = {"prompt": [5, 6], "right": [7 + seed], "wrong": [9]}
        (folder / f"{name}.jsonl").write_text(json.dumps(line))
    files = {name: str(folder / f"{name}.npy") for name in ("rows", "other", "vector", "vectors")}
    return files | {"prompts": f"{folder}/rows.jsonl", "others": f"{folder}/other.jsonl"}


@pytest.mark.parametrize("setting", BESIDE)
def test_a_setting_that_needs_another_one_changes_the_key_of_its_stage_by_itself(
    context_of, baseline, inserted, setting
):
    beside, value, stage = BESIDE[setting]
    _, arm = baseline
    one, *others = arm.edited.changes.sample_ids[:3].tolist()
    known = {"unit": arm.unit.name, "id": one, "ids": ",".join(map(str, others)), **inserted}
    words = beside.format(**known).split()
    before, after = (
        fingerprints(context_of(*words, *changed).config, pipeline.arm)
        for changed in ((), (f"{setting}={value.format(**known)}",))
    )
    assert stage in before and first_difference(before, after) == stage


@pytest.mark.parametrize(
    ("words", "stage"),
    [
        ("unit.probe.target=prompts unit.probe.file={}", "scores"),
        ("emergence.prompts={}", "base"),
    ],
)
def test_a_file_of_prompts_is_known_by_what_it_holds(context_of, baseline, tmp_path, words, stage):
    file, copy = tmp_path / "prompts.jsonl", tmp_path / "copy.jsonl"

    def keys(path) -> dict[str, str]:
        return fingerprints(context_of(*words.format(path).split()).config, pipeline.arm)

    for path in (file, copy):
        path.write_text('{"prompt": [5], "right": [6]}')
    before = keys(file)
    assert first_difference(baseline[0], before) == stage
    assert first_difference(before, keys(copy)) == NOTHING
    file.write_text('{"prompt": [5], "right": [8]}')
    assert first_difference(before, keys(file)) == stage


AGAIN = {  # settings of above beside words with which another stage, or part of it, reads them
    "the window's end, where the scored checkpoint stays": (
        "estimator.checkpoint=32", "intervention.window=[20,50]", "scores",
    ),
    "the window's start, where it does": (
        "estimator.checkpoint=32", "intervention.window=[8,60]", "scores",
    ),
    "the unit whose tokens are scored, where one pass scores every head": (
        "intervention.mode=mask_tokens intervention.fraction=0.01 unit.locate=L1H0",
        "unit.locate=L0H0", "tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", AGAIN)
def test_a_setting_changes_the_key_of_each_stage_that_reads_it(context_of, baseline, case):
    words, changed, stage = AGAIN[case]
    before, after = (
        fingerprints(context_of(*words.split(), *more).config, pipeline.arm)
        for more in ((), (changed,))
    )
    assert stage in before and first_difference(before, after) == stage


@pytest.fixture(scope="module")
def published(context_of, tmp_path_factory):
    """Folders of revisions, and the keys of the base run that one of them is."""
    root = tmp_path_factory.mktemp("published")
    sizes = context_of().config.model
    for folder, name, seed in (("own", "step", 0), ("others", "step", 9), ("renamed", "rev", 0)):
        for step in (0, 20, 40, 60):
            place = root / folder / f"{name}{step}"
            model = scratch(sizes, seed + step)
            store.write_json(place / "config.json", saved_config(model))
            weights = dict(model.named_parameters())
            store.write_safetensors(place / "model.safetensors", weights, {"format": "pt"})
    store.write_safetensors(root / "state" / "step_20" / "optimizer.safetensors", {})
    given = ("base=published", f"base.folder={root / 'own'}", "base.steps=[0,20,40,60]")
    pipeline.train(context_of(*given))
    return root, given, fingerprints(context_of(*given).config, pipeline.train)


@pytest.mark.parametrize("setting", PUBLISHED)
def test_a_setting_of_a_published_base_run_changes_the_key_of_its_stage(
    context_of, published, setting
):
    root, given, before = published
    overrides, stage = PUBLISHED[setting]
    changed = overrides.format(**{name: root / name for name in ("others", "renamed", "state")})
    after = fingerprints(context_of(*given, *changed.split()).config, pipeline.train)
    assert first_difference(before, after, ("corpus", "weights", "curve", "base")) == stage


@pytest.mark.parametrize("order", ["data.shuffle=false", "data.order_seed=7"])
@pytest.mark.parametrize("estimator", ["repetition", "tracin"])
def test_scores_of_a_published_base_run_are_of_the_order_that_is_asked_for(
    context_of, published, order, estimator
):
    _, given, _ = published
    asked = (*given, f"estimator={estimator}")
    before, after = (
        fingerprints(context_of(*asked, *changed).config, pipeline.trace)
        for changed in ((), (order,))
    )
    assert first_difference(before, after) == "scores"


def test_an_arm_of_a_published_base_run_is_measured_as_often_as_it_is_asked(context_of, published):
    _, given, _ = published
    found = {}
    for every in (10, 20):
        config = context_of(*given, "intervention=control", f"emergence.every={every}").config
        found[every] = fingerprints(config, pipeline.arm)
    assert first_difference(found[10], found[20]) == "arm"


SCORED = ("intervention.window=[20,40]", "unit.locate=L1H0")
TRACIN = ("estimator=tracin", "estimator.checkpoints=[20]")
EKFAC = ("estimator=ekfac", "estimator.checkpoint=20", "estimator.batch_size=8")
SAME_SCORES = {  # what other scores of a published run do not depend on, as words
    "training.devices=2",
    "training.precision=bf16-mixed",
    "training.micro_batch_size=2 training.activation_checkpointing=true",
    "emergence.every=20 emergence.seed=3 emergence.n_sequences=5",
    "base.steps=[0,20,40]",
    "base.folder={later}",  # step 60, which is not scored, has other weights
    "base.state={state}",
    "estimator.batch_size=8",
    "unit.locate=L0H0",  # one pass scores every head
}
OTHER_SCORES = {
    "base.folder={earlier}",  # step 20, which is scored, has other weights
    "base.folder={other_sizes}",
    "estimator.checkpoints=[40]",
    "estimator.checkpoints=[20,40]",
    "estimator.lr_weights=false",
    "training.peak_lr=1e-3",
    "training.warmup_steps=6",
    "training.total_steps=80",
    "training.schedule=neox",
    "training.batch_size=5",
    "training.threads=2",  # on a CPU
    "seed=1",
    "data.seed=1",
    "data.held_out=30",
    "data.order_seed=7",
    "intervention.window=[20,60]",
    "unit=previous_token_head",
    "unit.locate=mechanism",
    "unit.probe.seed=9",
}


@pytest.fixture(scope="module")
def scored(context_of, published):
    """Words -> scores of the published run, whose folders have copies with one change each."""
    root, given, _ = published
    for name, step in (("earlier", 20), ("later", 60)):
        shutil.copytree(root / "own", root / name)
        other = root / "others" / f"step{step}"
        shutil.copytree(other, root / name / other.name, dirs_exist_ok=True)
    shutil.copytree(root / "own", root / "other_sizes")
    for path in (root / "other_sizes").glob("*/config.json"):
        content = store.read_json(path)
        store.write_json(path, content | {"layer_norm_eps": 1e-3})  # the same weights
    folders = {n: root / n for n in ("earlier", "later", "other_sizes", "state")}

    def scores(words: str = "", estimator: tuple[str, ...] = TRACIN):
        own = words.format(**folders).split()
        return pipeline.trace(context_of(*given, *SCORED, *estimator, *own)).traced

    return scores, scores()


@pytest.mark.parametrize("words", sorted(SAME_SCORES))
def test_scores_of_a_published_run_are_found_whatever_they_do_not_depend_on(scored, words):
    scores, first = scored
    again = scores(words)
    assert again.fingerprint == first.fingerprint and not again.built


@pytest.mark.parametrize("words", sorted(OTHER_SCORES))
def test_scores_of_a_published_run_are_never_used_for_others(scored, words):
    scores, first = scored
    assert scores(words).fingerprint != first.fingerprint


def test_curvature_of_a_published_run_is_that_of_its_step_s_weights(scored):
    scores, _ = scored
    folder = scores("", EKFAC).folder.parents[1] / "curvature"

    def fitted(words: str) -> int:
        before = len(list(folder.glob("*/manifest.json")))
        scores(words, EKFAC)
        return len(list(folder.glob("*/manifest.json"))) - before

    same = "training.peak_lr=1e-3 estimator.damping=0.3", "base.folder={later} training.devices=2"
    assert [fitted(words) for words in same] == [0, 0]
    others = "base.folder={earlier}", "estimator.checkpoint=40", "data.seed=1", "data.order_seed=7"
    assert [fitted(words) for words in others] == [1, 1, 1, 1]


def test_scores_of_other_rows_with_the_same_ids_are_others(context_of, published, tmp_path):
    _, given, _ = published
    found = []
    for seed in (0, 1):
        source = tmp_path / str(seed)
        source.mkdir()
        rows = np.random.default_rng(seed).integers(1, 300, (2000, 33))
        rows.astype("<u2").tofile(source / "rows-0.bin")
        words = [f"data.source={source}", f"data.repo=me/{seed}", "data.files='rows-{shard}.bin'"]
        words += ["data=pile", "data.shard_bytes=1000000", "data.total_rows=2000"]
        words += ["base.other_training=true"]
        found.append(pipeline.trace(context_of(*given, *SCORED, *EKFAC, *words)))
    one, other = (trace.traced for trace in found)
    assert np.array_equal(one.scores.sample_ids, other.scores.sample_ids)
    assert one.fingerprint != other.fingerprint
    assert not np.allclose(one.scores.values, other.scores.values, rtol=1e-3)  # nor the curvature


def test_threads_count_on_a_cpu_alone(context_of, published, monkeypatch):
    """`meta` stands in for a GPU: nothing is measured on it, the key alone is asked for."""
    _, given, _ = published
    config = context_of("training.threads=3").config
    recipe = Recipe(config.training, config.emergence)
    assert recipe.threads == {"threads": 3}
    monkeypatch.setattr("mda.stages.recipe.device_of", lambda config: torch.device("meta"))
    one, two = (
        fingerprints(context_of(*given, f"training.threads={n}").config, pipeline.train)["curve"]
        for n in (1, 2)
    )
    assert one == two


def test_an_estimator_reads_no_more_of_a_published_run_than_the_key_of_its_scores_holds(
    context_of, published
):
    _, given, _ = published
    context = context_of(*given, *SCORED, *TRACIN)
    trace = pipeline.trace(context)
    work = work_of(trace.unit, context.config.estimator, trace.traced.steps, context.at)
    work.model(20)
    adam = replace(work, settings=TracinConfig(adam_preconditioning=True))
    unrolled = replace(work, settings=UnrolledConfig())
    for asked in (lambda: adam.second_moments(20), unrolled.training):
        with pytest.raises(ConfigError, match=r"estimator=\w+ .* what needs no optimizer state"):
            asked()
    others = (
        lambda: work.query,
        lambda: work.differentiable("L1H0"),
        lambda: work.second_moments(20),
    )
    for asked in (*others, work.training):
        with pytest.raises(ValueError, match="`requires` does not say so"):
            asked()
    for asked in (lambda: work.model(40), lambda: work.curvature(40, Fit([]))):
        with pytest.raises(ValueError, match=r"step 40 is read; expected .* own steps, 20"):
            asked()


def test_a_revision_of_a_hub_is_found_by_its_name(context_of, published):
    _, (kind, _, steps), _ = published
    keys = set()
    for name in ("base.repo=me/tiny", "base.repo=you/tiny", "base.repo=me/tiny base.revision=v*"):
        config = context_of(kind, steps, *name.split()).config
        keys.add(fingerprints(config, pipeline.train)["weights"])
    assert len(keys) == 3


def test_a_folder_of_weights_is_known_by_what_it_holds(published):
    root, _, _ = published

    def entering(folder: str) -> dict[str, object]:
        return model_inputs(
            compose(["model=checkpoint", f"model.source={root / folder}"], ("model",)).model
        )

    assert entering("own/step0") == entering("renamed/rev0") != entering("own/step20")


def test_every_setting_is_tried():
    """A new setting has to say here which key it belongs to."""
    kinds = {"data": "synthetic", "model": "scratch", "unit": "head", "estimator": "ekfac"}
    kinds |= {"training": "", "emergence": "", "capabilities": "", "base": "published"}
    several = {"intervention": {"remove", "augment"}}
    missing = []
    for key, places in settings().items():
        group = key.partition(".")[0]
        options = {option for option, _ in places}
        ours = not options - {""} or bool(options & several.get(group, {kinds.get(group)}))
        tried = key in CHANGES | BESIDE | PUBLISHED
        if ours and not key.startswith(ELSEWHERE) and "." in key and not tried:
            missing.append(key)
    skipped = {"base.name", "data.name", "data.templates", "unit.probe"}
    skipped |= set(OPTIONS)
    assert [key for key in missing if key not in skipped] == []


def test_a_state_between_two_checkpoints_is_that_of_its_step(context_of, baseline):
    keys = set()
    for start in (21, 23):
        control = context_of("intervention=control", f"intervention.window=[{start},50]")
        keys.add(fingerprints(control.config, pipeline.arm)["state"])
    assert len(keys) == 2


def test_a_plan_says_that_what_an_arm_can_do_is_missing(context_of, baseline, capsys):
    card = "plan.hardware=h100"  # which takes no measuring of this machine
    run.preview([context_of(card).config], 1)
    assert "1 jobs; to build: nothing." in capsys.readouterr().out
    run.preview([context_of(card, "capabilities.prompts=5").config], 1)
    assert "1 jobs; to build: 1 capabilities." in capsys.readouterr().out


def test_a_plan_tells_jobs_apart_by_what_their_stages_read(context_of, inserted, tmp_path):
    def keys(*overrides: str) -> dict[str, str]:
        config = context_of(f"output_dir={tmp_path}", *overrides).config
        planned = preview_job(config, pipeline.arm).stages
        assert not any(planned.values())
        return dict(planned.keys())

    def first(before: dict[str, str], after: dict[str, str]) -> str:
        same = [stage for stage in before if before[stage] == after[stage]]
        assert same == list(before)[: len(same)]
        return next((stage for stage in before if stage not in same), NOTHING)

    feature = ("unit=sae_feature", "unit.label=generated_xml")
    assert first(keys(*feature, "sae.k=4"), keys(*feature, "sae.k=6")) == "sae"
    assert first(keys("sae.k=4"), keys("sae.k=6")) == NOTHING  # no head reads one
    assert first(keys(), keys("capabilities.prompts=5")) == "capabilities"
    assert first(keys(), keys("intervention.fraction=0.3")) == "arm"
    heavier = ("intervention=augment", "intervention.mode=upweight", "intervention.weight=3")
    assert first(keys(*heavier[:2]), keys(*heavier)) == "arm"
    rows, other = (f"intervention.rows={inserted[name]}" for name in ("rows", "other"))
    insert = ("intervention=augment", "intervention.mode=insert")
    for changed in ((other,), (rows, "intervention.at_step=30"), (rows, "intervention.per_step=2")):
        assert first(keys(*insert, rows), keys(*insert, *changed)) == "arm"
    windows = (keys(f"intervention.window={window}") for window in ("[20,40]", "[30,50]"))
    assert first(*windows) == "scores"
