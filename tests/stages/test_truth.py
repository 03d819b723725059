"""Wires of the benchmark: which samples, which start, which unit, which other run."""

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from mda import pipeline, store
from mda.config import compose
from mda.intervention.subsets import AT_RANDOM
from mda.programs.truth import builds, preview, refuse_transfer, retrainings
from mda.schema import ConfigError, TruthConfig
from mda.stages import truth_tables as make
from mda.stages.context import Runtime
from mda.stages.found import FindOnly, NotBuilt
from mda.stages.truth import (
    Asked,
    Bench,
    curvature_of,
    other_initialisation,
    scoring_seconds,
    seconds,
)

HEAD, NEURON = "induction_head", "mlp_neuron"
SETTINGS = TruthConfig(
    units=[HEAD, NEURON], estimators=["repetition", "random"], subsets=2, fractions=[0.1],
    strata_of=["repetition"], strata=2, reruns=1, perturbation=0.02, edits=[0.1], transfer=[1],
    planted=["generated_repeat"],
)  # fmt: skip


@pytest.fixture(scope="module")
def contexts(context_of):
    window = "intervention.window=[20,40]"
    neuron = ("unit=mlp_neuron", "unit.label=generated_xml")
    return {HEAD: context_of(window), NEURON: context_of(window, *neuron)}


@pytest.fixture(scope="module")
def bench(contexts):
    _, base = pipeline.train(contexts[HEAD])
    return Bench.of(
        {n: asked(c.config) for n, c in contexts.items()}, base, None, contexts[HEAD].at
    )


def asked(config):
    return Asked(config.unit, config.sae, config.intervention)


@pytest.fixture(scope="module")
def traces(bench, context_of):
    estimators = {name: context_of(f"estimator={name}").config for name in SETTINGS.estimators}
    return {
        unit: {name: bench.traced(unit, config.estimator) for name, config in estimators.items()}
        for unit in SETTINGS.units
    }


@pytest.fixture(scope="module")
def subset_rows(bench, traces):
    return list(make.subset_rows(bench, SETTINGS, traces))


def test_an_arm_is_the_one_that_a_run_of_the_same_edit_makes(bench, traces, context_of):
    edit = ("intervention=remove", "estimator=repetition", "intervention.window=[20,40]")
    arm = pipeline.arm(context_of(*edit))
    assert arm.unit.name == bench.located[HEAD].name
    again = bench.arm(bench.removal(arm.edited.changes.sample_ids))
    assert not again.built and again.fingerprint == arm.run.fingerprint
    doubled = pipeline.arm(context_of("intervention=augment", *edit[1:]))
    changes = bench.doubling(doubled.edited.changes.sample_ids)
    assert bench.arm(changes).fingerprint == doubled.run.fingerprint
    control = pipeline.arm(context_of("intervention=control", "intervention.window=[20,40]"))
    assert bench.arm(None).fingerprint == control.run.fingerprint


def test_units_are_measured_at_the_end_of_the_arm(bench):
    run = bench.arm(None)
    found, located = bench.outcomes(run), bench.located
    metric = f"emergence/prefix_matching/{located[HEAD].name}"
    assert found[HEAD].metric == run.curve[-1][metric]
    model, neuron = run.model(40), located[NEURON]
    assert found[NEURON].metric == neuron.kind.metrics(model, [neuron.name])[neuron.name]
    values = neuron.kind.measurements(model, neuron.units)
    at = [unit.name for unit in neuron.units].index(neuron.name)
    assert found[NEURON].measurement == values[at]


