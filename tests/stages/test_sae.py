"""Training an SAE on a base run, as a stage at smoke size."""

import json
import shutil

import numpy as np
import pytest
import torch

from mda import pipeline, store
from mda.config import compose
from mda.data.stream import stream_order
from mda.sae.hooks import Hookpoint, activations
from mda.sae.quality import quality
from mda.sae.train import train_topk_sae
from mda.schema import ConfigError
from mda.stages.context import Context
from mda.stages.locating import Located
from mda.stages.sae import SaeStage, drawn
from mda.stages.stage import make


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def stage(out):
    """(context, corpus, base run) for some overrides."""

    def run(*overrides: str):
        config = compose(["experiment=smoke", f"output_dir={out}", *overrides])
        context = Context(config, Context.of(config).store, progress=False)
        return context, *pipeline.train(context)

    return run


@pytest.fixture(scope="module")
def found(stage):
    context, _, base = stage()
    return make(SaeStage(base, context.config.sae), context.at)


def test_the_artifact_is_the_sae_and_its_quality_on_held_out_text(stage, found):
    _, corpus, base = stage()
    assert found.built
    assert (found.hook, found.step) == (Hookpoint("resid_post", 0), 60)
    sae = found.sae
    assert (sae.n_features, sae.k, sae.d_in, sae.hook) == (64, 4, 16, found.hook)
    tokens = corpus.rows(corpus.held_out)[:, :-1]
    with torch.no_grad():
        x = activations(base.model(60).eval(), tokens, found.hook, base.architecture)
    again = quality(sae, [x])
    assert found.quality.explained_variance == pytest.approx(again.explained_variance, abs=1e-5)
    assert found.quality.tokens == len(tokens) * 32
    assert 0 < found.quality.explained_variance < 1


def test_it_is_found_again_and_its_history_logged_as_if_just_trained(stage, found):
    context, _, base = stage()
    rows = []
    logged = Context(context.config, context.store, rows.append, progress=False)
    again = make(SaeStage(base, context.config.sae), logged.at)
    assert not again.built and again.fingerprint == found.fingerprint
    assert [row["step"] for row in rows] == [50, 60]
    assert rows[-1]["sae/explained_variance"] == found.history[-1]["explained_variance"]


def test_built_again_it_is_the_same_bit_for_bit(stage, found):
    context, _, base = stage()
    before = found.sae.fingerprint()
    aside = found.folder.with_name("aside")
    shutil.copytree(found.folder, aside)
    assert context.store.remove(found.folder)
    again = make(SaeStage(base, context.config.sae), context.at)
    assert again.built
    assert again.sae.fingerprint() == before
    for name in ("history.csv", "quality.json"):
        assert (again.folder / name).read_bytes() == (aside / name).read_bytes()
    shutil.rmtree(aside)


def test_every_setting_that_decides_it_makes_another_and_no_other_does(stage, found):
    changes = {
        "hook": "mlp_out", "layer": 1, "checkpoint": 40, "n_features": 32, "k": 3, "steps": 20,
        "batch_size": 2, "peak_lr": 1e-3, "warmup_steps": 3, "dead_tokens": 10, "aux_weight": 0,
        "held_out": 8, "seed": 1,
    }  # fmt: skip
    same = {"name": "other", "layer": 0, "checkpoint": 60}  # what null means here
    prints = {}
    for name, value in changes.items():
        context, _, base = stage(f"sae.{name}={value}", *(["sae.steps=5"] * (name != "steps")))
        prints[name] = make(SaeStage(base, context.config.sae), context.at).fingerprint
    context, _, base = stage("sae.steps=5")
    usual = make(SaeStage(base, context.config.sae), context.at).fingerprint
    assert len({usual, found.fingerprint, *prints.values()}) == len(changes) + 2
    for name, value in same.items():
        context, _, base = stage(f"sae.{name}={value}", "sae.steps=5")
        assert make(SaeStage(base, context.config.sae), context.at).fingerprint == usual, name


