"""The whole comparison: its files agree with each other and with the runs."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import BANDS, STANDARD, write_runs
from made_up_traces import write_trace
from matplotlib.image import imread

from mda import store
from mda.analysis.claims import Claim
from mda.report.compare import FILES, CompareSettings, compare

CLAIM = Claim(
    name="removal",
    text="Removing high-influence samples weakens the unit more than removing random ones",
    metric="unit",
    arm={"intervention": "remove", "estimator": "ekfac", "select": "top"},
    reference="random",
    direction="less",
)
SETTINGS = CompareSettings(claims=(CLAIM,), resamples=199, null_comparisons=20, dpi=50)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    write_runs(root / "runs", range(5), (*STANDARD, *BANDS[::3]))
    trace = write_trace(root / "trace")
    summary = compare([root / "runs"], root / "report", SETTINGS, [trace], "python repeat.py")
    return root, summary


def page_data_of(path: Path) -> dict:
    text = path.read_text("utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_every_file_that_is_named_is_there(compared):
    root, summary = compared
    assert set(FILES) <= set(summary["files"])
    for name in summary["files"]:
        assert (root / "report" / name).stat().st_size > 0
    for name in ("curves", "forest", "heads", "icl", "dose"):
        assert imread(root / "report" / f"{name}.png").std() > 0.01
    assert summary == store.read_json(root / "report" / "summary.json")


def test_values_are_those_of_the_curves_they_name(compared):
    root, _ = compared
    rows = store.read_csv(root / "report" / "values.csv")
    assert len(rows) > 500
    for row in rows:
        if row["metric"] == "icl_score":
            curve = store.read_csv(root / "report" / row["run"] / "curve.csv")
            assert float(row["value"]) == float(curve[-1]["emergence/icl_score"])


def test_effects_can_be_recomputed_from_the_values(compared):
    root, _ = compared
    values: dict[tuple[str, str, str], list[float]] = {}
    with open(root / "report" / "values.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["value"]:
                values.setdefault((row["arm"], row["metric"], row["seed"]), []).append(
                    float(row["value"])
                )
    checked = 0
    for row in store.read_csv(root / "report" / "effects.csv"):
        if row["reference"] == "control" and row["difference"]:
            pairs = [
                (values[row["arm"], row["metric"], s], values["control", row["metric"], s])
                for s in row["seeds"].split()
            ]
            expected = np.mean([np.mean(a) - np.mean(b) for a, b in pairs])
            assert float(row["difference"]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
            checked += 1
    assert checked > 100


def test_the_summary_holds_the_same_numbers(compared):
    root, summary = compared
    for row in store.read_csv(root / "report" / "effects.csv"):
        one = summary["results"]["arms"][row["arm"]][row["metric"]]
        held = one[f"to_{row['reference']}"]
        assert str(held["p_holm"] or "") == row["p_holm"] or held["p_holm"] == float(row["p_holm"])
        if row["difference"]:
            assert held["difference"] == float(row["difference"])
            assert held["ci"] == [float(row["ci_low"]), float(row["ci_high"])]
    control = summary["results"]["arms"]["control"]["unit"]
    assert control["n"] == 5 and control["mean"] > 0.1 and "to_control" not in control


def test_the_verdict_is_the_claims(compared):
    _, summary = compared
    verdict = summary["results"]["verdicts"][0]
    assert verdict["verdict"] == "replicated" and verdict["p_holm"] == 1 / 32
    ratio = summary["results"]["other_heads"]["remove mask ekfac top 10 %"]["ratio"]
    assert ratio > 30  # the made-up edits move no other head


def test_the_null_is_checked_where_there_are_replicates(compared):
    _, summary = compared
    checked = {(c["arm"], c["metric"]) for c in summary["results"]["null"]}
    assert ("remove mask random 10 %", "unit") in checked and len(checked) == 4


def test_the_page_shows_the_numbers_of_the_files(compared):
    root, _ = compared
    data = page_data_of(root / "report" / "report.html")
    rows = store.read_csv(root / "report" / "effects.csv")
    known = {(r["arm"], r["reference"], r["metric"]): r for r in rows}
    assert len(data["effects"]) == sum(bool(r["difference"]) for r in rows)
    for effect in data["effects"]:
        row = known[data["arms"][effect["arm"]]["name"], effect["reference"], effect["metric"]]
        assert effect["mean"] == pytest.approx(float(row["difference"]), rel=1e-3)
    text = (root / "report" / "report.html").read_text("utf-8")
    assert "python repeat.py" in text and "arm-3-" in text
    assert "python experiments/run.py intervention=remove estimator=ekfac seed=3" in text
    for name in FILES:
        assert f"<code>{name}</code>" in text


def test_the_pages_curves_are_means_of_the_runs(compared):
    root, _ = compared
    data = page_data_of(root / "report" / "report.html")
    names = [arm["name"] for arm in data["arms"]]
    line = next(
        c
        for c in data["curves"]
        if (names[c["arm"]], c["curve"]) == ("remove mask ekfac top 10 %", "icl_score")
    )
    runs = {r["run"] for r in store.read_csv(root / "report" / "values.csv")
            if r["arm"] == "remove mask ekfac top 10 %"}  # fmt: skip
    curves = [store.read_csv(root / "report" / run / "curve.csv") for run in runs]
    expected = np.mean([[float(r["emergence/icl_score"]) for r in c] for c in curves], axis=0)
    assert line["mean"] == pytest.approx(expected, rel=1e-3) and line["n"] == 5
    assert line["x"] == [float(r["step"]) for r in curves[0]]


def test_the_page_asks_for_nothing_from_outside(compared):
    root, _ = compared
    text = (root / "report" / "report.html").read_text("utf-8")
    head = text[: text.index('id="data"')]
    assert not re.search(r'(src|href)="(?!#|data:)', head)
    assert "default-src 'none'" in head and len(text.encode()) < 10e6


def test_twice_gives_the_same_tables(compared, tmp_path):
    root, summary = compared
    shutil.copytree(root / "runs", tmp_path / "runs")
    again = compare([tmp_path / "runs"], tmp_path / "report", SETTINGS)
    assert again["results"]["arms"] == summary["results"]["arms"]
    assert again["results"]["null"] == summary["results"]["null"]
    for name in ("effects.csv", "values.csv", "verdicts.csv", "null.csv"):
        assert (tmp_path / "report" / name).read_bytes() == (root / "report" / name).read_bytes()


def test_one_seed_says_plainly_that_there_is_no_test(tmp_path, capsys):
    write_runs(tmp_path / "runs", [0])
    summary = compare([tmp_path / "runs"], tmp_path / "report", SETTINGS)
    assert "there is no test" in capsys.readouterr().out
    assert any("no test" in note for note in summary["notes"])
    text = (tmp_path / "report" / "report.html").read_text("utf-8")
    assert "There is no test" in text and "one seed: no test" in text
    assert summary["results"]["verdicts"][0]["verdict"] == "undecided"
    arm = summary["results"]["arms"]["remove mask ekfac top 10 %"]["unit"]["to_random"]
    assert arm["difference"] < 0 and arm["p"] is None and arm["ci"] is None


def test_nothing_is_written_where_there_is_nothing_to_compare(tmp_path):
    write_runs(tmp_path / "runs", [0], STANDARD[1:])
    with pytest.raises(ValueError, match="no control arm"):
        compare([tmp_path / "runs"], tmp_path / "report", SETTINGS)
    assert not (tmp_path / "report").exists()
