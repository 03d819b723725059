"""Effects recomputed by hand from the CSV files, and planted effects found."""

from dataclasses import replace

import numpy as np
import pytest
from made_up_runs import BANDS, END, STANDARD, Edit, aim_at_neurons, seal, write_runs

from mda import store
from mda.analysis.effects import compare_arms, told
from mda.analysis.folders import read_runs
from mda.analysis.headline import headline
from mda.analysis.metrics import (
    METRICS,
    control_of,
    measure,
    metrics_of,
    random_values,
    references_of,
)
from mda.analysis.statistics import Seed, holm, paired_effect
from mda.report.arm import base_heads
from mda.report.tables import spread
from mda.schema import StudyConfig

BAND = {"intervention": "remove", "intervention.select": "band", "estimator": "ekfac"}
STUDY = StudyConfig(
    arms={
        "remove_ekfac": {"intervention": "remove", "estimator": "ekfac"},
        "remove_tracin": {"intervention": "remove", "estimator": "tracin"},
        "remove_random": {"intervention": "remove", "estimator": "random"},
        "augment_ekfac": {"intervention": "augment", "estimator": "ekfac"},
        "augment_random": {"intervention": "augment", "estimator": "random"},
        "not run": {"intervention": "remove", "estimator": "loss"},
        "band": BAND | {"intervention.band": [0, 0.1]},
        "band_2": BAND | {"intervention.band": [0.1, 0.2]},
    }
)


def at_end(folder, column) -> float:
    rows = store.read_csv(folder / "curve.csv")
    return float(next(row for row in rows if int(row["step"]) == END)[column])


def table(rows, reference, metric):
    return {r.arm.name: r for r in rows if (r.reference, r.metric) == (reference, metric)}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    write_runs(root, range(5))
    measured = measure(read_runs([root]))
    return root, measured, compare_arms(measured, STUDY, resamples=499)


def test_differences_recomputed_from_the_files(compared):
    root, _, rows = compared
    for seed in range(5):
        unit = store.read_json(next((root / f"seed{seed}").iterdir()) / "summary.json")["unit"]
        column = f"emergence/prefix_matching/{unit}"
        folders = {f.name: f for f in (root / f"seed{seed}").iterdir()}
        values = {name: at_end(folder, column) for name, folder in folders.items()}
        control = next(v for n, v in values.items() if n.startswith("control"))
        target = next(v for n, v in values.items() if n.startswith("remove_ekfac"))
        random = np.mean([v for n, v in values.items() if n.startswith("remove_random")])
        name = "remove mask ekfac top 10 %"
        assert table(rows, "control", "unit")[name].differences[seed] == pytest.approx(
            target - control
        )
        assert table(rows, "random", "unit")[name].differences[seed] == pytest.approx(
            target - random
        )


def test_replicates_are_averaged_within_their_seed(compared):
    _, _, rows = compared
    row = table(rows, "control", "unit")["remove mask random 10 %"]
    assert len(row.differences) == 5 and row.seeds == (0, 1, 2, 3, 4)


def test_planted_effects_have_their_sign_and_order(compared):
    _, _, rows = compared
    for metric, sign in (("unit", -1), ("icl_score", 1), ("onset_step", 1), ("copy_gain", -1)):
        found = table(rows, "control", metric)
        ekfac, tracin, random = (
            sign * found[f"remove mask {name} 10 %"].effect.mean
            for name in ("ekfac top", "tracin top", "random")
        )
        assert ekfac > tracin > abs(random)
        assert sign * found["augment duplicate ekfac top 10 %"].effect.mean < 0
    assert abs(table(rows, "control", "val/loss")["remove mask ekfac top 10 %"].effect.mean) < 0.01


def test_onset_is_the_interpolated_crossing_in_steps_and_tokens(compared):
    _, measured, _ = compared
    run = next(r for r in measured.runs if r.arm.edit.source == "ekfac")
    values = measured.of(run, run).values
    steps, curve = run.curve["step"], run.curve[f"emergence/prefix_matching/{run.unit}"]
    dense = np.arange(steps[0], steps[-1] + 1, 0.01)
    expected = dense[np.argmax(np.interp(dense, steps, curve) >= 0.06)]
    assert values["onset_step"] == pytest.approx(expected, abs=0.02)
    assert values["onset_tokens"] == pytest.approx(values["onset_step"] * 8 * 128)


