"""The results in sweeps/results come out of the curves beside them, and out of nothing else."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from leaderboard_page import leaderboard_page
from study_pages import KEPT, LIMITS, effects_of, results_page, study_of, verdicts_of

from mda import store
from mda.analysis.folders import read_runs
from mda.analysis.leaderboard import ABOUT, TABLES
from mda.analysis.metrics import measure
from mda.analysis.null import null_check
from mda.analysis.table import CURVES, RUNS
from mda.config import compose
from mda.report.compare import compare

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "sweeps" / "results"
README = (ROOT / "README.md").read_text("utf-8")
STUDIES = sorted(path.parent.name for path in RESULTS.glob(f"*/{RUNS}"))


@pytest.fixture(scope="module")
def recomputed(tmp_path_factory):
    """Study -> the folder of its comparison, made anew from the committed curves, and its study."""
    report = compose(["report.dpi=30"]).report
    found = {}
    for name in STUDIES:
        study = compose([f"study={study_of(RESULTS / name)}"]).study
        out = tmp_path_factory.mktemp(name)
        summary = compare([RESULTS / name], out, study, report)
        found[name] = (out, study, summary["results"]["headline"])
    return found


@pytest.mark.parametrize("name", STUDIES)
def test_the_tables_are_recomputed_from_the_curves(recomputed, name):
    out = recomputed[name][0]
    for table in (effects_of, verdicts_of, lambda folder: store.read_csv(folder / "null.csv")):
        now, then = table(out), table(RESULTS / name)
        assert len(now) == len(then)
        for a, b in zip(now, then, strict=True):
            assert a.keys() == b.keys()
            for key in a:
                assert a[key] == b[key] or float(a[key]) == pytest.approx(float(b[key])), key


def test_the_page_of_results_is_made_from_the_tables(recomputed):
    confidence = compose().report.confidence
    studies = {RESULTS / name: (study, said) for name, (_, study, said) in recomputed.items()}
    assert (RESULTS / "README.md").read_text("utf-8") == results_page(studies, confidence, README)


@pytest.mark.parametrize("name", STUDIES)
def test_results_are_few_files(name):
    files = {path.name for path in (RESULTS / name).rglob("*") if path.is_file()}
    assert {CURVES, RUNS} <= files <= {CURVES, RUNS, *KEPT}


def test_the_leaderboard_is_made_from_the_committed_tables():
    text = leaderboard_page(RESULTS / "truth", compose().report)
    assert (RESULTS / "truth" / "README.md").read_text("utf-8") == text


def test_a_run_that_was_kept_is_small_and_says_what_it_is():
    for folder in (path.parent for path in (RESULTS / "truth").glob(f"*/{ABOUT}")):
        assert {path.name for path in folder.iterdir()} <= {ABOUT, *(f"{t}.csv" for t in TABLES)}
        assert sum(path.stat().st_size for path in folder.iterdir()) < 300_000
        about = store.read_json(folder / ABOUT)
        assert about["planned"].keys() == about["done"].keys()


def test_an_edit_smuggled_in_among_the_random_ones_would_be_found():
    """The shipped curves with EK-FAC's decile in the place of one random replicate."""
    measured = measure(read_runs([RESULTS / "causal_grid"]))
    values = np.empty((8, 3))
    for run in measured.runs:
        score = measured.of(run, run).values["unit"]
        if run.arm.name == "remove mask random 10 %":
            values[run.seed, run.replicate] = score
    assert not any(one.differs for one in null_check(values))
    for run in measured.runs:
        if run.arm.name == "remove mask ekfac top 10 %":
            values[run.seed, 2] = measured.of(run, run).values["unit"]
    smuggled = null_check(values)[2]
    assert smuggled.differs and smuggled.p_sign_flip == pytest.approx(0.0078125)


def told(study: str, arm: str, metric: str = "unit", column: str = "difference") -> float:
    """A value of a study's table of effects against control."""
    wanted = (arm, "control", metric)
    (row,) = [row for row in store.read_csv(RESULTS / study / "effects.csv")
              if (row["arm"], row["reference"], row["metric"]) == wanted]  # fmt: skip
    return float(row[column])


