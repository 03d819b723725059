"""What a base run leaves for people, from a curve in memory."""

import pytest
from matplotlib.image import imread

from mda import store
from mda.config import compose
from mda.report.base import report_base
from mda.schema.metrics import HEAD_METRICS

HEADS = ("L0H0", "L0H1", "L1H0", "L1H1")


def test_the_unit_has_its_own_threshold_and_other_metrics_that_of_the_table(trained, tmp_path):
    """Head i of n has 0.01 (step + i): it crosses a threshold at step 100 threshold - i."""
    curve, source = trained
    config = compose(["unit.threshold=0.2", "report.dpi=30"])
    heads = report_base(config, curve, source, tmp_path)["heads"]
    first = {metric: rows[0]["onset"]["step"] for metric, rows in heads.items()}
    expected = {"prefix_matching": 17, "previous_token": 27, "second_previous_token": 22}
    assert first == pytest.approx(expected)


@pytest.fixture
def trained(tmp_path):
    """A curve of five steps, and the folder that the base run has left."""
    curve = [
        {"step": step, "tokens": 100 * step, "val/loss": 3.0, "emergence/copy_gain": 0.1,
         "emergence/icl_score": -0.1}
        | {f"emergence/{metric}/{head}": 0.01 * (step + i)
           for metric in HEAD_METRICS for i, head in enumerate(HEADS)}
        | {f"emergence/{metric}_se/{head}": 0.01 for metric in HEAD_METRICS for head in HEADS}
        for step in range(0, 50, 10)
    ]  # fmt: skip
    for name in ("curve.csv", "train.csv"):
        store.write_csv(tmp_path / "source" / name, curve)
    return curve, tmp_path / "source"


def test_every_figure_has_the_resolution_that_is_asked_for(trained, tmp_path):
    curve, source = trained
    sizes = []
    for dpi in (30, 60):
        folder = tmp_path / str(dpi)
        folder.mkdir()
        report_base(compose([f"report.dpi={dpi}"]), curve, source, folder)
        figures = ("curves.png", "previous_token.png", "second_previous_token.png", "heads.png")
        sizes.append([imread(folder / name).shape[:2] for name in figures])
    assert sizes[1] == [(2 * height, 2 * width) for height, width in sizes[0]]