def test_an_onset_that_never_comes_is_counted_as_censored(tmp_path):
    write_runs(tmp_path, range(3), (STANDARD[0], Edit("remove", "ekfac", strength=0.1)))
    rows = compare_arms(measure(read_runs([tmp_path])), STUDY, resamples=99)
    row = table(rows, "control", "onset_step")["remove mask ekfac top 10 %"]
    assert row.censored == 3 and row.arm_mean == END
    assert row.reference_censored == 0
    assert table(rows, "control", "unit")["remove mask ekfac top 10 %"].censored == 0


def test_a_unit_that_is_there_at_the_windows_start_has_no_onset(tmp_path):
    write_runs(tmp_path, range(3), STANDARD[:2])
    runs = [replace(run, threshold=2e-3) for run in read_runs([tmp_path])]
    for run in runs:
        curve = run.of_unit(run.heads, run.metric)
        assert curve is not None and curve[0] > 2e-3
    measured = measure(runs)
    found = [measured.of(run, run) for run in measured.runs]
    for prefix in ("", "strongest_"):
        names = (f"{prefix}onset_step", f"{prefix}onset_tokens")
        assert {one.values[name] for one in found for name in names} == {None}
    assert not any(one.censored for one in found)
    said = headline(measured, STUDY)
    assert "is above .002 from the window's start on and ends at" in said, said


def test_a_reference_that_never_crosses_is_counted_too(tmp_path):
    edits = (STANDARD[0], Edit("remove", "ekfac"), Edit("remove", "random", strength=0.1))
    write_runs(tmp_path, range(3), edits)
    rows = compare_arms(measure(read_runs([tmp_path])), STUDY, resamples=99)
    row = table(rows, "random", "onset_step")["remove mask ekfac top 10 %"]
    assert (row.censored, row.reference_censored) == (0, 3)


def test_runs_that_are_apart_in_every_seed_have_the_least_p(compared):
    """Of one run against one it is 2 / 2^5 over five seeds, of one against three 2 / 4^5."""
    _, _, rows = compared
    ekfac = "remove mask ekfac top 10 %"
    for reference, ways in (("control", 2), ("random", 4)):
        row = table(rows, reference, "unit")[ekfac]
        assert row.at_least_p and row.effect.p == pytest.approx(2 / ways**5)
    one_back = tuple(Seed((d,), (0.0,)) for d in (-0.05, -0.04, -0.06, -0.05, 0.001))
    near = replace(row, labelled=one_back, effect=paired_effect(one_back))
    assert near.effect.p == pytest.approx(2 * 2 / 2**5) and not near.at_least_p


def test_other_heads_move_as_shares_of_what_they_were(compared):
    _, _, rows = compared
    found = spread(rows)["remove mask ekfac top 10 %"]
    for name in ("induction", "rest"):
        row = table(rows, "control", f"heads/{name}")["remove mask ekfac top 10 %"]
        assert row.arm_mean is not None and row.reference_mean is not None
        assert found[name] == pytest.approx(row.arm_mean / row.reference_mean - 1)
    induction, rest = found["induction"], found["rest"]
    assert induction is not None and rest is not None
    assert induction < -0.2 and abs(rest) < 0.02


def test_the_base_runs_heads_are_read_at_its_last_step_if_that_is_after_the_window():
    names = [f"emergence/{name}" for name in ("prefix_matching/L0H1", "prefix_matching/L2H0",
             "prefix_matching/strongest", "previous_token/L0H1")]  # fmt: skip
    values = {0: (0.1, 0.2, 0.2, 0.9), 50: (0.3, 0.4, 0.4, 0.9), 100: (0.5, 0.6, 0.6, 0.9)}
    curve = [{"step": at, **dict(zip(names, row, strict=True))} for at, row in values.items()]
    known = {names[0]: 0.5, names[1]: 0.6, names[3]: 0.9}  # of every metric of heads
    assert base_heads(curve, "prefix_matching", 99) == known
    assert base_heads(curve, "prefix_matching", 100) is None
    assert base_heads(curve, "prefix_matching", 101) is None


