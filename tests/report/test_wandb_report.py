"""The W&B report of a comparison: its spec is built and read without an account."""

import pytest
from made_up_runs import STANDARD, write_runs

pytest.importorskip("wandb_workspaces")

from mda import store
from mda.report.compare import compare
from mda.report.wandb_report import build_report, spec
from mda.schema import ClaimConfig, ReportConfig, StudyConfig

IDS = ["a1", "b2"]
STUDY = StudyConfig(
    arms={"ekfac": {"intervention": "remove", "estimator": "ekfac"}},
    claims={"removal": ClaimConfig("Removal lowers it.", "unit", "ekfac", "random", "less")},
)


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    write_runs(root / "runs", range(5), STANDARD)
    compare([root / "runs"], root / "out", STUDY, ReportConfig(resamples=99, dpi=30))
    summary = store.read_json(root / "out" / "summary.json")
    report = build_report("mda", "", "t" * 200, IDS, ["prefix_matching"], summary)
    content = spec(report)
    store.write_json(root / "spec.json", content)  # plain data
    return content["spec"]["blocks"]


def grids(blocks):
    return [block["metadata"] for block in blocks if block["type"] == "panel-grid"]


def panels(blocks, kind):
    found = [p for grid in grids(blocks) for p in grid["panelBankSectionConfig"]["panels"]]
    return [panel["config"] for panel in found if panel["viewType"] == kind]


def test_curves_are_grouped_by_arm_with_error_bands_on_both_axes(blocks):
    lines = panels(blocks, "Run History Line Plot")
    drawn = {(tuple(line["metrics"]), line["xAxis"]) for line in lines}
    for axis in ("tokens", "step"):
        assert (("emergence/prefix_matching/strongest",), axis) in drawn
    assert {line["groupBy"] for line in lines} == {"arm.value"}  # W&B's way to write config.arm
    assert {(line["groupAgg"], line["groupArea"]) for line in lines} == {("mean", "stderr")}


def test_units_of_several_metrics_have_a_curve_each():
    metrics = ["label_auc", "prefix_matching", "previous_token"]
    summary = {"results": {"verdicts": [], "arms": {}}, "notes": [], "program": "compare",
               "git": {"sha": "0"}}  # fmt: skip
    found = spec(build_report("mda", "", "title", IDS, metrics, summary))["spec"]["blocks"]
    drawn = {
        metric for line in panels(found, "Run History Line Plot") for metric in line["metrics"]
    }
    heads = {f"emergence/{metric}/strongest" for metric in metrics[1:]}
    assert {one for one in drawn if one.endswith("/strongest")} == heads, "neurons have none"


def test_bars_and_the_run_comparer_are_there(blocks):
    assert {"unit_metric"} <= {bar["metrics"][0] for bar in panels(blocks, "Bar Chart")}
    assert len(panels(blocks, "Run Comparer")) == 1


def test_only_the_runs_that_were_compared_are_shown(blocks):
    for grid in grids(blocks):
        (runset,) = grid["runSets"]
        (found,) = runset["filters"]["filters"]
        assert (found["key"], found["op"]) == ({"section": "run", "name": "name"}, "IN")
        assert found["value"] == IDS


def test_claims_and_verdicts_stand_as_text(blocks):
    text = "\n".join(block.get("content") or "" for block in blocks)
    assert "| Removal lowers it. | remove mask ekfac top 10 % | **supported**: " in text
    assert "| remove mask ekfac top 10 % | unit | " in text