REMOVED = "remove mask ekfac top 10 %"
SIZES = ("nano", "nano-large", "nano-xlarge")
RENAMED = "remove spans renamed ekfac top 7 % of tokens"
FINDINGS = [  # the words around a number of the README's findings, the number in the tables
    (r"from ([\d.]+) to [\d.]+ and delays", told("fresh_seeds", REMOVED, column="reference_mean")),
    (r"from [\d.]+ to ([\d.]+) and delays", told("fresh_seeds", REMOVED, column="arm_mean")),
    (r"delays it by (\d+) steps", told("fresh_seeds", REMOVED, "onset_step")),
    (r"random 10 % costs ([\d.]+)", -told("fresh_seeds", "remove mask random 10 %")),
    (r"costs the same head ([\d.]+)", -told("fresh_seeds", "remove mask repetition top 10 %")),
    (r"influence costs ([\d.]+)", -told("tokens", "remove mask_tokens ekfac top 1 % of tokens")),
    (r"against ([\d.]+) for the top 10 %", -told("tokens", REMOVED)),
    (r"fresh tokens costs ([\d.]+)", -told("tokens", "remove spans fresh ekfac top 7 % of tokens")),
    (r"repeated tokens add ([\d.]+)", told("tokens", RENAMED)),
    (r"forward\S* by (\d+) to", min(-told(f"scales-{size}", "augment insert motif 800 rows",
                                     "onset_step") for size in SIZES)),
    (r"forward\S* by \d+ to (\d+)", max(-told(f"scales-{size}", "augment insert motif 800 rows",
                                         "onset_step") for size in SIZES)),
]  # fmt: skip


@pytest.mark.parametrize("words, value", FINDINGS)
def test_the_findings_state_what_the_tables_say(words, value):
    text = " ".join(README.split())
    (found,) = re.findall(words, text)
    said = found.rstrip(".")
    decimals = len(said.partition(".")[2])
    assert float(said) == pytest.approx(value, abs=0.51 * 10**-decimals)


def test_the_findings_have_the_verdicts_of_their_claims():
    def verdict(study: str, claim: str) -> tuple[str, str, str]:
        (row,) = [row for row in verdicts_of(RESULTS / study) if row["claim"] == claim]
        return row["verdict"], row["status"], row["reason"]

    word, status, why = verdict("fresh_seeds", "ekfac_removal_beats_repetition")
    assert (word, status) == ("ruled out at this size", "registered") and why.startswith(
        "no effect of 0.018 or more"
    )
    for study in ("second_previous_token_head",):
        found = verdict(study, "ekfac_removal_beats_repetition")
        assert found[:2] == ("supported", "registered")
    for size in SIZES:
        rows = verdicts_of(RESULTS / f"scales-{size}")
        (row,) = [row for row in rows if "motifs of random samples" in row["text"]]
        assert (row["verdict"], row["status"]) == ("undecided", "registered")


def test_the_limits_state_what_the_tables_say():
    rows = [row for place in sorted((RESULTS / "truth").glob("seed?"))
            for row in store.read_csv(place / "labels.csv")
            if (row["unit"], row["estimator"]) == ("induction_head", "ekfac")]  # fmt: skip
    window = {(r["seed"], r["label"]): float(r["share_of_window"]) for r in rows}
    top = {(r["seed"], r["label"]): float(r["share_of_top"]) for r in rows}
    ratio = {key: top[key] / window[key] for key in window}
    text = " ".join(LIMITS.split())
    repeats = [key for key in window if key[1] == "generated_repeat"]
    assert f"is {100 * np.mean([top[k] for k in repeats]):.0f} % generated repeats" in text
    assert f"({100 * np.mean([window[k] for k in repeats]):.0f} % of the window" in text
    generated = sum(window[key] for key in window if key[1].startswith("generated")) / 3
    assert f"{100 * generated:.0f} % of the samples are generated" in text
    assert all(10 <= round(1 / v) <= 30 for (_, label), v in ratio.items()
               if label in ("html", "xml", "latex"))  # fmt: skip
    assert all(1.5 < v < 4.5 for (_, label), v in ratio.items()
               if label in ("generated_xml", "generated_latex"))  # fmt: skip


