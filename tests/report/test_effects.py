"""Effects recomputed by hand from the CSV files, and planted effects found."""

import numpy as np
import pytest
from made_up_runs import BANDS, END, STANDARD, Edit, write_runs

from mda import store
from mda.analysis.effects import compare_arms
from mda.analysis.folders import read_runs
from mda.analysis.metrics import (
    METRICS,
    control_of,
    measure,
    metrics_of,
    random_values,
    references_of,
)
from mda.analysis.statistics import holm, paired_effect


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
    return root, measured, compare_arms(measured, resamples=499)


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
    run = next(r for r in measured.runs if r.arm.estimator == "ekfac")
    values = measured.of(run, run).values
    steps, curve = run.curve["step"], run.curve[f"emergence/prefix_matching/{run.unit}"]
    dense = np.arange(steps[0], steps[-1] + 1, 0.01)
    expected = dense[np.argmax(np.interp(dense, steps, curve) >= 0.06)]
    assert values["onset_step"] == pytest.approx(expected, abs=0.02)
    assert values["onset_tokens"] == pytest.approx(values["onset_step"] * 8 * 128)


def test_an_onset_that_never_comes_is_counted_as_censored(tmp_path):
    write_runs(tmp_path, range(3), (STANDARD[0], Edit("remove", "ekfac", strength=0.1)))
    rows = compare_arms(measure(read_runs([tmp_path])), resamples=99)
    row = table(rows, "control", "onset_step")["remove mask ekfac top 10 %"]
    assert row.censored == 3 and row.arm_mean == END
    assert table(rows, "control", "unit")["remove mask ekfac top 10 %"].censored == 0


def test_other_induction_heads_are_those_of_the_control(compared):
    _, measured, rows = compared
    run = next(r for r in measured.runs if r.arm.estimator == "ekfac" and r.seed == 1)
    control = control_of(run, measured.runs)
    names = [str(h) for h in control.heads_of("prefix_matching") if str(h) != run.unit]
    at = {n: at_end(control.folder, f"emergence/prefix_matching/{n}") for n in names}
    others = [n for n in names if at[n] >= 0.06]
    assert len(others) == 1
    mine = {n: at_end(run.folder, f"emergence/prefix_matching/{n}") for n in names}
    values = measured.of(run, run).values
    assert values["heads/induction"] == pytest.approx(mine[others[0]])
    rest = np.mean([mine[n] for n in names if n not in others])
    assert values["heads/rest"] == pytest.approx(rest)
    moved = table(rows, "control", "heads/induction")["remove mask ekfac top 10 %"].effect.mean
    still = table(rows, "control", "heads/rest")["remove mask ekfac top 10 %"].effect.mean
    assert moved < -0.02 and abs(still) < 5e-4


def test_without_another_induction_head_the_contrast_is_missing(tmp_path):
    folders = write_runs(tmp_path, [0, 1], (STANDARD[0], Edit("remove", "ekfac")))
    for folder in folders:
        rows = store.read_csv(folder / "curve.csv")
        unit = store.read_json(folder / "summary.json")["unit"]
        for row in rows:
            for key in row:
                if key.startswith("emergence/prefix_matching/L") and not key.endswith(unit):
                    row[key] = "0.01"
        store.write_csv(folder / "curve.csv", rows)
    rows = compare_arms(measure(read_runs([tmp_path])), resamples=99)
    row = table(rows, "control", "heads/contrast")["remove mask ekfac top 10 %"]
    assert row.effect.n == 0 and row.effect.mean is None and row.arm_mean is None


def test_holm_is_over_the_arms_of_one_reference_and_metric(compared):
    _, _, rows = compared
    found = table(rows, "control", "icl_score")
    expected = holm([row.effect.p for row in found.values()])
    assert [row.p_holm for row in found.values()] == expected
    assert {row.family for row in found.values()} == {5}


def test_score_bands_are_a_family_of_their_own(tmp_path):
    write_runs(tmp_path, [0, 1], (*STANDARD, *BANDS))
    rows = compare_arms(measure(read_runs([tmp_path])), resamples=99)
    families = {r.family for r in rows if r.metric == "unit" and r.reference == "control"}
    assert families == {5, 10}


def test_random_reference_is_unmatched_and_of_equal_size(tmp_path):
    edits = (
        STANDARD[0],
        Edit("remove", "ekfac"),
        Edit("remove", "random", replicates=2),
        Edit("remove", "random", fraction=0.2),
        Edit("remove", "ekfac", match="label"),
        Edit("remove", "tracin", match="label"),
        Edit("augment", "random"),
    )
    write_runs(tmp_path, [0], edits)
    runs = read_runs([tmp_path])
    target = next(r for r in runs if r.arm.estimator == "ekfac" and not r.arm.match)
    names = [r.arm.name for r in references_of(target, runs, "random")]
    assert names == ["remove mask random 10 %"] * 2
    names = [r.arm.name for r in references_of(target, runs, "matched")]
    assert names == ["remove mask random, as ekfac top 10 % by label"]
    references = {r.reference for r in compare_arms(measure(runs)) if r.arm == target.arm}
    assert references == {"control", "random", "matched"}


def test_one_seed_gives_effects_without_tests(tmp_path):
    write_runs(tmp_path, [0])
    rows = compare_arms(measure(read_runs([tmp_path])))
    row = table(rows, "random", "unit")["remove mask ekfac top 10 %"]
    assert row.effect.mean is not None and row.effect.mean < -0.02
    assert row.effect.note == "one seed: no test" and row.p_holm is None and row.family == 0


def test_a_run_without_its_control_is_named(tmp_path):
    write_runs(tmp_path, [0, 1], STANDARD)
    write_runs(tmp_path, [2], STANDARD[1:])
    with pytest.raises(ValueError, match="no control of seed 2 and window"):
        measure(read_runs([tmp_path]))


def test_random_values_are_seeds_by_replicates(compared):
    root, measured, _ = compared
    values = random_values(measured, "icl_score")
    assert {name: v.shape for name, v in values.items()} == {
        "remove mask random 10 %": (5, 3),
        "augment duplicate random 10 %": (5, 2),
    }
    folders = [f for f in (root / "seed2").iterdir() if f.name.startswith("remove_random")]
    expected = sorted(at_end(f, "emergence/icl_score") for f in folders)
    assert sorted(values["remove mask random 10 %"][2]) == expected


def test_metrics_are_listed_in_order(compared):
    _, measured, _ = compared
    names = metrics_of(measured)
    assert names[:2] == ["unit", "mechanism"] and "val/loss/latex" in names


def test_effects_do_not_depend_on_the_order_of_folders(compared):
    root, _, rows = compared
    folders = sorted((p.parent for p in root.rglob("summary.json")), reverse=True)
    again = compare_arms(measure(read_runs(folders)), resamples=499)
    assert [r.effect for r in again] == [r.effect for r in rows]
    assert rows[0].effect == paired_effect(rows[0].differences, resamples=499)


def test_every_metric_is_explained(compared):
    _, measured, _ = compared
    names = {
        name if not name.startswith("val/loss") else "val/loss" for name in metrics_of(measured)
    }
    assert names == set(METRICS)