def test_other_induction_heads_are_those_of_the_base_run(compared):
    _, measured, rows = compared
    run = next(r for r in measured.runs if r.arm.edit.source == "ekfac" and r.seed == 1)
    control = control_of(run, measured.runs)
    prefix = "emergence/prefix_matching/"
    assert control.base_heads is not None
    base = {key: v for key, v in control.base_heads.items() if key.startswith(prefix)}
    names = [key.removeprefix(prefix) for key, value in base.items() if value >= 0.06]
    (other,) = [name for name in names if name != run.unit]
    mine = {name: at_end(run.folder, key) for key in base
            if (name := key.removeprefix(prefix)) != run.unit}  # fmt: skip
    values = measured.of(run, run).values
    assert values["heads/induction"] == pytest.approx(mine.pop(other))
    assert values["heads/rest"] == pytest.approx(np.mean(list(mine.values())))
    moved = table(rows, "control", "heads/induction")["remove mask ekfac top 10 %"].effect.mean
    still = table(rows, "control", "heads/rest")["remove mask ekfac top 10 %"].effect.mean
    assert moved < -0.02 and abs(still) < 5e-4


def test_a_neuron_is_compared_with_the_control_that_followed_it(tmp_path):
    edits = (STANDARD[0], STANDARD[1], STANDARD[3])
    write_runs(tmp_path / "head", range(2), edits)
    aim_at_neurons(write_runs(tmp_path / "neuron", range(2), edits))
    measured = measure(read_runs([tmp_path]))
    found = table(compare_arms(measured, STUDY, resamples=99), "control", "unit")
    for unit in ("head", "neuron"):
        metric, letter = {"head": ("prefix_matching", "H"), "neuron": ("label_auc", "N")}[unit]
        row = next(row for name, row in found.items()
                   if f"metric={metric}" in name and "random" not in name)  # fmt: skip
        changes = []
        for seed in range(2):
            (mine,) = (tmp_path / unit / f"seed{seed}").glob("remove_ekfac*")
            (control,) = (tmp_path / unit / f"seed{seed}").glob("control*")
            column = f"emergence/{metric}/L{2 + seed}{letter}{seed}"
            changes.append(at_end(mine, column) - at_end(control, column))
        assert row.dropped == () and row.seeds == (0, 1)
        assert row.effect.mean == pytest.approx(np.mean(changes))


def test_other_heads_of_a_metric_are_found_where_the_control_had_another(tmp_path):
    """The control of two kinds of head is one training, and says the base's heads of one kind."""
    edits = (STANDARD[0], Edit("remove", "ekfac"))
    write_runs(tmp_path / "first", [0], edits[:1])
    for folder in write_runs(tmp_path / "second", [0], edits[1:]):
        summary = store.read_json(folder / "summary.json")
        heads = {f"emergence/previous_token/L{layer}H{head}": 0.15 if layer == 1 else 0.1
                 for layer, head in np.ndindex(4, 4)}  # fmt: skip
        changed = {"metric": "previous_token", "threshold": 0.12, "unit": "L1H2", "heads": ["L1H2"]}
        results = summary["results"] | {"base_heads": heads}
        store.write_json(folder / "summary.json", summary | changed | {"results": results})
    measured = measure(read_runs([tmp_path]))
    run = next(r for r in measured.runs if r.arm.edit.intervention == "remove")
    values = measured.of(run, run).values
    assert values["heads/induction"] == pytest.approx(0.15)  # L1H0, L1H1 and L1H3
    assert values["heads/rest"] == pytest.approx(0.1)


def test_heads_of_the_base_run_are_those_after_the_runs_own_window(tmp_path):
    """Where the window ends with the base run, they would be chosen by the control's values."""
    write_runs(tmp_path / "short", [0], STANDARD[:2])
    for folder in write_runs(tmp_path / "last", [0], STANDARD[:2]):
        summary = store.read_json(folder / "summary.json")
        prints = {name: f"{text}-last" if name == "arm" else text
                  for name, text in summary["fingerprints"].items()}  # fmt: skip
        changed = {"window": {"start": 1100, "end": END}, "fingerprints": prints}
        results = summary["results"] | {"base_heads": None}
        store.write_json(folder / "summary.json", summary | changed | {"results": results})
    measured = measure(read_runs([tmp_path]))
    for run in measured.runs:
        known = measured.of(run, run).values["heads/rest"]
        assert (known is None) == ("last" in run.folder.parts)