def test_the_page_says_what_edits_and_ablation_change_of_capabilities():
    page = results_page(
        {RESULTS / "fresh_seeds": (compose(["study=fresh_seeds"]).study, "")}, 0.95, README
    )
    part = page.partition("### Capabilities")[2].partition("\n#")[0]
    rows = {row[0]: row[1:] for line in part.splitlines()
            if len(row := line.strip("| ").split(" | ")) == 5}  # fmt: skip
    measured = measure(read_runs([RESULTS / "fresh_seeds"]))
    ends: dict[tuple[str, int], list[dict]] = {}
    for run in measured.runs:
        ends.setdefault((run.arm.name, run.seed), []).append(measured.of(run, run).values)

    def mean(arm: str, metric: str) -> float:
        return float(np.mean([np.mean([one[f"capabilities/{metric}"] for one in ends[arm, seed]])
                              for seed in range(8, 16)]))  # fmt: skip

    metrics = ("real_loss", "icl_score", "copy_gain", "label_margin")
    for arm in ("remove mask ekfac top 10 %", "remove mask random 10 %"):
        for cell, metric in zip(rows[arm], metrics, strict=True):
            said = float(cell.split()[0].replace("\N{MINUS SIGN}", "-"))
            assert said == pytest.approx(mean(arm, metric) - mean("control", metric), rel=5e-3)
    ablated = {"its strongest heads": "top_heads", "as many others": "random_heads"}
    for words, which in ablated.items():
        for cell, metric in zip(rows[f"*control without {words}, change*"], metrics, strict=True):
            said = float(cell.replace("\N{MINUS SIGN}", "-"))
            assert said == pytest.approx(mean("control", f"{metric}/{which}"), rel=5e-3)


def test_the_sizes_of_a_study_have_a_table_together(tmp_path):
    study = compose(["study=fresh_seeds"]).study
    for size, shift in (("small", 0.0), ("large", 0.5)):
        shutil.copytree(RESULTS / study.name, tmp_path / f"fresh_seeds-{size}")
        rows = store.read_csv(tmp_path / f"fresh_seeds-{size}" / "effects.csv")
        for row in rows:
            if row["metric"] == "unit":
                row["arm_mean"] = str(float(row["arm_mean"]) + shift)
        store.write_csv(tmp_path / f"fresh_seeds-{size}" / "effects.csv", rows)
    page = results_page(dict.fromkeys(sorted(tmp_path.iterdir()), (study, "")), 0.95, README)
    together, *alone = page.split("\n## ")[4:]
    assert together.startswith("fresh_seeds, all sizes") and len(alone) == 2
    cells = [line.strip("| ").split(" | ") for line in together.splitlines() if "ekfac top" in line]
    found = {(row[0], row[1]): row[2:] for row in cells}
    removal = "remove mask ekfac top 10 %"
    (onset,) = [row for row in store.read_csv(RESULTS / study.name / "effects.csv")
                if [row["arm"], row["reference"]] == [removal, "control"]
                and row["metric"] == "onset_step"]  # fmt: skip
    for size, end in (("small", "0.223"), ("large", "0.723")):
        seeds, without, ended, change, p, delay = found[removal, size]
        assert (seeds, without, ended, p) == ("8", "0.324", end, "0.07")
        assert change.startswith("\N{MINUS SIGN}0.101 [")
        assert float(delay.split()[0]) == pytest.approx(float(onset["difference"]), rel=5e-3)
    one = results_page({RESULTS / study.name: (study, "")}, 0.95, README)
    assert "all sizes" not in one, "a study of one size"


def test_the_caption_of_the_readme_says_what_the_table_of_its_figure_says():
    """The figure and the table are those of a quickstart; an arm has its onset and its end."""
    rows = store.read_csv(ROOT / "experiments" / "figures" / "quickstart.csv")
    arms = {row["arm"]: (float(row["onset_step"]), float(row["end"])) for row in rows}
    control, removed = arms["control"], arms["remove mask ekfac top 10 %"]
    doubled, repeats = (
        arms["augment duplicate ekfac top 10 %"], arms["remove mask repetition top 10 %"]
    )  # fmt: skip
    ends = re.search(
        r"comes later and ends at (0\.\d\d) instead of (0\.\d\d); with those",
        " ".join(README.split()),
    )
    assert ends is not None and ends.groups() == (f"{removed[1]:.2f}", f"{control[1]:.2f}")
    assert removed[0] > control[0] > doubled[0]
    effect = control[1] - removed[1]
    random = [float(row["end"]) for row in rows if row["arm"].endswith("random 10 %")]
    assert len(random) == 3, "two removals and a duplication"
    assert all(abs(end - control[1]) < effect / 3 for end in random)
    assert control[1] - repeats[1] >= 0.9 * effect, "as large an effect"
