"""Run folders become arms: what is one arm, what is told apart, what is refused."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from made_up_runs import BANDS, STANDARD, Edit, seal, write_runs

from mda import store
from mda.analysis.arms import Arm, arm_as, arm_of, band_edges, by_arm, read_run
from mda.analysis.folders import read_runs
from mda.analysis.headline import headline
from mda.analysis.metrics import measure, references_of
from mda.config import compose, conf_dir


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
    assert run.arm == Arm("remove", "mask", "ekfac", "top", "10 %")
    assert run.tokens_per_step == 8 * 128 and run.base == "base3"
    rows = store.read_csv(folder / "curve.csv")
    for column in rows[0]:
        assert np.array_equal(run.curve[column], [float(row[column]) for row in rows])
    assert run.at_end("emergence/icl_score") == float(rows[-1]["emergence/icl_score"])
    assert run.at_end("val/loss/poetry") is None


def test_names_say_what_an_arm_is():
    assert Arm("control").name == "control"
    assert Arm("remove", "mask", "ekfac", "top", "10 %").name == "remove mask ekfac top 10 %"
    assert Arm("remove", "mask", "random", "random", "10 %").name == "remove mask random 10 %"
    matched = Arm("remove", "mask", "ekfac", "top", "10 %", match="loss")
    assert matched.name == "remove mask random, as ekfac top 10 % by loss, without its samples"
    assert Arm("remove", "mask", "ekfac", "band 0.1-0.2", "10 %").name.endswith("band 0.1-0.2")
    within = Arm("remove", "mask", "random", "random", "10 %", "latex")
    assert within.name == "remove mask random latex 10 %"


def test_an_edit_of_tokens_says_that_its_amount_is_of_tokens():
    edit = {"name": "remove", "mode": "mask_tokens", "select": "top", "fraction": 0.01, "n": 7}
    ekfac = {"name": "ekfac"}
    assert arm_of(edit, ekfac).name == "remove mask_tokens ekfac top 1 % of tokens"
    few = edit | {"within": 0.1}
    assert arm_of(few, ekfac).amount == "1 % of tokens within 10 % of samples"
    assert arm_of(edit | {"fraction": None, "count": 900}, ekfac).amount == "900 tokens"
    same = edit | {"match": "sample"}
    assert arm_of(same, ekfac).name == (
        "remove mask_tokens random, as ekfac top 1 % of tokens by sample, without its tokens"
    )
    spans = edit | {"mode": "spans", "spans": "renamed"}
    assert arm_of(spans, {"name": "random"}).name == "remove spans renamed random 1 % of tokens"


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


def test_the_edges_of_a_band_are_plain_numbers():
    edit = {"name": "remove", "mode": "mask", "band": [0.00005, 0.1], "n": 3}
    arm = arm_of(edit, {"name": "ekfac"})
    assert arm.select == "band 0.00005-0.1" and band_edges(arm) == (0.00005, 0.1)
    assert arm_of(edit | {"band": [0.9, 1.0]}, {"name": "ekfac"}).select == "band 0.9-1"


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


def inserting(rows: str) -> Arm:
    return arm_of(
        {"name": "augment", "mode": "insert", "rows": rows, "n": 800, "fraction": 0.1}, {}
    )


def test_arms_that_insert_rows_bear_the_name_of_their_file():
    assert inserting("a/motif.npy").name == "augment insert motif 800 rows"
    assert not inserting("a/random_motif.npy").is_random and inserting("b/random.npy").is_random


def test_the_arms_of_the_study_of_scales_are_those_of_its_sweeps():
    study = compose(["study=scales"]).study
    sweeps = [
        conf_dir().parent / "sweeps" / f"{name}.yaml" for name in ("scales", "scales_control")
    ]
    params = [yaml.safe_load(path.read_text())["hydra"]["sweeper"]["params"] for path in sweeps]
    ran = {inserting(rows.strip()) for rows in params[0]["intervention.rows"].split(",")}
    assert {arm_as(arm) for arm in study.arms.values()} == {*ran, Arm("control")}
    assert {one["seed"] for one in params} == {f"range({study.seeds[0]},{study.seeds[-1] + 1})"}


def test_the_sentence_says_that_rows_were_inserted(tmp_path):
    runs = read_runs(write_runs(tmp_path, range(1), (Edit("control"), Edit("augment", "ekfac"))))
    made = [replace(runs[1], arm=inserting(f"{kind}.npy")) for kind in ("motif", "random")]
    said = headline(measure([runs[0], *made]), compose(["study=scales"]).study)
    assert said.startswith("With 800 rows of motif inserted, L2H0 crosses .060 at step")
    assert "; random insertions end at ." in said


def test_inserted_rows_are_compared_with_as_many_rows_of_another_kind(tmp_path):
    runs = read_runs(write_runs(tmp_path, range(1), (Edit("control"), Edit("augment", "ekfac"))))
    kinds = ("motif", "shuffled", "random", "repetition")
    made = [replace(runs[1], arm=inserting(f"{kind}.npy")) for kind in kinds]
    few = replace(made[1], arm=replace(made[1].arm, amount="400 rows"))
    everything = [*runs, *made, few]
    for reference, other in zip(kinds[1:], made[1:], strict=True):
        assert references_of(made[0], everything, reference) == [other]
