"""`mda truth`: a whole benchmark at smoke size, and mistakes that are refused before any work."""

import pytest
from programs import run, summary

from mda import store
from mda.analysis.leaderboard import ABOUT, read_tables
from mda.programs.truth import chosen, fixed_words, retrainings
from mda.schema import ConfigError, TruthConfig

SMALL = (
    "truth.units=[induction_head]",
    'truth.estimators=[repetition,"tracin adam_preconditioning=true n_checkpoints=1"]',
    "truth.strata_of=[repetition]",
    "truth.subsets=2",
    "truth.fractions=[0.2]",
    "truth.edits=[0.1]",
    "truth.transfer=[]",
    "truth.planted=[generated_repeat]",
    "report.resamples=99",
    "report.dpi=30",
)


def test_a_benchmark_leaves_its_tables_a_page_and_what_is_kept(tmp_path):
    pack = tmp_path / "kept"
    folder = run("truth", tmp_path, *SMALL, f"report.pack={pack}")
    found = summary(folder)
    assert found["results"]["complete"] and set(found["files"]) <= {
        p.name for p in folder.iterdir()
    }
    names = [row["estimator"] for row in found["results"]["leaderboard"]]
    adam = "tracin adam_preconditioning=true n_checkpoints=1"
    assert names == ["rerun", "repetition", adam]
    page = (folder / "leaderboard.md").read_text("utf-8")
    assert "2 of 2 sets, 2 of 2 reruns of sets, 4 of 4 edits" in page and f"| {adam} |" in page
    kept, about = read_tables([pack]), store.read_json(pack / ABOUT)
    assert about["settings"]["subsets"] == len(kept.rows["subsets"]) == 2
    assert len(kept.rows["edits"]) == 4 and len(kept.rows["planted"]) == 2
    settings = TruthConfig(**about["settings"])
    assert retrainings(settings) == 1 + 2 + 2 + 4
    arms = list((tmp_path / "store" / "arm").glob("*/manifest.json"))
    assert len(arms) == 1 + 2 + 2 + 4, "control, sets, reruns, edits, each once"

    more = ("truth.units=[induction_head,mlp_neuron]", "truth.finished_only=true")
    words = [word for word in SMALL if not word.startswith("truth.units")]
    part = summary(run("truth", tmp_path, *words, *more))["results"]
    assert part["leaderboard"] == found["results"]["leaderboard"] and not part["complete"]


def test_the_run_s_own_weights_are_no_other_ones_and_that_is_said_before_any_work(tmp_path):
    from mda.config import compose
    from mda.programs.truth import truth

    with pytest.raises(ConfigError, match=r"truth\.transfer=3 is the seed itself"):
        truth(compose(["seed=3", "truth.transfer=[2,3]"]), tmp_path)


def test_units_and_estimators_are_named_in_the_benchmark_s_own_lists():
    assert fixed_words(["seed=1", "name=x"]) == ["seed=1"]
    for word in ("unit=mlp_neuron", "estimator.damping=1"):
        group = word.partition("=")[0].partition(".")[0]
        with pytest.raises(ConfigError, match=rf"{word} is invalid; expected truth\.{group}s="):
            fixed_words(["seed=1", word])


def test_a_mistake_inside_a_list_is_told_with_its_place():
    config = chosen(["experiment=smoke"], "estimator", "ekfac damping=0.5")
    assert config.estimator.damping == 0.5
    with pytest.raises(ConfigError, match=r"truth\.units=sae: unit=sae does not exist"):
        chosen(["experiment=smoke"], "unit", "sae")
    with pytest.raises(ConfigError, match=r"truth\.estimators=loss dampin=1: unknown setting"):
        chosen(["experiment=smoke"], "estimator", "loss dampin=1")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("truth.units=[]", r"truth\.units=\[\] is invalid; expected one or more, each once"),
        ("truth.estimators=[loss,loss] truth.strata_of=[]", r"truth\.estimators=\[loss,loss\] is"),
        ("truth.fractions=[]", r"truth\.fractions=\[\] is invalid"),
        ("truth.fractions=[0.05,0.4]", r"truth\.fractions=.*at most a band of 1 / truth\.strata=3"),
        ("truth.strata_of=[loss,fisher]", r"truth\.strata_of=.*those of truth\.estimators"),
        ("truth.edits_of=[mlp_neuron,head]", r"truth\.edits_of=.*those of truth\.units, not head"),
        ("truth.edits_of=[]", r"truth\.transfer=\[100\] is invalid.*or truth\.edits_of=\[\]"),
        ("truth.transfer=[9,9]", r"truth\.transfer=\[9,9\] is invalid; expected each once"),
        ("truth.edits=[]", r"truth\.transfer=\[100\] is invalid; expected \[\] with truth\.edits"),
        ("truth.subset=3", r"unknown setting truth\.subset \(did you mean truth\.subsets\?\)"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides, said):
    from mda.config import compose

    with pytest.raises(ConfigError, match=said):
        compose(overrides.split())
