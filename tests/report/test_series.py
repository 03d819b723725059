"""Curves over seeds and differences of heads, recomputed from the CSV files of made-up runs."""

import numpy as np
import pytest
from made_up_runs import END, EVERY, HEADS, LAYERS, STANDARD, START, write_runs

from mda import store
from mda.analysis.arms import by_arm
from mda.analysis.folders import read_runs
from mda.analysis.metrics import measure
from mda.analysis.series import arm_curves, head_difference

SEEDS = 4
FOLDERS = {  # how the folders of some arms' runs begin
    "control": "control_",
    "remove mask ekfac top 10 %": "remove_ekfac_",
    "remove mask random 10 %": "remove_random_",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    write_runs(root, range(SEEDS), STANDARD)
    return root, measure(read_runs([root]))


def replicates(root, seed, arm, name):
    """A column of all runs of one seed and arm, [runs, steps]."""
    curves = [
        store.read_csv(folder / "curve.csv")
        for folder in sorted((root / f"seed{seed}").glob(f"{FOLDERS[arm]}*"))
    ]
    return np.array([[float(row[name]) for row in curve] for curve in curves])


@pytest.mark.parametrize("name", ["icl_score", "val/loss"])
def test_a_curve_is_the_mean_over_seeds_with_its_standard_error(written, name):
    root, measured = written
    curves = {curve.arm.name: curve for curve in arm_curves(measured, name)}
    assert len(curves) == len(STANDARD)
    column = name if name == "val/loss" else f"emergence/{name}"
    for arm in FOLDERS:
        runs = [replicates(root, seed, arm, column) for seed in range(SEEDS)]
        assert {len(one) for one in runs} == {3 if "random" in arm else 1}
        values = np.array([one.mean(0) for one in runs])
        mean = values.sum(0) / SEEDS
        variance = ((values - mean) ** 2).sum(0) / (SEEDS - 1)
        assert curves[arm].x.tolist() == list(range(START, END + 1, EVERY))
        assert curves[arm].mean == pytest.approx(mean, rel=1e-9)
        assert curves[arm].error == pytest.approx(np.sqrt(variance / SEEDS), rel=1e-9)
        assert variance.min() > 1e-7


def test_a_curve_of_one_seed_has_no_error(tmp_path):
    write_runs(tmp_path, [2], STANDARD[:2])
    for curve in arm_curves(measure(read_runs([tmp_path])), "icl_score"):
        assert not curve.error.any() and curve.mean.any()


def test_a_difference_of_heads_is_the_run_minus_its_control(written):
    root, measured = written
    runs = {arm.name: seeds for arm, seeds in by_arm(measured.runs).items()}
    for arm in list(FOLDERS)[1:]:
        for seed in range(SEEDS):
            expected = np.empty((LAYERS, HEADS))
            for layer, head in np.ndindex(LAYERS, HEADS):
                name = f"emergence/prefix_matching/L{layer}H{head}"
                ours, control = (replicates(root, seed, x, name)[:, -1] for x in (arm, "control"))
                expected[layer, head] = ours.mean() - control.mean()
            found = head_difference(measured, runs[arm][seed])
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-15)
