"""The whole comparison: its files agree with each other and with the runs."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import BANDS, STANDARD, Edit, aim_at_neurons, seal, write_runs
from made_up_traces import write_trace
from matplotlib.image import imread
from study_pages import effects_of, results_page

from mda import store
from mda.analysis.folders import read_runs
from mda.analysis.metrics import measure
from mda.report import compare as report_compare
from mda.report.compare import FILES, compare
from mda.report.figures import curves_figure, heads_figure
from mda.schema import ClaimConfig, ReportConfig, StudyConfig

STUDY = StudyConfig(
    name="planted",
    date="2026-01-01",
    arms={
        "ekfac": {"intervention": "remove", "estimator": "ekfac"},
        "random": {"intervention": "remove", "estimator": "random"},
    },
    claims={
        "removal": ClaimConfig(
            text="Removing high-influence samples weakens the unit more than random ones",
            arm="ekfac",
            direction="less",
        )
    },
)
README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
SETTINGS = ReportConfig(resamples=199, dpi=50)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    write_runs(root / "runs", range(5), (*STANDARD, *BANDS[::3]))
    trace = write_trace(root / "trace")
    summary = compare(
        [root / "runs"], root / "report", STUDY, SETTINGS, [trace], "python repeat.py"
    )
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


def test_a_table_that_was_kept_before_gives_the_same_page(compared, tmp_path):
    """It has its bands in the names of arms alone, and calls the strongest head a mechanism."""
    root, _ = compared
    shutil.copytree(root / "report", tmp_path / "planted")
    now = effects_of(root / "report")
    bands = {row["arm"]: (row["line"], float(row["band_low"]), float(row["band_high"]))
             for row in now if row["line"]}  # fmt: skip
    assert bands["remove mask ekfac band 0.3-0.4"] == ("remove mask ekfac", 0.3, 0.4)
    assert len(bands) == len(BANDS[::3]) and all(" band " in arm for arm in bands)
    metrics = {row["metric"] for row in now}
    assert {"strongest", "strongest_onset_step", "strongest_onset_tokens"} <= metrics
    assert not any("mechanism" in metric for metric in metrics)
    added = ("line", "band_low", "band_high")
    old = [{key: value for key, value in row.items() if key not in added} for row in now]
    for row in old:
        row["metric"] = row["metric"].replace("strongest", "mechanism")
    store.write_csv(tmp_path / "planted" / "effects.csv", old)
    for a, b in zip(now, effects_of(tmp_path / "planted"), strict=True):
        assert a == {**b, "band_low": a["band_low"], "band_high": a["band_high"]}
        assert not a["line"] or float(a["band_low"]) == float(b["band_low"])
    shutil.copytree(root / "report", tmp_path / "new" / "planted")
    before, after = (results_page({folder / "planted": (STUDY, "")}, 0.95, README)
                     for folder in (tmp_path, tmp_path / "new"))  # fmt: skip
    assert before == after and "each band of scores alone" in after


def test_bands_of_different_arms_are_different_lines(tmp_path):
    """The same bands of another edit and estimator, which are no points of the first line."""
    others = [replace(band, intervention="augment", estimator="tracin") for band in BANDS[::3]]
    write_runs(tmp_path / "runs", range(2), (STANDARD[0], *BANDS[::3], *others))
    compare([tmp_path / "runs"], tmp_path / "planted", STUDY, SETTINGS)
    dose = page_data_of(tmp_path / "planted" / "report.html")["dose"]
    lines = {line: [round(one["x"]) for one in dose if one["line"] == line]
             for line in ("remove mask ekfac", "augment duplicate tracin")}  # fmt: skip
    assert {tuple(sorted(x)) for x in lines.values()} == {(5, 35, 65, 95)}
    assert len(dose) == 8
    page = results_page({tmp_path / "planted": (STUDY, "")}, 0.95, README)
    part = page.partition("### Dose-response")[2]
    assert all(f"{line}, each band of scores alone, mean over 2 seeds" in part for line in lines)
    assert part.count("for the lowest scores to") == 2


def test_a_large_page_shows_less_of_each_sample(tmp_path, monkeypatch):
    write_runs(tmp_path / "runs", range(2), STANDARD[:2])
    trace = write_trace(tmp_path / "trace")
    found = {}
    for limit in (100.0, 1.0):
        monkeypatch.setattr(report_compare, "LARGE_MB", limit)
        monkeypatch.setattr(report_compare, "FEWER_TOKENS", (200, 50))
        out = tmp_path / f"report{limit}"
        summary = compare([tmp_path / "runs"], out, STUDY, SETTINGS, [trace])
        assert summary == store.read_json(out / "summary.json")
        size = (out / "report.html").stat().st_size / 1e6
        assert summary["results"]["page_mb"] == pytest.approx(size, abs=0.01)
        samples = page_data_of(out / "report.html")["samples"]
        found[limit] = sum(len(one["tokens"]) for one in samples["samples"])
    assert found[1.0] <= 50 < found[100.0]


def test_a_map_is_held_against_the_control_of_its_own_window(tmp_path):
    for start in (1000, 2000):
        for folder in write_runs(tmp_path / f"runs{start}", [0], STANDARD[:2]):
            summary = store.read_json(folder / "summary.json")
            summary["window"]["start"] = start
            summary["fingerprints"]["arm"] += str(start)
            store.write_json(folder / "summary.json", summary)
    runs = [tmp_path / "runs1000", tmp_path / "runs2000"]
    compare(runs, tmp_path / "report", STUDY, SETTINGS)
    data = page_data_of(tmp_path / "report" / "report.html")
    names = [arm["name"] for arm in data["arms"]]
    held = {names[one["arm"]]: names[one["control"]] for one in data["heads"]}
    assert len(held) == 4
    for arm, control in held.items():
        assert control.startswith("control") and arm[-9:] == control[-9:], (arm, control)


def test_several_units_of_a_seed_are_all_named(tmp_path):
    for unit in ("L0H1", "L3H2"):
        for folder in write_runs(tmp_path / unit, [0], STANDARD[:2]):
            summary = store.read_json(folder / "summary.json") | {"unit": unit, "heads": [unit]}
            summary["fingerprints"]["arm"] += unit * (summary["intervention"]["name"] != "control")
            store.write_json(folder / "summary.json", summary)
    runs = [tmp_path / "L0H1", tmp_path / "L3H2"]
    summary = compare(runs, tmp_path / "report", STUDY, SETTINGS)
    assert any(note.startswith("There are several units") for note in summary["notes"])
    text = (tmp_path / "report" / "report.html").read_text("utf-8")
    assert "The unit is L0H1 and L3H2 in seed 0." in text


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
    assert verdict["verdict"] == "supported" and verdict["p_holm"] == 4.0**-5


def test_the_null_is_checked_where_there_are_replicates(compared):
    _, summary = compared
    checked = {(c["arm"], c["metric"]) for c in summary["results"]["null"]}
    assert ("remove mask random 10 %", "unit") in checked and len(checked) == 4
    assert not any(c["differs"] for c in summary["results"]["null"])


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
    assert "mda run intervention=remove estimator=ekfac seed=3" in text
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


def test_one_seed_says_plainly_that_there_is_no_test(tmp_path, capsys):
    write_runs(tmp_path / "runs", [0])
    summary = compare([tmp_path / "runs"], tmp_path / "report", STUDY, SETTINGS)
    out = capsys.readouterr().out
    assert "There is no test" in " ".join(out.split())
    assert "verdicts: with one seed none of 1 claims can be tested" in out
    assert any("no test" in note for note in summary["notes"])
    text = (tmp_path / "report" / "report.html").read_text("utf-8")
    assert "There is no test" in text and "one seed: no test" in text
    assert "With one seed none of 1 claims" in text and '<th scope="col">Claim' not in text
    assert summary["results"]["verdicts"][0]["verdict"] == "undecided"
    arm = summary["results"]["arms"]["remove mask ekfac top 10 %"]["unit"]["to_random"]
    assert arm["difference"] < 0 and arm["p"] is None and arm["ci"] is None


def test_nothing_is_written_where_there_is_nothing_to_compare(tmp_path):
    write_runs(tmp_path / "runs", [0], STANDARD[1:])
    with pytest.raises(ValueError, match="no control arm"):
        compare([tmp_path / "runs"], tmp_path / "report", STUDY, SETTINGS)
    assert not (tmp_path / "report").exists()


def test_pairs_that_are_left_out_are_told_everywhere(tmp_path, capsys):
    write_runs(tmp_path / "runs", range(6), STANDARD[:2])
    write_runs(tmp_path / "runs", range(5), STANDARD[3:4])
    summary = compare([tmp_path / "runs"], tmp_path / "report", STUDY, SETTINGS)
    why = "no random run of this kind and size"
    assert f"{why} (seed 5)" in summary["results"]["verdicts"][0]["dropped"]
    assert any(why in note for note in summary["notes"])
    assert why in " ".join(capsys.readouterr().out.split())
    assert f"{why} (seed 5)" in (tmp_path / "report" / "report.html").read_text("utf-8")
    rows = store.read_csv(tmp_path / "report" / "effects.csv")
    assert {r["dropped"] for r in rows if r["reference"] == "random"} >= {f"{why} (seed 5)"}


def test_a_table_of_runs_is_read_as_their_folders_are(compared, tmp_path):
    root, summary = compared
    settings = replace(SETTINGS, pack=str(tmp_path / "kept"))
    compare([root / "runs"], tmp_path / "first", STUDY, settings)
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == ["curves.csv.gz", "runs.json"]
    settings = replace(SETTINGS, pack=str(tmp_path / "b"))
    again = compare([tmp_path / "kept"], tmp_path / "report", STUDY, settings)
    assert again["results"]["arms"] == summary["results"]["arms"]
    assert again["results"]["verdicts"] == summary["results"]["verdicts"]
    for name in ("curves.csv.gz", "runs.json"):
        assert (tmp_path / "kept" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_damaged_table_is_one_sentence(compared, tmp_path):
    root, _ = compared
    compare(
        [root / "runs"], tmp_path / "first", STUDY, replace(SETTINGS, pack=str(tmp_path / "kept"))
    )
    whole = (tmp_path / "kept" / "curves.csv.gz").read_bytes()
    (tmp_path / "kept" / "curves.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="kept is not a table of runs: "):
        compare([tmp_path / "kept"], tmp_path / "report", STUDY, SETTINGS)


def test_the_sentence_has_the_curves_numbers(tmp_path):
    edits = (*STANDARD, Edit("remove", "repetition", strength=0.7))
    folders = write_runs(tmp_path / "runs", [0], edits)
    summary = compare([tmp_path / "runs"], tmp_path / "report", STUDY, SETTINGS)
    said = summary["results"]["headline"]

    def ends(part):
        rows = [store.read_csv(f / "curve.csv")[-1] for f in folders if f.name.startswith(part)]
        return [float(row["emergence/prefix_matching/L2H0"]) for row in rows]

    assert said.startswith("Without the 1,600 samples that EK-FAC chose, L2H0 crosses .060 at step")
    for part in ("remove_ekfac", "control", "remove_repetition"):
        assert f"{ends(part)[0]:.3f}"[1:] in said
    random = ends("remove_random")
    assert f"{np.mean(random):.3f}"[1:] + " ± " + f"{np.std(random, ddof=1):.3f}"[1:] in said
    text = (tmp_path / "report" / "report.html").read_text("utf-8")
    places = ['id="plot-curves"', said[:40], "only several seeds can say", 'id="verdicts"']
    assert sorted(places, key=text.index) == places
    assert text.count("only several seeds can say") == 1


def test_the_sentence_has_both_ends_of_two_random_edits(tmp_path):
    edits = [replace(edit, replicates=min(edit.replicates, 2)) for edit in STANDARD]
    folders = write_runs(tmp_path / "runs", [0], edits)
    said = compare([tmp_path / "runs"], tmp_path / "report", STUDY, SETTINGS)["results"]["headline"]
    rows = [store.read_csv(f / "curve.csv")[-1] for f in folders if "remove_random" in f.name]
    low, high = sorted(f"{float(row['emergence/prefix_matching/L2H0']):.3f}"[1:] for row in rows)
    assert f"; random removals end at {low} and {high};" in said


def test_the_sentence_says_that_nothing_crossed_the_threshold(tmp_path):
    for folder in write_runs(tmp_path / "runs", [0], STANDARD):
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(summary | {"threshold": 0.99}))
    summary = compare([tmp_path / "runs"], tmp_path / "report", STUDY, SETTINGS)
    said = "L2H0 does not reach .990 in the window, and nor does the control, and ends at"
    assert said in summary["results"]["headline"]


def test_a_smuggled_targeted_edit_is_called_out(tmp_path):
    folders = write_runs(tmp_path / "runs", range(8), STANDARD[:4])
    for folder in folders:
        if "remove_random" in folder.name and folder.name.endswith("_1"):
            (targeted,) = folder.parent.glob("remove_ekfac*")
            shutil.copyfile(targeted / "curve.csv", folder / "curve.csv")
            seal(folder)
    summary = compare([tmp_path / "runs"], tmp_path / "report", STUDY, SETTINGS)
    found = {c["replicate"]: c for c in summary["results"]["null"] if c["metric"] == "unit"}
    assert found[1]["differs"] and found[1]["p_sign_flip"] == 2 / 2**8
    assert any("replicate 1 of remove mask random 10 %" in note for note in summary["notes"])


def test_an_arm_has_one_colour_whatever_stands_beside_it(tmp_path):
    write_runs(tmp_path / "a", range(2), STANDARD)
    write_runs(tmp_path / "b", range(2), (STANDARD[0], STANDARD[2], STANDARD[4]))
    looks = []
    for name in "ab":
        compare([tmp_path / name], tmp_path / f"report_{name}", STUDY, SETTINGS)
        data = page_data_of(tmp_path / f"report_{name}" / "report.html")
        looks.append({a["name"]: (a["colour"], a["dash"]) for a in data["arms"]})
    assert looks[1].items() <= looks[0].items()
    assert len(set(looks[0].values())) == len(looks[0])


def test_arms_of_a_neuron_have_a_page_and_tables_and_no_figure_of_heads(tmp_path):
    aim_at_neurons(write_runs(tmp_path / "runs", range(2), STANDARD))
    summary = compare([tmp_path / "runs"], tmp_path / "report", STUDY, SETTINGS)
    assert set(FILES) <= set(summary["files"]) and "heads.png" not in summary["files"]
    assert not (tmp_path / "report" / "heads.png").exists()
    assert (tmp_path / "report" / "curves.png").exists()

    def end(part, seed):
        (folder,) = (tmp_path / "runs" / f"seed{seed}").glob(f"{part}*")
        name = store.read_json(folder / "summary.json")["unit"]
        return float(store.read_csv(folder / "curve.csv")[-1][f"emergence/label_auc/{name}"])

    effect = summary["results"]["arms"]["remove mask ekfac top 10 %"]["unit"]["to_control"]
    changes = [end("remove_ekfac", seed) - end("control", seed) for seed in (0, 1)]
    assert effect["n"] == 2 and effect["difference"] == pytest.approx(np.mean(changes))
    data = page_data_of(tmp_path / "report" / "report.html")
    assert data["titles"]["unit"] == "ROC AUC for the label of the unit"
    assert "strongest" not in data["titles"] and len(data["points"]) == len(
        [run for run in (tmp_path / "runs").glob("*/*") if not run.name.startswith("control")]
    )
    ours, theirs = end("remove_ekfac", 0), end("control", 0)
    arms = [arm["name"] for arm in data["arms"]]
    (x,) = [p["x"] for p in data["points"]
            if p["seed"] == 0 and arms[p["arm"]] == "remove mask ekfac top 10 %"]  # fmt: skip
    assert x == pytest.approx(ours - theirs, rel=1e-3)
    assert "fixed head" not in (tmp_path / "report" / "report.html").read_text("utf-8")
    maps = data["heads"]
    assert maps and all(one["unit"] == [] for one in maps)  # no head of the maps is marked


def test_a_figure_of_neurons_has_no_panel_of_the_strongest_head(tmp_path):
    write_runs(tmp_path / "heads", range(2), STANDARD[:2])
    aim_at_neurons(write_runs(tmp_path / "neurons", range(2), STANDARD[:2]))
    shown = {}
    for name in ("heads", "neurons"):
        figure = curves_figure(measure(read_runs([tmp_path / name])))
        shown[name] = [ax.get_title() for ax in figure.axes]
    icl = "in-context-learning score (nats)"
    score = "induction score"
    assert shown["heads"] == [f"{score}, fixed head", f"{score}, strongest head", icl]
    assert shown["neurons"] == ["ROC AUC for the label of the unit", icl]


def test_the_figure_of_heads_leaves_out_the_arms_of_a_neuron(tmp_path):
    write_runs(tmp_path / "heads", [0], STANDARD[:2])
    aim_at_neurons(write_runs(tmp_path / "neurons", [0], STANDARD[:2]))
    figure = heads_figure(measure(read_runs([tmp_path])))
    assert figure is not None
    (line,) = [ax for ax in figure.axes if ax.get_images() and ax.get_title() == "seed 0"]
    assert "metric=prefix_matching" in line.get_ylabel().replace("\n", "")


BAD = {
    "a list": ("summary.json", "[1, 2]", "holds no object, but a list"),
    "a number": ("summary.json", "7", "holds no object, but a int"),
    "a string": ("summary.json", '"7"', "holds no object, but a str"),
    "nested": ("summary.json", "[" * 50_000 + "]" * 50_000, "is nested too deep"),
    "no JSON": ("summary.json", "{", "is not the folder of a finished program"),
    "long": ("curve.csv", "step,x\n1000,1\n3000," + "1" * 200_000, "a line is no CSV"),
    "infinite": ("curve.csv", "step,x\n1000,1\n3000,1e999\n", "x of its curve is infinite"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_folder_that_cannot_be_read_is_named_and_left_out(tmp_path, name):
    folders = write_runs(tmp_path / "runs", range(3), STANDARD[:4])
    bad = next(folder for folder in folders if "remove_tracin" in folder.name)
    file, content, said = BAD[name]
    (bad / file).write_text(content)
    if file == "curve.csv":
        seal(bad)
    summary = compare([tmp_path / "runs"], tmp_path / "report", STUDY, SETTINGS)
    (note,) = (note for note in summary["notes"] if note.startswith("Left out: "))
    assert said in note and str(bad) in note
    assert len(summary["fingerprints"]) == len(folders) - 1
    assert note in (tmp_path / "report" / "report.html").read_text().replace("&#34;", '"')


def test_a_summary_without_the_hash_of_its_curve_is_no_arm(tmp_path):
    folders = write_runs(tmp_path, [0], STANDARD[:1])
    summary = store.read_json(folders[0] / "summary.json")
    store.write_json(folders[0] / "summary.json", summary | {"hashes": {}})
    with pytest.raises(ValueError, match=r"no finished arm .*; .* has no hash of curve\.csv"):
        compare([tmp_path], tmp_path / "report", STUDY, SETTINGS)
