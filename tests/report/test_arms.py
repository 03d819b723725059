"""Run folders become arms: what is one arm, what is told apart, what is refused."""

import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import yaml
from made_up_runs import BANDS, STANDARD, Edit, seal, write_runs

from mda import store
from mda.analysis.arms import Arm, arm_as, by_arm, read_run
from mda.analysis.claims import judge
from mda.analysis.effects import compare_arms
from mda.analysis.folders import read_runs
from mda.analysis.headline import headline
from mda.analysis.metrics import measure, references_of
from mda.config import compose, conf_dir
from mda.schema import AugmentConfig, ClaimConfig, ControlConfig, RemoveConfig, StudyConfig
from mda.schema import edit as edits
from mda.schema.edit import Band, Count, Ids, Match, Random, Rows, Scorer, Share, Top
from mda.schema.old_words import read_summary, read_words

TENTH = edits.Edit("remove", "mask", by=Scorer("ekfac"), choose=Top(), amount=Share(0.1))


def change(folder, **parts):
    """Edit a run's summary in place; a mapping is merged into the part of that name."""
    summary = store.read_json(folder / "summary.json")
    for key, value in parts.items():
        summary[key] = summary[key] | value if isinstance(value, dict) else value
    store.write_json(folder / "summary.json", summary)


def test_a_run_is_read_as_it_was_written(tmp_path):
    folder = write_runs(tmp_path, [3], [Edit("remove", "ekfac")])[0]
    run = read_run(folder)
    assert (run.seed, run.unit, run.start, run.end) == (3, "L3H3", 1000, 3000)
    assert run.arm == Arm(TENTH)
    assert run.tokens_per_step == 8 * 128 and run.base == "base3"
    rows = store.read_csv(folder / "curve.csv")
    for column in rows[0]:
        assert np.array_equal(run.curve[column], [float(row[column]) for row in rows])
    assert run.at_end("emergence/icl_score") == float(rows[-1]["emergence/icl_score"])
    assert run.at_end("val/loss/poetry") is None


def name(edit) -> str:
    return Arm(edit).name


def test_names_say_what_an_arm_is():
    assert name(edits.Edit("control")) == "control"
    assert name(TENTH) == "remove mask ekfac top 10 %"
    free = replace(TENTH, by=None, choose=Random())
    assert name(free) == "remove mask random 10 %"
    assert name(replace(free, label="latex")) == "remove mask random latex 10 %"
    matched = name(replace(TENTH, match=Match("loss")))
    assert matched == "remove mask random, as ekfac top 10 % by loss, without its samples"
    band = replace(TENTH, choose=Band(0.00005, 0.1), amount=None)
    assert name(band) == "remove mask ekfac band 0.00005-0.1"
    assert name(replace(band, choose=Band(0.9, 1.0))).endswith("band 0.9-1")
    listed = replace(TENTH, by=None, choose=Ids((3, 5)), amount=None)
    assert name(listed) == "remove mask ids 3,5"
    longer = [replace(listed, choose=Ids((*range(90), last))) for last in (91, 92)]
    assert len({name(one) for one in longer}) == 2 and all(len(name(one)) < 60 for one in longer)


def test_an_edit_of_tokens_says_that_its_amount_is_of_tokens():
    one = RemoveConfig(mode="mask_tokens", fraction=0.01)
    assert name(one.edit("ekfac")) == "remove mask_tokens ekfac top 1 % of tokens"
    few = replace(one, within=0.1).edit("ekfac")
    assert name(few).endswith("top 1 % of tokens within 10 % of samples")
    assert replace(one, fraction=None, count=900).edit("ekfac").amount == Count(900, "tokens")
    same = replace(one, match="sample").edit("ekfac")
    assert name(same) == (
        "remove mask_tokens random, as ekfac top 1 % of tokens by sample, without its tokens"
    )
    spans = RemoveConfig(mode="spans", spans="renamed", fraction=0.01).edit("random")
    assert name(spans) == "remove spans renamed random 1 % of tokens"


