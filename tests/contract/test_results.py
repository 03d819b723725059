"""The results in sweeps/results come out of the curves beside them, and out of nothing else."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from leaderboard_page import leaderboard_pages
from results import readme_lines
from study_pages import KEPT, effects_of, results_page, study_of

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
    tables = [(effects_of(out), effects_of(RESULTS / name))]
    for table in ("verdicts.csv", "null.csv"):
        tables.append((store.read_csv(out / table), store.read_csv(RESULTS / name / table)))
    for now, then in tables:
        assert len(now) == len(then)
        for a, b in zip(now, then, strict=True):
            assert a.keys() == b.keys()
            for key in a:
                assert a[key] == b[key] or float(a[key]) == pytest.approx(float(b[key])), key


def test_the_page_of_results_is_made_from_the_tables(recomputed):
    confidence = compose().report.confidence
    studies = {RESULTS / name: (study, said) for name, (_, study, said) in recomputed.items()}
    assert (RESULTS / "README.md").read_text("utf-8") == results_page(studies, confidence)


@pytest.mark.parametrize("name", STUDIES)
def test_results_are_few_files(name):
    files = {path.name for path in (RESULTS / name).rglob("*") if path.is_file()}
    assert {CURVES, RUNS} <= files <= {CURVES, RUNS, *KEPT}


def test_the_leaderboard_is_made_from_the_committed_tables():
    for path, text in leaderboard_pages(
        RESULTS / "truth", ROOT / "README.md", compose().report
    ).items():
        assert path.read_text("utf-8") == text


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


def readme_study(place="study") -> str:
    """What the README has of a study, which only the program writes."""
    text = (ROOT / "README.md").read_text("utf-8")
    return text.partition(f"<!-- {place} -->\n")[2].partition(f"\n<!-- end of {place} -->")[0]


def test_the_readme_has_the_tables_of_its_studies():
    found = readme_lines(compose().report.confidence)
    for place, lines in found.items():
        assert len(lines) > 3 and readme_study(place) == "\n".join(lines)
    lines = found["study"]
    heads = [line for line in lines if "head" in line.partition(":")[0]]
    assert len(heads) == 4 and all("repetition" in line for line in heads)


def test_the_table_of_the_readme_says_what_the_curves_do():
    measured = measure(read_runs([RESULTS / "fresh_seeds"]))
    ends: dict[tuple[str, int], list[float]] = {}
    for run in measured.runs:
        score = measured.of(run, run).values["unit"]
        ends.setdefault((run.arm.name, run.seed), []).append(score)
    rows = [line.strip("| ").split(" | ") for line in readme_study().splitlines() if "| " in line]
    assert rows[0] == ["samples", "removed", "trained on twice"] and len(rows) > 4
    for choice, *cells in rows[1:]:
        for edit, cell in zip(("remove mask", "augment duplicate"), cells, strict=True):
            differences = [
                np.mean(values) - np.mean(ends["control", seed])
                for (arm, seed), values in ends.items()
                if arm == f"{edit} {choice}"
            ]
            said = cell.split()[0].replace("\N{MINUS SIGN}", "-")
            if differences:
                assert float(said) == pytest.approx(np.mean(differences), rel=5e-3), choice
            else:
                assert said == "\N{EN DASH}"


def test_the_page_says_what_edits_and_ablation_change_of_what_the_model_can_do():
    page = results_page({RESULTS / "fresh_seeds": (compose(["study=fresh_seeds"]).study, "")}, 0.95)
    part = page.partition("### What the model can do")[2].partition("\n#")[0]
    rows = {row[0]: row[1:] for line in part.splitlines()
            if len(row := line.strip("| ").split(" | ")) == 5}  # fmt: skip
    measured = measure(read_runs([RESULTS / "fresh_seeds"]))
    ends: dict[tuple[str, int], list[dict]] = {}
    for run in measured.runs:
        ends.setdefault((run.arm.name, run.seed), []).append(measured.of(run, run).values)

    def mean(arm: str, metric: str) -> float:
        return float(np.mean([np.mean([one[f"behaviour/{metric}"] for one in ends[arm, seed]])
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
    page = results_page(dict.fromkeys(sorted(tmp_path.iterdir()), (study, "")), 0.95)
    together, *alone = page.split("\n## ")[1:]
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
    one = results_page({RESULTS / study.name: (study, "")}, 0.95)
    assert "all sizes" not in one, "a study of one size"


def test_the_caption_of_the_readme_says_what_the_curves_do():
    """The quickstart is seed 0 of the study on the first eight seeds."""
    measured = measure(read_runs([RESULTS / "causal_grid"]))
    runs = [run for run in measured.runs if run.seed == 0]
    found = {run.arm.name: measured.of(run, run).values for run in runs}
    control, removed = found["control"], found["remove mask ekfac top 10 %"]
    doubled = found["augment duplicate ekfac top 10 %"]
    text = " ".join((ROOT / "README.md").read_text("utf-8").split())
    ends = re.search(r"comes later and ends at (\.\d\d) instead of (\.\d\d); with that tenth", text)
    said = tuple(f"{one['unit']:.2f}".removeprefix("0") for one in (removed, control))
    assert ends is not None and ends.groups() == said
    assert removed["onset_step"] > control["onset_step"] > doubled["onset_step"]
    effect = abs(removed["unit"] - control["unit"])
    random = [measured.of(run, run).values for run in runs if run.arm.name.endswith("random 10 %")]
    assert len(random) >= 4, "removals and augmentations"
    assert all(abs(values["unit"] - control["unit"]) < effect / 3 for values in random)