def test_noise_at_the_threshold_makes_no_contrast(tmp_path):
    """Heads that only chance puts above the threshold in control fall back in every other run."""
    folders = write_runs(tmp_path, range(8), (STANDARD[0], Edit("remove", "ekfac")))
    rng = np.random.default_rng(0)
    for folder in folders:
        summary = store.read_json(folder / "summary.json")
        rows = store.read_csv(folder / "curve.csv")
        fixed = f"emergence/prefix_matching/{summary['unit']}"
        for key in rows[-1]:
            if key.startswith("emergence/prefix_matching/L") and key != fixed:
                rows[-1][key] = str(0.06 + 0.01 * rng.normal())
        store.write_csv(folder / "curve.csv", rows)
        base = np.random.default_rng(summary["seed"])
        heads = {key: 0.06 + 0.01 * base.normal() for key in summary["results"]["base_heads"]}
        store.write_json(folder / "summary.json", summary | {"results": {"base_heads": heads}})
        seal(folder)
    rows = compare_arms(measure(read_runs([tmp_path])), STUDY, resamples=99)
    effect = table(rows, "control", "heads/contrast")["remove mask ekfac top 10 %"].effect
    assert effect.sd is not None and effect.mean is not None
    error = effect.sd / 8**0.5
    assert effect.n == 8 and abs(effect.mean) < 3 * error and error < 0.004


def test_heads_of_other_kinds_are_measured_by_their_own_metric(tmp_path):
    """An edit that weakens all heads alike lowers the induction heads more by the unit's metric.

    Planted: it takes a tenth of the other induction head, and a tenth of the first layer's
    previous-token heads, or of those nothing.
    """
    ratios, contrasts = [], []
    for others in (0.9, 1.0):
        folders = write_runs(tmp_path / str(others), range(5), STANDARD[:2], noise=0)
        for folder in folders:
            summary = store.read_json(folder / "summary.json")
            heads = summary["results"]["base_heads"]
            rows = store.read_csv(folder / "curve.csv")
            if summary["intervention"]["name"] == "remove":
                control = next(one for one in folders if one.parent == folder.parent)
                rows[-1] = store.read_csv(control / "curve.csv")[-1]
                for column, value in rows[-1].items():
                    if "prefix_matching/L" in column and heads[column] >= 0.06:
                        rows[-1][column] = str(0.9 * float(value))
                    elif "previous_token/L1" in column:
                        rows[-1][column] = str(others * float(value))
            store.write_csv(folder / "curve.csv", rows)
            seal(folder)
        measured = measure(read_runs([tmp_path / str(others)]))
        for metric, found in (("heads/log_ratio", ratios), ("heads/contrast", contrasts)):
            rows = compare_arms(measured, STUDY, resamples=99)
            found.append(table(rows, "control", metric)["remove mask ekfac top 10 %"].effect)
    kept = [np.log(0.9) - 4 / 14 * np.log(others) for others in (0.9, 1.0)]  # 4 heads of the rest
    assert [one.mean for one in ratios] == pytest.approx(kept)
    assert contrasts[0].mean == contrasts[1].mean < 0  # whatever becomes of the others


def test_heads_that_are_known_by_one_metric_alone_have_no_ratio(tmp_path):
    write_runs(tmp_path, [0], STANDARD[:2])
    whole = read_runs([tmp_path])
    alone = {key: v for key, v in (whole[0].base_heads or {}).items() if "/prefix_m" in key}
    for runs, known in ((whole, True), ([replace(run, base_heads=alone) for run in whole], False)):
        found = {one.values["heads/log_ratio"] is not None for one in measure(runs).table.values()}
        assert found == {known}


@pytest.mark.parametrize("threshold", [0.06, 5.0])  # 5 is reached after the window alone
def test_a_curve_that_goes_on_after_the_window_changes_no_value(compared, threshold):
    """That of `intervention.until`: the unit ends much higher, which is not what is compared."""
    short = [replace(run, threshold=threshold) for run in compared[1].runs]
    measured = measure(short)

    def longer(run):
        after = {"step": run.end + np.array([100.0, 200.0])}
        curve = {
            name: np.append(values, after.get(name, [9.0, 9.0]))
            for name, values in run.curve.items()
        }
        return replace(run, curve=curve)

    runs = [longer(run) for run in short]
    found = measure(runs)
    for run, long in zip(short, runs, strict=True):
        assert len(long.curve["step"]) == len(run.curve["step"]) + 2
        assert found.of(long, long).values == measured.of(run, run).values