def test_a_set_s_row_has_what_its_removal_measured_and_the_sum_of_its_scores(
    bench, traces, subset_rows
):
    subsets = make.subsets_of(bench, SETTINGS, traces)
    assert [one.draw for one in subsets] == [AT_RANDOM, "repetition 2/2"]
    assert len(subset_rows) == len(subsets) * len(SETTINGS.units)
    for row in subset_rows:
        ids = subsets[row["subset"]].sample_ids
        scores = traces[row["unit"]]["repetition"].scores
        values = scores.of(bench.located[row["unit"]].name)
        wanted = sum(v for i, v in zip(scores.sample_ids, values, strict=True) if i in set(ids))
        assert row["removed/repetition"] == pytest.approx(wanted)
        measured = bench.outcomes(bench.arm(bench.removal(ids)))[row["unit"]]
        assert (row["metric"], row["measurement"]) == measured
        start = bench.perturbed_start(SETTINGS.perturbation, SETTINGS.seed, 1)
        again = bench.outcomes(bench.arm(bench.removal(ids), start))[row["unit"]]
        assert (row["rerun_metric"], row["rerun_measurement"]) == again != measured
        control = bench.outcomes(bench.arm(None))[row["unit"]]
        assert (row["control_metric"], row["control_measurement"]) == control != measured


def test_the_rows_of_an_edit_have_each_unit_s_own_outcome_and_control(bench, traces):
    control = bench.outcomes(bench.arm(None))
    rows = list(make.edit_rows(bench, SETTINGS, traces))
    assert {row["unit"] for row in rows} == {HEAD, NEURON}
    for row in rows:
        scores = traces[row["unit"]][row["estimator"]].scores
        values = scores.of(bench.located[row["unit"]].name)
        best = np.sort(np.argsort(-values, kind="stable")[: row["n"]])
        edited = bench.removal if row["edit"] == "remove" else bench.doubling
        after = bench.outcomes(bench.arm(edited(scores.sample_ids[best])))[row["unit"]]
        assert (row["metric"], row["measurement"]) == after
        before = control[row["unit"]]
        assert (row["control_metric"], row["control_measurement"]) == before


def test_a_mechanism_is_as_far_as_its_heads_are_on_average(bench, context_of):
    words = ("intervention.window=[20,40]", "unit.locate=mechanism", "unit.k=3")
    own = Bench.of({HEAD: asked(context_of(*words).config)}, bench.base, None, bench.at)
    run = own.arm(None)
    heads = [run.curve[-1][f"emergence/prefix_matching/{h}"] for h in own.located[HEAD].members]
    assert len(set(heads)) == 3
    assert own.outcomes(run)[HEAD].metric == pytest.approx(sum(heads) / 3, rel=1e-12)


def test_a_perturbed_start_has_noise_of_the_size_asked_for_and_the_run_s_moments(bench):
    start, other = (bench.perturbed_start(0.02, 0, number) for number in (1, 2))
    plain = bench.base.checkpoint(20)
    weights, moved, otherwise = (
        store.read_safetensors(folder / "model.safetensors")
        for folder in (plain, start.folder, other.folder)
    )
    noise = torch.cat([(moved[k] - weights[k]).flatten() / weights[k].std(correction=0)
                       for k in weights if weights[k].std(correction=0) > 0.001])  # fmt: skip
    assert noise.std() == pytest.approx(0.02, rel=0.05)
    assert any(not torch.equal(moved[k], otherwise[k]) for k in moved)
    names = [folder / "optimizer.safetensors" for folder in (plain, start.folder)]
    assert names[0].read_bytes() == names[1].read_bytes()
    run, control = bench.arm(None, start), bench.arm(None)
    assert run.fingerprint != control.fingerprint != bench.arm(None, other).fingerprint
    first, plain_first = (one.curve[0]["val/loss"] for one in (run, control))
    assert first != plain_first and first == pytest.approx(plain_first, abs=0.05)