SETTINGS = {
    "control": ControlConfig(),
    "top": RemoveConfig(),
    "bottom, a class": RemoveConfig(select="bottom", label="latex", mode="drop"),
    "a number": AugmentConfig(fraction=None, count=7),
    "a band": RemoveConfig(select="band", band=[0.1, 1 / 3]),
    "ids": RemoveConfig(select="ids", ids=[7, 3]),
    "random": AugmentConfig(select="random", mode="upweight"),
    "matched": RemoveConfig(match="label", match_targeted="allow"),
    "tokens": RemoveConfig(mode="mask_tokens", fraction=0.01, within=0.5, match="sample"),
    "spans": RemoveConfig(mode="spans", fraction=0.07, spans="renamed"),
    "rows": AugmentConfig(mode="insert", rows="some/folder/motif.npy", per_step=4),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_summary_gives_back_the_edit_that_the_settings_meant(case, tmp_path):
    meant = SETTINGS[case].edit("tracin")
    store.write_json(tmp_path / "edit.json", edits.as_data(meant))
    back = edits.edit_from(store.read_json(tmp_path / "edit.json"))
    assert back == meant and hash(back) == hash(meant)


@pytest.mark.parametrize("case", SETTINGS)
def test_summaries_of_before_edits_were_data_mean_what_their_settings_do(case):
    settings = asdict(SETTINGS[case]) | {"action": "mask", "n": 800, "tokens": 1}
    meant = SETTINGS[case].edit("tracin")
    if case == "rows":
        meant = replace(meant, amount=Count(800, "rows"))
    assert read_summary(settings, {"name": "tracin", "seed": 1}) == meant


def test_the_words_of_old_studies_mean_what_the_settings_of_their_sweeps_do():
    by = {"intervention": "remove", "mode": "mask", "estimator": "ekfac", "amount": "10 %"}
    tokens = {"mode": "mask_tokens", "amount": "0.3 % of tokens within 10 % of samples"}
    found = [
        (by | {"select": "top"}, RemoveConfig()),
        (by | {"select": "band 0.1-0.2"}, RemoveConfig(select="band", band=[0.1, 0.2])),
        (by | {"select": "bottom", "amount": "500 samples", "label": "latex"},
         RemoveConfig(select="bottom", fraction=None, count=500, label="latex")),
        (by | {"select": "top", "match": "loss", "match_targeted": "allow"},
         RemoveConfig(match="loss", match_targeted="allow")),
        (by | tokens | {"select": "top"},
         RemoveConfig(mode="mask_tokens", fraction=0.003, within=0.1)),
        (by | {"mode": "spans fresh", "select": "top", "amount": "900 tokens"},
         RemoveConfig(mode="spans", fraction=None, count=900)),
    ]  # fmt: skip
    for words, settings in found:
        assert read_words(words) == settings.edit("ekfac")
    free = by | {"estimator": "random", "select": "random"}
    assert read_words(free) == RemoveConfig().edit("random")
    with pytest.raises(KeyError):
        read_words(by | {"select": "topmost"})


def test_the_parameters_that_an_edit_reaches_are_part_of_what_it_is(tmp_path):
    everywhere, inside = RemoveConfig(), RemoveConfig(scope="unit")
    assert name(inside.edit("ekfac")) == "remove mask ekfac top 10 % in the unit alone"
    assert "scope" not in edits.as_data(everywhere.edit("ekfac")), "older hashes have none"
    store.write_json(tmp_path / "edit.json", edits.as_data(inside.edit("ekfac")))
    assert edits.edit_from(store.read_json(tmp_path / "edit.json")) == inside.edit("ekfac")
    folders = write_runs(tmp_path / "runs", [0, 1], (STANDARD[0], *map(Edit, ["remove"] * 2,
                         ["ekfac", "random"])))  # fmt: skip
    for folder in folders:
        what = store.read_json(folder / "summary.json")["edit"]
        if what["by"]:  # EK-FAC's samples are taken out of the unit's own parameters alone
            change(folder, edit=what | {"scope": "unit"})
    measured = measure(read_runs([tmp_path / "runs"]))
    (scoped,) = {run.arm.name for run in measured.runs if run.arm.edit.scope}
    assert scoped.endswith("in the unit alone")
    run = next(run for run in measured.runs if run.arm.edit.scope)
    assert not references_of(run, measured.runs, "random")
    assert references_of(run, measured.runs, "control")


def test_random_scores_choose_a_random_set_whatever_part_of_them_is_taken():
    free = RemoveConfig(select="random").edit("ekfac")
    band = RemoveConfig(select="band", band=[0.2, 0.3])
    assert free == RemoveConfig(select="bottom").edit("random") == band.edit("random")
    assert free.is_random and free.source == "random"


def test_arms_are_grouped_over_seeds_and_replicates(tmp_path):
    write_runs(tmp_path, range(4), STANDARD)
    groups = by_arm(read_runs([tmp_path]))
    names = [arm.name for arm in groups]
    assert names[0] == "control" and len(names) == len(STANDARD)
    assert names.index("remove mask ekfac top 10 %") < names.index("remove mask random 10 %")
    for arm, seeds in groups.items():
        expected = {"remove mask random 10 %": 3, "augment duplicate random 10 %": 2}
        assert {len(runs) for runs in seeds.values()} == {expected.get(arm.name, 1)}
        assert sorted(seeds) == [0, 1, 2, 3]


def test_score_bands_are_arms_of_their_own(tmp_path):
    write_runs(tmp_path, [0], (STANDARD[0], *BANDS))
    names = [arm.name for arm in by_arm(read_runs([tmp_path]))]
    assert len(names) == 11 and "remove mask ekfac band 0.9-1" in names


def test_one_training_is_counted_once_however_often_it_is_listed(tmp_path):
    folder = write_runs(tmp_path / "a", [0])[0]
    shutil.copytree(folder, tmp_path / "b" / "copy")
    runs = read_runs([tmp_path / "a", tmp_path / "b", tmp_path / "a"])
    assert len(runs) == sum(edit.replicates for edit in STANDARD)


def test_a_training_that_two_arms_mean_counts_for_both(tmp_path):
    folders = write_runs(tmp_path, [0], (STANDARD[0], STANDARD[1], BANDS[-1]))
    for folder in folders[1:]:
        change(folder, fingerprints={"arm": "the same"})
    names = [arm.name for arm in by_arm(read_runs([tmp_path]))]
    assert names[1:] == ["remove mask ekfac band 0.9-1", "remove mask ekfac top 10 %"]


def test_a_random_selection_is_a_random_arm_whatever_the_estimator(tmp_path):
    edits = (STANDARD[0], Edit("remove", "ekfac", "random"), Edit("remove", "tracin", "random"))
    write_runs(tmp_path, [0], edits)
    arms = by_arm(read_runs([tmp_path]))
    assert [arm.name for arm in arms] == ["control", "remove mask random 10 %"]


def test_settings_that_differ_become_part_of_the_name(tmp_path):
    folders = write_runs(tmp_path, [0, 1], (STANDARD[0], Edit("remove", "ekfac")))
    more = write_runs(tmp_path / "more", [0, 1], [Edit("remove", "ekfac")])
    for folder in [*folders, *more]:
        change(folder, estimator={"damping": 0.01 if folder in more else 0.1, "batch_size": 3})
    for folder in more:
        change(folder, fingerprints={"arm": "other" + str(folder)})
    names = {arm.name: len(seeds) for arm, seeds in by_arm(read_runs([tmp_path])).items()}
    assert names == {
        "control": 2,
        "remove mask ekfac top 10 % damping=0.01": 2,
        "remove mask ekfac top 10 % damping=0.1": 2,
    }


def test_each_seeds_own_head_and_window_do_not_split_an_arm(tmp_path):
    folders = write_runs(tmp_path, range(3), (STANDARD[0], Edit("remove", "ekfac")))
    for folder in folders:
        if "seed1" in str(folder):
            change(folder, window={"start": 900})
    assert len(by_arm(read_runs([tmp_path]))) == 2


def test_two_windows_of_one_seed_are_two_arms(tmp_path):
    edits = (STANDARD[0], Edit("remove", "ekfac"))
    write_runs(tmp_path / "a", [0, 1], edits)
    for folder in write_runs(tmp_path / "b", [0, 1], edits):
        summary = store.read_json(folder / "summary.json")
        prints = summary["fingerprints"]["arm"]
        change(folder, window={"end": 2500}, fingerprints={"arm": f"{prints}-2500"})
    names = [arm.name for arm in by_arm(read_runs([tmp_path]))]
    assert "control window=1000-2500" in names
    assert "remove mask ekfac top 10 % window=1000-3000" in names


def test_folders_that_are_no_arms_are_passed_over(tmp_path):
    write_runs(tmp_path, [0])
    store.write_json(tmp_path / "base" / "summary.json", {"program": "train", "seed": 0})
    assert len(read_runs([tmp_path])) == sum(edit.replicates for edit in STANDARD)


def break_control(folders):
    for folder in folders:
        if "control" in folder.name:
            shutil.rmtree(folder)


def break_curve(folders):
    (folders[0] / "curve.csv").write_text("step,tokens\n1000,5\n1000,5\n")


def break_end(folders):
    lines = (folders[0] / "curve.csv").read_text().splitlines()
    (folders[0] / "curve.csv").write_text("\n".join(lines[:-1]) + "\n")


def break_number(folders):
    path = folders[0] / "curve.csv"
    path.write_text(path.read_text().replace("0.012", "oops"))


BREAKS = {
    break_control: "no control arm",
    break_curve: "the steps of its curve do not rise",
    break_end: "its curve does not reach the window's end, step 3000",
    break_number: "is not the folder of a finished arm: could not convert",
    lambda folders: (folders[0] / "curve.csv").unlink(): "is not the folder of a finished arm",
    lambda folders: change(folders[0], window={"start": "soon"}): "is not the folder",
    lambda folders: change(folders[0], fingerprints={"base": "other"}): "different base runs",
}


@pytest.mark.parametrize("damage", BREAKS, ids=lambda f: f.__name__)
def test_damage_gives_one_clear_error(damage, tmp_path):
    folders = write_runs(tmp_path, [0])
    damage(folders)
    if (folders[0] / "curve.csv").exists():
        seal(folders[0])
    with pytest.raises(ValueError, match=BREAKS[damage]):
        read_runs([tmp_path])


def test_nothing_to_compare_is_said_plainly(tmp_path):
    with pytest.raises(ValueError, match="no finished arm"):
        read_runs([tmp_path])
    with pytest.raises(ValueError, match="does not exist"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="no 'fingerprints'"):
        folder = write_runs(tmp_path, [0])[0]
        summary = store.read_json(folder / "summary.json")
        store.write_json(
            folder / "summary.json", {k: v for k, v in summary.items() if k != "fingerprints"}
        )
        read_run(folder)


def inserting(rows: str, n: int = 800) -> Arm:
    edit = AugmentConfig(mode="insert", rows=rows).edit("ekfac")
    return Arm(replace(edit, amount=Count(n, "rows")))


def test_arms_that_insert_rows_bear_the_name_of_their_file():
    assert inserting("a/motif.npy").name == "augment insert motif 800 rows"


@pytest.mark.parametrize("file", ["random", "repetition"])
def test_an_inserted_file_is_no_reference_whatever_its_name(file, tmp_path):
    """Rows are a random edit, or the trivial baseline, in runs of before edits were data alone."""
    control, other = read_runs(
        write_runs(tmp_path, range(1), (Edit("control"), Edit("augment", "ekfac")))
    )
    mine, rows = (replace(other, arm=inserting(f"{one}.npy")) for one in ("motif", file))
    runs = [control, mine, rows]
    assert not rows.arm.edit.is_random and rows.arm.edit.source == ""
    assert references_of(mine, runs, file) == []
    assert file not in {row.reference for row in compare_arms(measure(runs), StudyConfig())}
    before = read_summary(asdict(AugmentConfig(mode="insert", rows=f"{file}.npy")) | {"n": 800}, {})
    old = replace(rows, arm=Arm(before))
    assert old.arm == rows.arm and references_of(mine, [control, mine, old], file) == [old]


def test_two_files_of_one_name_are_two_arms_where_a_seed_has_both(tmp_path):
    folders = write_runs(tmp_path, [0, 1], (STANDARD[0], Edit("augment", "ekfac")))
    folders += write_runs(tmp_path / "b", [0], [Edit("augment", "ekfac")])
    for folder in folders[1::2] + folders[-1:]:
        rows = str(folder.parents[1] / "motif.npy")
        settings = AugmentConfig(mode="insert", rows=rows)
        change(folder, edit=edits.as_data(settings.edit("ekfac")), intervention=asdict(settings))
        change(folder, fingerprints={"arm": str(folder)})
    _, *arms = by_arm(read_runs([tmp_path]))
    assert len(arms) == 2 and {arm.edit.by for arm in arms} == {Rows("motif")}
    assert all("motif rows=" in arm.name for arm in arms)
    shutil.rmtree(tmp_path / "b")
    assert [arm.name for arm in by_arm(read_runs([tmp_path]))] == [
        "control",
        "augment insert motif",
    ]


def test_the_arms_of_the_study_of_scales_are_those_of_its_sweeps():
    study = compose(["study=scales"]).study
    sweeps = [
        conf_dir().parent / "sweeps" / f"{name}.yaml" for name in ("scales", "scales_control")
    ]
    params = [yaml.safe_load(path.read_text())["hydra"]["sweeper"]["params"] for path in sweeps]
    ran = {inserting(rows.strip()) for rows in params[0]["intervention.rows"].split(",")}
    control = Arm(edits.Edit("control"))
    assert {arm_as(study.arm(name)) for name in study.arms} == {*ran, control}
    assert {one["seed"] for one in params} == {f"range({study.seeds[0]},{study.seeds[-1] + 1})"}


def test_the_sentence_says_that_rows_were_inserted(tmp_path):
    runs = read_runs(write_runs(tmp_path, range(1), (Edit("control"), Edit("augment", "ekfac"))))
    made = [replace(runs[1], arm=inserting(f"{kind}.npy")) for kind in ("motif", "random")]
    said = headline(measure([runs[0], *made]), compose(["study=scales"]).study)
    assert said.startswith("With 800 rows of motif inserted, L2H0 crosses .060 at step")
    assert ";" not in said, "rows have no random choice of samples beside them"


def test_the_study_of_scales_judges_rows_of_today_by_its_own_arms(tmp_path):
    """Its claims call rows `random` and `repetition`: arms of the study, as `shuffled` is."""
    edits_made = (Edit("control"), Edit("augment", "ekfac"))
    runs = read_runs(write_runs(tmp_path, range(16, 18), edits_made))
    study = compose(["study=scales"]).study
    kinds = ("motif", "own_motif", "shuffled", "random", "random_motif", "repetition")
    controls = [run for run in runs if run.arm.edit.is_control]
    made = [
        replace(run, arm=inserting(f"{kind}.npy"), folder=run.folder / kind)
        for run in runs if not run.arm.edit.is_control for kind in kinds
    ]  # fmt: skip
    for verdict in judge(study, measure([*controls, *made])):
        assert verdict.arm == inserting(f"{verdict.claim.arm}.npy").name
        assert verdict.seeds == (16, 17), verdict.claim.reference
    few = [replace(run, arm=inserting("motif.npy", 400)) for run in made[:1]]
    wrong = judge(study, measure([*controls, *few]))
    assert {verdict.arm for verdict in wrong} == {""}, "another number of rows"


def test_an_arm_of_a_study_means_the_runs_that_have_the_settings_it_names(tmp_path):
    folders = write_runs(tmp_path, [0, 1], (STANDARD[0], Edit("remove", "ekfac")))
    folders += (more := write_runs(tmp_path / "more", [0, 1], [Edit("remove", "ekfac")]))
    for folder in folders:
        change(folder, estimator={"damping": 0.01 if folder in more else 0.1})
        change(folder, fingerprints={"arm": str(folder)})
    words = {"intervention": "remove", "estimator": "ekfac"}
    one = {"text": "t", "reference": "control", "direction": "less"}
    study = StudyConfig(
        arms={"any": words, "low": words | {"estimator.damping": 0.01},
              "rows": {"intervention": "augment", "intervention.mode": "insert",
                       "intervention.rows": "here/motif.npy", "intervention.per_step": 4}},
        claims={arm: ClaimConfig(arm=arm, **one) for arm in ("any", "low")},
    )  # fmt: skip
    rows = study.arm("rows")
    assert rows.edit.by == Rows("motif") and rows.settings == {"intervention.per_step": 4}
    both, low = judge(study, measure(read_runs([tmp_path])))
    assert both.arm == "" and both.reason.startswith("2 arms are what the claim speaks of")
    assert low.arm == "remove mask ekfac top 10 % damping=0.01" and low.seeds == (0, 1)
    matching = replace(inserting("motif.npy"), settings={"intervention.per_step": 4})
    assert matching.fits(arm_as(rows)), "however many rows"
    assert not inserting("motif.npy").fits(arm_as(rows)), "per_step is not known"


def test_a_study_is_sealed_by_what_its_arms_mean():
    words = {"intervention": "remove", "estimator": "ekfac"}
    spelled = words | {"intervention.fraction": 0.1, "intervention.mode": "mask"}
    one, other = (StudyConfig(arms={"a": arm}).content_hash() for arm in (words, spelled))
    assert one == other
    assert StudyConfig(arms={"a": words | {"estimator.damping": 0.2}}).content_hash() != one
    assert StudyConfig(arms={"a": words | {"intervention.fraction": 0.2}}).content_hash() != one
