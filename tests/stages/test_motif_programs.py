"""From a trace to motifs, to rows, to an arm that trains on them: the programs, at smoke size."""

import csv
import shutil
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from mda import pipeline, store
from mda.analysis.arms import read_run
from mda.config import prepared
from mda.data.errors import DataError
from mda.schema import ConfigError
from mda.schema.edit import Count, Edit, Rows
from mda.stages.context import Context
from mda.stages.corpus import tokenizer_of

SMOKE = ("experiment=smoke", "intervention.window=[20,60]", "estimator=repetition", "report.dpi=30")


@pytest.fixture(scope="module")
def program(outputs, tmp_path_factory):
    """Run a program in this process; returns its folder."""

    def run(name: str, *overrides: str):
        folder = tmp_path_factory.mktemp(name)
        module = import_module(f"mda.programs.{name}")
        words = [*SMOKE, f"output_dir={outputs}", *overrides]
        with prepared(name, words, folder, module.NEEDS, 1) as config:
            getattr(module, name)(config, folder)
        return folder

    return run


@pytest.fixture(scope="module")
def motif_file(program):
    return program("motifs", "motifs.samples=100", "motifs.least=0.02") / "motifs.json"


def test_motifs_depend_on_scores_and_tokens_alone(program, motif_file):
    again = program("motifs", "motifs.samples=100", "motifs.least=0.02", "report.samples=3")
    assert (again / "motifs.json").read_bytes() == motif_file.read_bytes()
    summary = store.read_json(motif_file.with_name("summary.json"))
    content = store.read_json(motif_file)
    assert content["made_from"] == summary["fingerprints"]
    assert list(summary["results"]["motifs"]) == [one["name"] for one in content["motifs"]]
    assert content["motifs"][0]["samples"] >= 2


def test_rows_are_the_same_for_the_same_seed_and_say_what_they_are_from(program, motif_file):
    folders = [program("synthesize", f"synthesis.motifs={motif_file}", "synthesis.rows=30",
                       f"synthesis.seed={seed}") for seed in (0, 0, 1)]  # fmt: skip
    names = ("motif.npy", "labels.npy", "rows.csv", "rows.json")
    a, b, c = ({name: (folder / name).read_bytes() for name in names} for folder in folders)
    assert a == b and a["motif.npy"] != c["motif.npy"]
    about = store.read_json(folders[0] / "rows.json")
    samples = {one["name"]: one["sample_ids"] for one in store.read_json(motif_file)["motifs"]}
    labels = store.read_npy(folders[0] / "labels.npy")
    with (folders[0] / "rows.csv").open() as file:
        for number, row in enumerate(csv.DictReader(file)):
            assert row["label"] == about["labels"][labels[number]] == row["source"]
            assert about[row["source"]] == samples[row["source"]]


def test_an_arm_trains_on_the_rows_bears_their_name_and_needs_no_scores(program, motif_file):
    made = program("synthesize", f"synthesis.motifs={motif_file}", "synthesis.rows=30")
    insert = ("intervention=augment", "intervention.mode=insert", "intervention.per_step=4")
    arm = program("run", *insert, f"intervention.rows={made / 'motif.npy'}")
    run = read_run(arm)
    meant = Edit("augment", "insert", by=Rows("motif"), amount=Count(30, "rows"))
    assert run.arm.edit == meant and run.arm.name == "augment insert motif 30 rows"
    assert "scores" not in run.summary["fingerprints"]
    control = program("run", "intervention=control")
    assert read_run(control).curve["val/loss"][-1] != run.curve["val/loss"][-1]
    shutil.copyfile(made / "motif.npy", made / "random.npy")
    named = read_run(program("run", *insert, f"intervention.rows={made / 'random.npy'}")).arm
    assert named.edit.by == Rows("random") and not named.edit.is_random, "a file has any name"


def test_motifs_of_random_samples_give_rows_of_another_name(program):
    drawn = program("motifs", "motifs.samples=100", "motifs.least=0.02", "motifs.select=random")
    made = program("synthesize", f"synthesis.motifs={drawn / 'motifs.json'}", "synthesis.rows=5")
    assert (made / "random_motif.npy").is_file()


def test_what_cannot_be_done_is_refused_before_any_work(program, context_of, tmp_path):
    with pytest.raises(ConfigError, match=r"synthesis\.motifs=null is invalid; expected a motif"):
        program("synthesize", "synthesis.kind=shuffled")
    with pytest.raises(DataError, match=r"synthesis\.motifs=.*no\.json is not a motif file"):
        program("synthesize", f"synthesis.motifs={tmp_path / 'no.json'}")
    with pytest.raises(ConfigError, match=r"synthesis\.arm=a/b is invalid"):
        context_of("synthesis.arm=a/b")
    nameless = replace(pipeline.corpus_of(context_of()), tokenizer=None)
    with pytest.raises(ConfigError, match=r"data\.tokenizer=null is invalid; expected a token"):
        tokenizer_of(nameless)


def test_a_pipeline_that_inserts_rows_scores_nothing(context_of, tmp_path):
    np.save(tmp_path / "mine.npy", np.full((8, 33), 7, dtype=np.uint16))
    insert = ("intervention=augment", "intervention.mode=insert", "intervention.per_step=4")
    context: Context = context_of(*insert, f"intervention.rows={tmp_path / 'mine.npy'}")
    assert pipeline.arm(context).traced is None


def test_a_trace_says_what_explains_its_scores(program):
    """Scores by repetition are explained by repetition, whole, and by nothing else."""
    folder = program("trace", "report.samples=2")
    found = store.read_json(folder / "catalysts.json")
    assert found == store.read_json(folder / "summary.json")["results"]["catalysts"]
    assert found["together"] == pytest.approx(1)
    causes = {one["name"]: one for one in found["causes"]}
    assert set(causes) == {"repetition", "label"}, "no model was asked, so no loss is known"
    assert causes["repetition"]["alone"] == pytest.approx(1)
    assert causes["label"]["partial"] is None
    assert [one["score"] for one in found["deciles"]] == [
        pytest.approx(one["repetition"], rel=1e-5) for one in found["deciles"]
    ]
