"""A run again out of its own folder: equal to the last bit, or refused with the reason."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from programs import ROOT, run

WINDOW = "intervention.window=[20,40]"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A base run, a trace and an arm."""
    out = tmp_path_factory.mktemp("out")
    return {
        "train": run("train", out),
        "trace": run("trace", out, WINDOW, "estimator=tracin"),
        "run": run("run", out, WINDOW, "intervention=augment", "seed=0"),
    }


def reproduce(
    folder: Path, *more: str, outputs: Path | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """The program as a user calls it, in a second at most as many bytes as it is given."""
    out = outputs if outputs is not None else folder.resolve().parents[2]
    command = [sys.executable, str(ROOT / "experiments/reproduce.py"), str(folder), *more]
    return subprocess.run(
        [*command, f"--outputs={out}"], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def edited(folder: Path, to: Path, name: str, old: str, new: str) -> Path:
    shutil.copytree(folder, to)
    text = (to / name).read_text()
    assert text.count(old) == 1, f"{old} stands {text.count(old)} times in {name}"
    (to / name).write_text(text.replace(old, new))
    return to


@pytest.mark.parametrize("program", ["train", "trace", "run"])
def test_every_value_is_equal_and_the_last_stage_was_computed_again(runs, program):
    done = reproduce(runs[program])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all equal, to the last bit" in done.stdout
    again = Path(done.stdout.strip().splitlines()[-1])
    built = json.loads((again / "summary.json").read_text())["times"]["built"]
    assert built == [{"train": "base", "trace": "scores", "run": "arm"}[program]]


def test_from_scratch_computes_everything_again(runs):
    done = reproduce(runs["run"], "--from-scratch")
    assert done.returncode == 0, done.stdout + done.stderr
    again = Path(done.stdout.strip().splitlines()[-1])
    assert json.loads((again / "summary.json").read_text())["times"]["built"] == [
        "base",
        "scores",
        "arm",
    ]


def test_a_value_edited_by_hand_is_refused_with_its_key(runs, tmp_path):
    changed = edited(runs["run"], tmp_path / "r", "config.yaml", "fraction: 0.1", "fraction: 0.2")
    done = reproduce(changed)
    assert done.returncode == 2
    assert "intervention.fraction is 0.2 in" in done.stderr and "was 0.1 in the run" in done.stderr
    assert "--anyway" in done.stderr
    went_on = reproduce(changed, "--anyway")
    assert went_on.returncode == 1
    assert re.search(r"curve\.csv +val/loss +3 +\d", went_on.stdout)


def test_a_value_the_schema_refuses_is_named(runs, tmp_path):
    changed = edited(runs["run"], tmp_path / "r", "config.yaml", "fraction: 0.1", "fraction: 2")
    done = reproduce(changed)
    assert done.returncode == 2
    assert done.stderr.startswith("error: intervention.fraction=2.0 is refused; accepted: a number")


def test_another_version_of_a_package_is_refused(runs, tmp_path):
    torch = json.loads((runs["run"] / "job.json").read_text())["versions"]["torch"]
    changed = edited(
        runs["run"], tmp_path / "r", "job.json", f'"torch": "{torch}"', '"torch": "1.0"'
    )
    done = reproduce(changed)
    assert done.returncode == 2
    assert f"torch is {torch} and was 1.0 in the run" in done.stderr


def test_an_input_with_another_hash_is_refused(runs, tmp_path):
    base = json.loads((runs["run"] / "summary.json").read_text())["fingerprints"]["base"]
    shutil.copytree(runs["run"], tmp_path / "r")
    summary = tmp_path / "r" / "summary.json"
    summary.write_text(summary.read_text().replace(base, "0123456789abcdef"))
    done = reproduce(tmp_path / "r")
    assert done.returncode == 2
    assert f"the hash of its base is {base} and was 0123456789abcdef in the run" in done.stderr


def test_what_is_no_run_is_refused(tmp_path):
    done = reproduce(tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path} is refused; accepted: the folder of a run")
