"""The W&B report of a comparison: its spec is built and read without an account."""

import pytest
from made_up_runs import STANDARD, write_runs

pytest.importorskip("wandb_workspaces")

from mda import store
from mda.report.claims import Claim
from mda.report.compare import CompareSettings, compare
from mda.report.folders import wandb_group
from mda.report.wandb_report import build_report, spec

CLAIM = Claim(
    "removal", "Removal lowers it.", "unit", {"intervention": "remove", "estimator": "ekfac"},
    "random", "less",
)  # fmt: skip


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    write_runs(root / "runs", range(5), STANDARD)
    settings = CompareSettings(claims=(CLAIM,), resamples=99, null_comparisons=5, dpi=30)
    compare([root / "runs"], root / "out", settings)
    summary = store.read_json(root / "out" / "summary.json")
    report = build_report("mda", "", "title", ["grid"], "prefix_matching", summary)
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
        assert (("emergence/prefix_matching/max",), axis) in drawn
    assert {line["groupBy"] for line in lines} == {"arm.value"}  # W&B's way to write config.arm
    assert {(line["groupAgg"], line["groupArea"]) for line in lines} == {("mean", "stderr")}


def test_bars_and_the_run_comparer_are_there(blocks):
    assert {"unit_metric"} <= {bar["metrics"][0] for bar in panels(blocks, "Bar Chart")}
    assert len(panels(blocks, "Run Comparer")) == 1


def test_only_arms_of_the_sweep_are_shown(blocks):
    for grid in grids(blocks):
        (runset,) = grid["runSets"]
        wanted = {f["key"]["name"]: f["value"] for f in runset["filters"]["filters"]}
        assert wanted == {"group": ["grid"], "jobType": "arm"}


def test_claims_and_verdicts_stand_as_text(blocks):
    text = "\n".join(block.get("content") or "" for block in blocks)
    assert "| Removal lowers it. | remove mask ekfac top 10 % | **replicated**: " in text
    assert "| remove mask ekfac top 10 % | unit | " in text


def test_the_group_of_a_run_is_the_one_it_was_logged_to(tmp_path):
    folder = tmp_path / "sweep" / "3"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("logger: {name: csv}\n")
    assert wandb_group(folder) == "sweep"
    (folder / "config.yaml").write_text("logger: {name: wandb, group: mine}\n")
    assert wandb_group(folder) == "mine"