def test_sets_of_one_run_are_edited_in_another_with_the_same_order(bench, traces, contexts):
    others = {n: other_initialisation(c.config, bench.corpus, 1) for n, c in contexts.items()}
    there = {name: asked(one) for name, one in others.items()}
    _, base = pipeline.train(replace(contexts[HEAD], config=others[HEAD]))
    to = Bench.of(there, base, bench.window, bench.at)
    assert to.seed == 1 and base.fingerprint != bench.base.fingerprint
    assert np.array_equal(to.stream.sample_ids, bench.stream.sample_ids)
    own, theirs = (one.base.model(0).state_dict() for one in (bench, to))
    assert any(not torch.equal(own[k], theirs[k]) for k in own)
    few = TruthConfig(**{**vars(SETTINGS), "edits_of": [HEAD], "estimators": ["repetition"]})
    traced = {unit: {"repetition": traces[unit]["repetition"]} for unit in SETTINGS.units}
    (row,) = make.edit_rows(bench, few, traced, ("remove",), to)
    scores = traces[HEAD]["repetition"].scores
    order = np.argsort(-scores.of(bench.located[HEAD].name), kind="stable")[: row["n"]]
    chosen = scores.sample_ids[np.sort(order)]
    assert row["metric"] == to.outcomes(to.arm(to.removal(chosen)))[HEAD].metric
    ours, controls = (one.outcomes(one.arm(None))[HEAD] for one in (bench, to))
    assert (row["control_metric"], row["control_measurement"]) == controls != ours
    assert (row["seed"], row["to_seed"], row["located"]) == (0, 1, to.located[HEAD].name)


def test_planted_causes_are_the_labels_of_the_heads_and_the_neuron_s_own(bench, traces):
    rows = {(r["unit"], r["estimator"]): r for r in make.planted_rows(bench, SETTINGS, traces)}
    labels = np.array(bench.corpus.labels_of(bench.stream.sample_ids))
    for unit, label in ((HEAD, "generated_repeat"), (NEURON, "generated_xml")):
        row, cause = rows[unit, "repetition"], labels == label
        assert row["causes"] == cause.sum() > 0
        values = traces[unit]["repetition"].scores.of(bench.located[unit].name)
        pairs = np.sign(values[cause][:, None] - values[~cause])
        assert row["roc_auc"] == pytest.approx((1 + pairs.mean()) / 2)
        place = np.argsort(np.argsort(-values, kind="stable"))  # 0 is the highest of the 80
        for name, k in (("k", cause.sum()), ("1_percent", 1), ("10_percent", 8)):
            assert row[f"recall_at_{name}"] == (place[cause] < k).sum() / cause.sum()