def test_the_mean_over_the_curve_is_its_area_by_the_windows_length(compared):
    _, measured, rows = compared
    run = measured.runs[-1]
    columns = {"unit/curve": f"prefix_matching/{run.unit}", "icl_score/curve": "icl_score"}
    columns |= {"prompts/curve": "prompts"}
    steps = run.curve["step"]
    for name, column in columns.items():
        curve = run.curve[f"emergence/{column}"]
        area = sum((b - a) * (x + y) / 2 for a, b, x, y in
                   zip(steps, steps[1:], curve, curve[1:], strict=False))  # fmt: skip
        assert measured.of(run, run).values[name] == pytest.approx(area / (END - 1000))
    assert {r.metric for r in rows} >= {"unit/curve", "unit"}


def test_without_another_induction_head_the_contrast_is_missing_and_told(tmp_path):
    for folder in write_runs(tmp_path, [0, 1], (STANDARD[0], Edit("remove", "ekfac"))):
        summary = store.read_json(folder / "summary.json")
        heads = dict.fromkeys(summary["results"]["base_heads"], 0.01)
        store.write_json(folder / "summary.json", summary | {"results": {"base_heads": heads}})
        seal(folder)
    rows = compare_arms(measure(read_runs([tmp_path])), STUDY, resamples=99)
    row = table(rows, "control", "heads/contrast")["remove mask ekfac top 10 %"]
    assert row.effect.n == 0 and row.effect.mean is None and row.arm_mean is None
    assert told(row.dropped) == "heads/contrast is missing in the arm (seeds 0, 1)"


def test_a_seed_without_the_reference_is_told(tmp_path):
    write_runs(tmp_path, range(3), STANDARD[:2])
    write_runs(tmp_path, range(2), STANDARD[3:4])
    rows = compare_arms(measure(read_runs([tmp_path])), STUDY, resamples=99)
    row = table(rows, "random", "unit")["remove mask ekfac top 10 %"]
    assert row.seeds == (0, 1)
    assert row.dropped == ("seed 2: no random run of this kind and size",)


def test_holm_is_over_the_studys_arms_of_one_reference_and_metric(compared):
    _, _, rows = compared
    found = table(rows, "control", "icl_score")
    assert {row.family for row in found.values()} == {6}  # five were run
    expected = holm([row.effect.p for row in found.values()], 6)
    assert [row.p_holm for row in found.values()] == expected
    random = table(rows, "random", "icl_score")
    assert {row.family for row in random.values()} == {4}


def test_families_do_not_depend_on_the_folders(tmp_path, compared):
    _, _, rows = compared
    write_runs(tmp_path, range(5), STANDARD[:2])
    fewer = compare_arms(measure(read_runs([tmp_path])), STUDY, resamples=99)
    name = "remove mask ekfac top 10 %"
    one, other = (table(r, "control", "unit")[name] for r in (rows, fewer))
    assert one.family == other.family == 6
    assert other.p_holm == min(1, 6 * other.effect.p)


def test_an_arm_that_the_study_does_not_list_is_explored(tmp_path):
    edits = (*STANDARD[:2], Edit("remove", "ekfac", fraction=0.2))
    write_runs(tmp_path, range(5), edits)
    rows = compare_arms(measure(read_runs([tmp_path])), STUDY, resamples=99)
    row = table(rows, "control", "unit")["remove mask ekfac top 20 %"]
    assert row.effect.p is not None and row.p_holm is None and row.family == 0


def test_score_bands_are_a_family_of_their_own(tmp_path):
    write_runs(tmp_path, [0, 1], (*STANDARD, *BANDS))
    rows = compare_arms(measure(read_runs([tmp_path])), STUDY, resamples=99)
    families = {r.family for r in rows if r.metric == "unit" and r.reference == "control"}
    assert families == {0, 2, 6}  # of ten bands the study lists two


