"""experiments/compare.py as it is called from the command line, on made-up runs."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import warm
from made_up_runs import STANDARD, write_runs
from made_up_traces import write_trace

from mda import store
from mda.config import compose
from mda.programs.run import following

PROGRAM = Path(__file__).parents[2] / "experiments" / "compare.py"


def run(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), f"output_dir={folder}", "name=c", *overrides]
    return warm.run(command, folder)


@pytest.fixture(scope="module")
def called(tmp_path_factory):
    folder = tmp_path_factory.mktemp("program")
    write_runs(folder / "runs" / "run", range(5))
    write_trace(folder / "runs" / "trace" / "seed0")
    return folder, run(folder, "report.runs=[runs/run]", "report.resamples=199", "report.dpi=40")


def test_it_ends_with_the_table_and_the_path(called):
    folder, done = called
    assert done.returncode == 0, done.stderr
    out = folder / "runs" / "compare" / "c"
    assert done.stdout.splitlines()[-1].endswith("runs/compare/c")
    assert "verdicts" in done.stdout and (out / "report.html").exists()
    verdicts = store.read_json(out / "summary.json")["results"]["verdicts"]
    assert {v["claim"] for v in verdicts} >= {"removal_delays", "augmentation_speeds"}
    assert store.read_json(out / "job.json")["status"] == "done"  # a store has no comparisons


def test_the_page_has_the_traces_samples_and_the_command(called):
    folder, _ = called
    text = (folder / "runs" / "compare" / "c" / "report.html").read_text("utf-8")
    assert "Samples of highest and lowest influence" in text
    assert "../../trace/seed0/top_samples.json" in text
    assert "mda compare" in text and "report.runs=[runs/run]" in text


@pytest.mark.parametrize(
    ("runs", "message"),
    [("[]", "report.runs="), ("[nowhere]", "nowhere does not exist"), ("[runs/run]", "no control")],
)
def test_nothing_to_compare_is_one_sentence(tmp_path, runs, message):
    write_runs(tmp_path / "runs" / "run", [0], STANDARD[1:2])
    done = run(tmp_path, f"report.runs={runs}")
    assert done.returncode != 0 and message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "compare" / "c" / "report.html").exists()


def test_an_arm_without_a_control_is_followed_by_that_and_then_by_the_comparison(tmp_path):
    edit = ["intervention=remove", "intervention.mode=drop", "intervention.fraction=0.2"]
    words = ["experiment=smoke", *edit, "intervention.window=[20,40]"]
    (removal,) = write_runs(tmp_path / "runs", [0], STANDARD[1:2])
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "summary.json").write_text("[]")
    store.write_json(removal / "job.json", {"overrides": words})
    command = following(compose(words), removal, "base0")
    assert command.startswith("mda run experiment=smoke ") and "remove" not in command
    control = compose(shlex.split(command)[2:]).intervention
    assert (control.name, control.steps) == ("control", (20, 40))
    write_runs(tmp_path / "runs", [1], STANDARD[:1])
    assert following(compose(words), removal, "base0") == command  # of another base run
    write_runs(tmp_path / "runs", [0], STANDARD[:1])
    assert following(compose(words), removal, "base0").startswith("mda compare ")