def test_the_samples_and_labels_that_are_shown_are_those_of_the_highest_scores(
    bench, traces, context_of
):
    """80 samples: ten of them are listed, and eight are the highest tenth."""
    ekfac = bench.traced(
        HEAD, context_of("estimator=ekfac", "estimator.damping=0.1").config.estimator
    )
    shown = {HEAD: {**traces[HEAD], "ekfac": ekfac}, NEURON: traces[NEURON]}
    values = ekfac.scores.of(bench.located[HEAD].name).tolist()
    best = sorted(range(80), key=lambda i: -values[i])
    ids = bench.stream.sample_ids
    labels = np.array(bench.corpus.labels_of(ids))
    rows = list(make.top_rows(bench, SETTINGS, shown))
    assert {(row["unit"], row["estimator"]) for row in rows} == {(HEAD, "ekfac")}
    assert [
        (row["rank"], row["sample"], row["step"], row["label"], row["score"]) for row in rows
    ] == [(n, ids[i], 20 + i // 4, labels[i], values[i]) for n, i in enumerate(best[:10], 1)]
    for row, i in zip(rows, best, strict=False):
        words = "".join(bench.corpus.decode(bench.corpus.rows(ids[[i]])[0].tolist())).split()
        assert row["text"] and " ".join(words).startswith(row["text"])
    shares = {row["label"]: row for row in make.label_rows(bench, SETTINGS, shown)}
    assert set(shares) == set(labels)
    for label, row in shares.items():
        assert row["share_of_top"] == (labels[best[:8]] == label).sum() / 8
        assert row["share_of_window"] == (labels == label).sum() / 80
        assert (row["unit"], row["estimator"]) == (HEAD, "ekfac")


def test_a_curvature_that_others_fitted_counts_for_all_that_use_it(bench, context_of):
    """Damping is no part of it: the second estimator finds what the first one fitted."""
    wide, narrow = (
        bench.traced(HEAD, context_of("estimator=ekfac", f"estimator.damping={c}").config.estimator)
        for c in (0.1, 0.2)
    )
    both = (store.read_json(one.folder / "manifest.json")["inputs"] for one in (wide, narrow))
    (folder,) = {curvature_of(bench, inputs) for inputs in both}
    assert folder is not None
    path = folder / "manifest.json"
    text, fit = path.read_text("utf-8"), seconds(path.parent)
    try:
        for year, extra in (("2000", fit), ("2999", 0.0)):  # before the scores, or not
            created = f"{year}-01-01T00:00:00+00:00"
            store.write_json(path, {**store.read_json(path), "created": created})
            for traced in (wide, narrow):
                wanted = seconds(traced.folder) + extra
                assert scoring_seconds(bench, traced) == pytest.approx(wanted)
    finally:
        path.write_text(text, "utf-8")
    assert fit


def test_the_curvature_is_a_finished_one_and_the_newest(bench, context_of):
    traced = bench.traced(HEAD, context_of("estimator=ekfac").config.estimator)
    inputs = store.read_json(traced.folder / "manifest.json")["inputs"]
    folder = curvature_of(bench, inputs)
    assert folder is not None
    manifest = store.read_json(folder / "manifest.json")
    unfinished = {key: manifest[key] for key in ("kind", "fingerprint", "inputs", "computed")}
    beside = {  # names that come first in any order
        "0000000000000000.part": unfinished,
        "0000000000000000.broken-1": manifest | {"created": "2999-01-01T00:00:00+00:00"},
        "0000000000000000": manifest | {"created": "2000-01-01T00:00:00+00:00"},
        "f" * 16: manifest | {"created": "2000-01-01T00:00:00+00:00"},
    }
    try:
        for name, content in beside.items():
            store.write_json(folder.with_name(name) / "manifest.json", content)
        assert curvature_of(bench, inputs) == folder
        assert scoring_seconds(bench, traced) is not None
    finally:
        for name in beside:
            shutil.rmtree(folder.with_name(name))


def test_the_cost_is_in_trainings_of_the_window_and_unknown_for_what_was_resumed(
    bench, traces, subset_rows, tmp_path
):
    rows = list(make.estimator_rows(bench, SETTINGS, traces))
    window_s = store.read_json(bench.arm(None).folder / "manifest.json")["cpu_s"]
    assert window_s > 0 and {row["window_seconds"] for row in rows} == {window_s}
    for row in rows:
        folder = traces[row["unit"]][row["estimator"]].folder
        spent = store.read_json(folder / "manifest.json")["cpu_s"]
        assert row["cost"] == pytest.approx(spent / window_s)
        assert row[f"spearman/{row['estimator']}"] == pytest.approx(1)
    store.write_json(tmp_path / "manifest.json", {"resumed": True, "wall_s": 1.0, "cpu_s": 1.0})
    assert seconds(tmp_path) is None


def test_the_cost_of_scores_that_another_tool_has_made_is_not_known(bench, context_of, tmp_path):
    np.save(tmp_path / "scores.npy", np.arange(len(bench.stream.sample_ids)))
    words = ("estimator=file", f"estimator.path={tmp_path / 'scores.npy'}")
    traced = bench.traced(HEAD, context_of(*words).config.estimator)
    assert seconds(traced.folder) is not None  # of reading the file
    assert scoring_seconds(bench, traced) is None


def test_scores_that_are_all_the_same_choose_nothing_and_go_with_none(bench, traces):
    one = traces[HEAD]["repetition"]
    flat = replace(one)
    vars(flat)["scores"] = replace(one.scores, values=np.ones_like(one.scores.values))
    given = {unit: {**own, "repetition": flat} if unit == HEAD else own
             for unit, own in traces.items()}  # fmt: skip
    told = [(row["unit"], row["estimator"]) for row in make.edit_rows(bench, SETTINGS, given)]
    assert (HEAD, "random") in told and (HEAD, "repetition") not in told
    rows = {(row["unit"], row["estimator"]): row
            for row in make.estimator_rows(bench, SETTINGS, given)}  # fmt: skip
    assert rows[HEAD, "repetition"]["spearman/random"] is None
    assert rows[HEAD, "random"]["spearman/random"] == pytest.approx(1)


def test_a_perturbed_start_does_not_depend_on_the_arithmetic_of_updates(bench):
    recipe = bench.base.recipe
    half = replace(recipe, training=replace(recipe.training, precision="bf16-mixed"))
    mixed = replace(bench, base=replace(bench.base, recipe=half))
    start = mixed.perturbed_start(0.02, 0, 99)
    assert (start.folder / "model.safetensors").is_file()


def test_another_seed_of_the_same_weights_is_no_other_initialisation():
    with pytest.raises(ConfigError, match=r"truth\.transfer=\[100\] .* the same weights"):
        refuse_transfer(compose(["experiment=paper/160m"], ("truth",)))
    for words in (["experiment=paper/160m", "truth.transfer=[]"], []):
        refuse_transfer(compose(words, ("truth",)))


@pytest.mark.parametrize("given", [{"edits": []}, {"edits": [0.1], "edits_of": []}])
def test_without_retraining_no_control_is_trained_and_the_base_run_is_the_measure(
    bench, traces, given
):
    settings = TruthConfig(**{**vars(SETTINGS), "subsets": 0, "transfer": [], **given})
    assert not settings.retrains and retrainings(settings) == 0
    base_s = store.read_json(bench.base.folder / "manifest.json")["cpu_s"]
    for row in make.estimator_rows(bench, settings, traces):
        assert row["window_seconds"] == pytest.approx(base_s * 20 / 60)  # of its 60 steps


def test_a_preview_has_every_build_and_scores_each_unit_by_each_estimator(context_of, capsys):
    config = context_of(f"unit={NEURON}", "unit.label=prose", "plan.hardware=h100").config
    asked = {"units": [HEAD, "mlp_neuron label=generated_xml"], "edits_of": [HEAD],
             "estimators": ["repetition", "tracin n_checkpoints=2"]}  # fmt: skip
    config = replace(config, truth=TruthConfig(**{**vars(SETTINGS), **asked}))
    found = builds(config)
    stages = Counter(stage for _, stage in found)
    assert stages == {"base": 2, "scores": 4, "arm": retrainings(config.truth)}
    scored = {
        (one.unit.name, getattr(one.unit, "label", None), one.estimator.name,
         getattr(one.estimator, "n_checkpoints", None))
        for one, stage in found if stage == "scores"
    }  # fmt: skip
    assert scored == {
        (unit, label, name, n)
        for unit, label in ((HEAD, None), (NEURON, "generated_xml"))
        for name, n in (("repetition", None), ("tracin", 2))
    }
    preview([config, replace(config, seed=1)], 1)
    said = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()[2:]}
    times = {"corpus": 1, "base": 4, "arm": 2 * retrainings(config.truth)}
    assert {stage: int(said[stage]) for stage in times} == times


def test_a_store_that_only_finds_gives_the_rows_that_are_there(
    contexts, bench, traces, subset_rows
):
    def finding(settings):
        at = Runtime(FindOnly(bench.at.store.root), progress=False)
        return list(make.subset_rows(replace(bench, at=at), settings, traces))

    assert finding(SETTINGS) == subset_rows
    more = TruthConfig(**{**vars(SETTINGS), "subsets": 6})
    assert finding(more) == subset_rows
    with pytest.raises(NotBuilt):
        nothing = FindOnly(bench.at.store.root / "nowhere")
        pipeline.train(replace(contexts[HEAD], store=nothing))
    unknown = TruthConfig(**{**vars(SETTINGS), "strata_of": ["random"]})
    lacking = {unit: {"repetition": own["repetition"]} for unit, own in traces.items()}
    with pytest.raises(ConfigError, match=r"truth\.strata_of: scores of random for induction_head"):
        make.subsets_of(bench, unknown, lacking)