@pytest.mark.parametrize("estimator", ["repetition", "loss", "crystal"])
def test_any_estimator_is_an_arm_and_can_be_a_reference(tmp_path, estimator):
    edits = (STANDARD[0], Edit("remove", "ekfac", strength=0.6),
             Edit("remove", estimator, strength=0.8))  # fmt: skip
    write_runs(tmp_path, range(5), edits)
    measured = measure(read_runs([tmp_path]))
    rows = compare_arms(measured, STUDY, resamples=99)
    name = f"remove mask {estimator} top 10 %"
    mean = table(rows, "control", "unit")[name].effect.mean
    assert mean is not None and mean < -0.01
    against = table(rows, "repetition", "unit")
    assert set(against) == ({"remove mask ekfac top 10 %"} if estimator == "repetition" else set())
    target = next(r for r in measured.runs if r.arm.edit.source == "ekfac")
    found = references_of(target, measured.runs, estimator)
    assert [r.arm.name for r in found] == [name]


def test_random_reference_is_unmatched_and_of_equal_size(tmp_path):
    edits = (
        STANDARD[0],
        Edit("remove", "ekfac"),
        Edit("remove", "random", replicates=2),
        Edit("remove", "random", fraction=0.2),
        Edit("remove", "ekfac", match="label"),
        Edit("remove", "ekfac", match="label", match_targeted="allow"),
        Edit("remove", "tracin", match="label"),
        Edit("augment", "random"),
    )
    write_runs(tmp_path, [0], edits)
    runs = read_runs([tmp_path])
    target = next(r for r in runs if r.arm.edit.source == "ekfac" and not r.arm.edit.match)
    names = [r.arm.name for r in references_of(target, runs, "random")]
    assert names == ["remove mask random 10 %"] * 2
    names = [r.arm.name for r in references_of(target, runs, "matched")]
    assert names == ["remove mask random, as ekfac top 10 % by label, without its samples"]
    names = [r.arm.name for r in references_of(target, runs, "matched_overlap")]
    assert names == ["remove mask random, as ekfac top 10 % by label, its samples allowed"]
    references = {r.reference for r in compare_arms(measure(runs), STUDY) if r.arm == target.arm}
    assert references == {"control", "random", "matched", "matched_overlap"}


def test_one_seed_gives_effects_without_tests(tmp_path):
    write_runs(tmp_path, [0])
    rows = compare_arms(measure(read_runs([tmp_path])), STUDY)
    row = table(rows, "random", "unit")["remove mask ekfac top 10 %"]
    assert row.effect.mean is not None and row.effect.mean < -0.02
    assert row.effect.note == "one seed: no test" and row.p_holm is None


def test_a_run_without_its_control_is_named(tmp_path):
    write_runs(tmp_path, [0, 1], STANDARD)
    write_runs(tmp_path, [2], STANDARD[1:])
    with pytest.raises(ValueError, match="no control of seed 2 and window"):
        measure(read_runs([tmp_path]))


def test_random_values_are_seeds_by_replicates(compared):
    root, measured, _ = compared
    values = random_values(measured, "icl_score")
    assert {name: (names, v.shape) for name, (names, v) in values.items()} == {
        "remove mask random 10 %": ((0, 1, 2), (5, 3)),
        "augment duplicate random 10 %": ((0, 1), (5, 2)),
    }
    for replicate in range(3):  # a column is one draw, whatever the order of fingerprints
        for seed in range(5):
            (folder,) = (root / f"seed{seed}").glob(f"remove_random*_{replicate}")
            found = values["remove mask random 10 %"][1][seed, replicate]
            assert found == at_end(folder, "emergence/icl_score")


def test_metrics_are_listed_in_order(compared):
    _, measured, _ = compared
    names = metrics_of(measured)
    assert names[:2] == ["unit", "strongest"] and "val/loss/latex" in names


def test_effects_do_not_depend_on_the_order_of_folders(compared):
    root, _, rows = compared
    folders = sorted((p.parent for p in root.rglob("summary.json")), reverse=True)
    again = compare_arms(measure(read_runs(folders)), STUDY, resamples=499)
    assert [r.effect for r in again] == [r.effect for r in rows]
    assert rows[0].effect == paired_effect(rows[0].labelled)


def test_every_metric_is_explained(compared):
    _, measured, _ = compared
    names = {
        name if not name.startswith("val/loss") else "val/loss" for name in metrics_of(measured)
    }
    assert names == {name for name in METRICS if not name.startswith("capabilities/")}