def test_it_is_trained_on_the_checkpoint_it_names_with_its_own_settings(stage):
    """Against `train_topk_sae` on activations that are read here, with every number written out."""
    settings = {
        "hook": "mlp_out", "layer": 1, "checkpoint": 40, "n_features": 32, "k": 3, "steps": 6,
        "batch_size": 2, "peak_lr": 1e-3, "warmup_steps": 3, "dead_tokens": 100, "aux_weight": 0.5,
        "seed": 1,
    }  # fmt: skip
    context, corpus, base = stage(*(f"sae.{name}={value}" for name, value in settings.items()))
    trained = make(SaeStage(base, context.config.sae), context.at)
    model, hook = base.model(40).eval(), Hookpoint("mlp_out", 1)
    rows = corpus.rows(stream_order(corpus, 1)[:12])[:, :-1]
    with torch.no_grad():
        read = [activations(model, part, hook, base.architecture) for part in rows.split(2)]
    again, history = train_topk_sae(
        read, hook=hook, n_features=32, k=3, steps=6, seed=1, lr=1e-3, warmup=3, dead_tokens=100,
        aux_weight=0.5,
    )  # fmt: skip
    assert history[-1].dead_share > 0
    for name in ("W_enc_FD", "b_enc_F", "W_dec_FD", "b_dec_D"):
        ours, expected = getattr(trained.sae, name), getattr(again, name)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_samples_are_of_the_stream_and_each_comes_once_in_a_round(stage):
    _, corpus, _ = stage()
    n = len(corpus.tokens) - len(corpus.held_out)
    ids = drawn(corpus, n + 10, seed=0)
    assert len(set(ids[:n].tolist())) == n
    assert not set(ids.tolist()) & set(np.asarray(corpus.held_out).tolist())
    assert ids[n:].tolist() != ids[:10].tolist()
    assert drawn(corpus, 10, seed=0).tolist() == ids[:10].tolist() != drawn(corpus, 10, 1).tolist()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("sae.layer=2",), "sae.layer=2 is invalid; expected layers 0 to 1, or null"),
        (("sae.k=65",), "sae.k=65 is invalid; expected at most sae.n_features=64"),
        (("sae.checkpoint=33",), "sae.checkpoint=33 is invalid; .* such as 32 or 40, or null"),
        (("sae.checkpoint=61",), "sae.checkpoint=61 is invalid; .* such as 60, or null"),
        (("sae.hook=resid_pre",), "sae.hook=resid_pre is invalid; expected one of resid_post"),
    ],
)
def test_impossible_settings_are_refused_before_any_work(overrides, says):
    with pytest.raises(ConfigError, match=says):
        compose(["experiment=smoke", *overrides])


def sae_of(context, base):
    config = context.config
    return Located(base, config.unit, config.sae, config.intervention, context.at).sae


def test_a_unit_gets_the_sae_it_asks_for(stage, found, tmp_path):
    context, _, base = stage()
    assert sae_of(context, base) is None
    feature = ("unit=sae_feature", "unit.label=prose")
    context, _, base = stage(*feature)
    assert sae_of(context, base).fingerprint() == found.sae.fingerprint()
    theirs = tmp_path / "layers.1"
    shutil.copytree(found.folder / "layers.0", theirs)
    context, _, base = stage(*feature, f"unit.source={theirs}")
    assert sae_of(context, base).hook == Hookpoint("resid_post", 1)
    shutil.copytree(theirs, tmp_path / "layers.2")
    context, _, base = stage(*feature, f"unit.source={tmp_path / 'layers.2'}")
    with pytest.raises(ConfigError, match=r"reads L2\.resid_post of width 16; expected width 16"):
        sae_of(context, base)


def unit_of(context, _, base):
    return pipeline.unit_of(context, base)


def kinds_used(locating):
    used = []
    with store.noting_uses(lambda kind, _: used.append(kind)):
        located = locating()
    return located, used


def test_a_feature_that_is_named_and_traced_alone_is_found_without_ranking_the_others(stage):
    given = stage("unit=sae_feature", "unit.label=generated_xml", "unit.locate=L0F5", "unit.k=1")
    alone, used = kinds_used(lambda: unit_of(*given))
    assert alone.name == "L0F5" and [unit.name for unit in alone.units] == ["L0F5"]
    assert "emergence" in used and "ranking" not in used
    given = stage("unit=sae_feature", "unit.label=generated_xml", "unit.locate=L0F5", "unit.k=2")
    two, used = kinds_used(lambda: unit_of(*given))
    assert two.name == "L0F5" and len(two.units) == 2 and "ranking" in used


@pytest.mark.parametrize(
    ("unit", "says"),
    [
        (("unit=sae_feature", "unit.locate=L0F64"), r"L0F64 does not exist; .* L0F0 to L0F63$"),
        (("unit=sae_feature", "unit.locate=L1F3"), r"L1F3 does not exist; .* L0F0 to L0F63$"),
        (("unit=mlp_neuron", "unit.layers=[1]", "unit.locate=L0N3"), "L1N0 and 31 others"),
    ],
)
def test_a_unit_that_does_not_exist_is_refused(stage, unit, says):
    with pytest.raises(ConfigError, match=says):
        unit_of(*stage(*unit, "unit.label=generated_xml"))


def test_the_folder_is_one_that_others_can_read(found):
    cfg = json.loads((found.folder / "layers.0" / "cfg.json").read_text())
    assert cfg["k"] == 4 and cfg["d_in"] == 16 and cfg["num_latents"] == 64
