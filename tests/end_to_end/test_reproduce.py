"""A run again out of its own folder: equal to the last bit, or refused with the reason."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import warm
import yaml
from programs import ROOT, run

from mda.config import read_saved
from mda.programs.reproduce import reproduce as repeat
from mda.schema import ConfigError

WINDOW = "intervention.window=[20,40]"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An arm and its base run."""
    out = tmp_path_factory.mktemp("out")
    arm = run("run", out, WINDOW, "intervention=augment", "seed=0")
    return {"train": run("train", out), "run": arm}


def reproduce(
    folder: Path, *more: str, outputs: Path | None = None, cwd: Path = ROOT, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """The program as a user calls it; `outputs` are those that a run in its own place lies in.

    A fresh interpreter hashes strings with another seed than the one that made the run.
    """
    out = outputs if outputs is not None else folder.resolve().parents[2]
    command = [sys.executable, str(ROOT / "experiments/reproduce.py"), str(folder), *more]
    args = [*command, f"--outputs={out}"]
    if fresh:
        return subprocess.run(args, cwd=cwd, capture_output=True, text=True)
    return warm.run(args, cwd, timeout=300)


def files(folder: Path) -> dict[str, int]:
    """Every file and link below a folder, and when it was last written."""
    return {
        str(path): path.lstat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def out(runs: dict[str, Path]) -> Path:
    return runs["run"].parents[2]


def edited(folder: Path, to: Path, name: str, old: str, new: str) -> Path:
    shutil.copytree(folder, to)
    text = (to / name).read_text()
    assert text.count(old) == 1, f"{old} stands {text.count(old)} times in {name}"
    (to / name).write_text(text.replace(old, new))
    return to


@pytest.fixture(scope="module")
def arm_again(runs):
    """The arm's reproduction, and the arms that the store had before."""
    before = set((out(runs) / "store" / "arm").iterdir())
    return reproduce(runs["run"], fresh=True), before


LONG = [pytest.param(program, marks=pytest.mark.long) for program in ("train", "trace")]


@pytest.mark.parametrize("program", ["run", *LONG])
def test_every_value_is_equal_and_the_last_stage_was_computed_again(runs, arm_again, program):
    if program == "run":
        done = arm_again[0]
    elif program == "train":
        done = reproduce(runs["train"], fresh=True)
    else:
        done = reproduce(run("trace", out(runs), WINDOW, "estimator=tracin"), fresh=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all equal, to the last bit" in done.stdout
    again = Path(done.stdout.strip().splitlines()[-1])
    (follows,) = (line for line in done.stdout.splitlines() if line.startswith("next: mda "))
    assert f"output_dir={again.parent}" in follows
    assert program == "run" or "experiment=smoke" in follows, "the run's own settings"
    built = json.loads((again / "summary.json").read_text())["times"]["built"]
    stages = {"train": ["base"], "trace": ["scores"], "run": ["arm", "capabilities"]}
    assert built == stages[program]


def test_from_scratch_computes_everything_again(runs):
    done = reproduce(runs["run"], "--from-scratch")
    assert done.returncode == 0, done.stdout + done.stderr
    again = Path(done.stdout.strip().splitlines()[-1])
    assert json.loads((again / "summary.json").read_text())["times"]["built"] == [
        "base",
        "scores",
        "arm",
        "capabilities",
    ]


def test_a_value_edited_by_hand_is_refused_with_its_key(runs, tmp_path):
    changed = edited(runs["run"], tmp_path / "r", "config.yaml", "fraction: 0.1", "fraction: 0.2")
    done = reproduce(changed, outputs=out(runs))
    assert done.returncode == 2
    assert "intervention.fraction is 0.2 in" in done.stderr and "was 0.1 in the run" in done.stderr
    assert "--anyway" in done.stderr
    went_on = reproduce(changed, "--anyway", outputs=out(runs))
    assert went_on.returncode == 1
    assert re.search(r"curve\.csv +val/loss +3 +\d", went_on.stdout)


def test_a_value_the_schema_refuses_is_named(runs, tmp_path):
    changed = edited(runs["run"], tmp_path / "r", "config.yaml", "fraction: 0.1", "fraction: 2")
    done = reproduce(changed, outputs=out(runs))
    assert done.returncode == 2
    assert done.stderr.startswith("error: intervention.fraction=2.0 is invalid; expected a number")


def test_another_version_of_a_package_is_refused(runs, tmp_path):
    torch = json.loads((runs["run"] / "job.json").read_text())["versions"]["torch"]
    changed = edited(
        runs["run"], tmp_path / "r", "job.json", f'"torch": "{torch}"', '"torch": "1.0"'
    )
    done = reproduce(changed, outputs=out(runs))
    assert done.returncode == 2
    assert f"torch is {torch} and was 1.0 in the run" in done.stderr


def test_an_input_with_another_hash_is_refused(runs, tmp_path):
    base = json.loads((runs["run"] / "summary.json").read_text())["fingerprints"]["base"]
    shutil.copytree(runs["run"], tmp_path / "r")
    summary = tmp_path / "r" / "summary.json"
    summary.write_text(summary.read_text().replace(base, "0123456789abcdef"))
    done = reproduce(tmp_path / "r", outputs=out(runs))
    assert done.returncode == 2
    assert f"the hash of its base is {base} and was 0123456789abcdef in the run" in done.stderr


def test_what_is_no_run_is_refused(tmp_path):
    done = reproduce(tmp_path, outputs=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path} is invalid; expected the folder of a run")


@pytest.mark.long
def test_relative_paths_are_those_of_the_run_s_own_place(tmp_path):
    project, elsewhere = tmp_path / "project", tmp_path / "else" / "where"
    project.mkdir()
    elsewhere.mkdir(parents=True)
    rows = np.random.default_rng(0).integers(1, 300, (300, 33), dtype=np.uint16)
    np.save(project / "rows.npy", rows)
    overrides = ["name=mine", "logger=csv", "data=tokens", "data.path=rows.npy", "data.seq_len=32",
                 "data.vocab_size=300", "data.held_out=32", "model.n_layers=1", "model.d_model=16",
                 "model.n_heads=2", "model.d_ff=32", "training.batch_size=4",
                 "training.total_steps=20", "training.warmup_steps=2", "training.threads=1",
                 "emergence.every=10", "emergence.n_sequences=4", "emergence.length=16",
                 "emergence.held_out=16"]  # fmt: skip
    program = [sys.executable, str(ROOT / "experiments" / "train.py"), *overrides]
    done = warm.run(program, project)
    assert done.returncode == 0, done.stderr
    project = project.rename(tmp_path / "moved")
    folder = Path("../../moved/outputs/runs/train/mine")
    done = reproduce(folder, outputs=Path("../../moved/outputs"), cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all equal, to the last bit" in done.stdout
    assert f"next: mda trace data=tokens data.path={project / 'rows.npy'} " in done.stdout
    rows[0, 0] += 1
    np.save(project / "rows.npy", rows)
    done = reproduce(folder, outputs=Path("../../moved/outputs"), cwd=elsewhere)
    assert done.returncode == 2 and "the hash of its corpus is" in done.stderr


def test_a_stranger_s_run_is_repeated_under_the_caller_s_outputs_alone(runs, tmp_path):
    """The run's configuration names its own outputs, and its folders lead there."""
    stranger = tmp_path / "stranger"
    (stranger / "runs" / "run").mkdir(parents=True)
    shutil.copytree(out(runs) / "store", stranger / "store")
    folder = stranger / "runs" / "run" / "x"
    shutil.copytree(runs["run"], folder)
    for name in ("config.yaml", "job.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace(str(out(runs)), str(stranger)))
    mine = tmp_path / "mine"
    before, original = files(stranger), files(out(runs))
    done = reproduce(folder, outputs=mine)  # nothing of it is in the caller's store
    assert done.returncode == 0, done.stdout + done.stderr
    again = Path(done.stdout.strip().splitlines()[-1])
    assert again.is_relative_to(mine / "runs" / "reproduce")
    assert files(stranger) == before and files(out(runs)) == original
    built = json.loads((again / "summary.json").read_text())["times"]["built"]
    assert built == ["base", "scores", "arm", "capabilities"]


def test_inputs_are_linked_and_nothing_is_built_through_a_link(runs, arm_again):
    done, arms = arm_again
    store = Path(done.stdout.strip().splitlines()[-1]).parent / "store"
    (base,) = (path for path in (store / "base").iterdir() if path.suffix != ".lock")
    assert base.is_symlink() and not (store / "base").is_symlink()
    assert any(path.is_dir() and not path.is_symlink() for path in (store / "arm").iterdir())
    assert set((out(runs) / "store" / "arm").iterdir()) == arms


@pytest.mark.parametrize("link", ["runs", "runs/reproduce"])
def test_outputs_that_lead_elsewhere_are_refused(runs, tmp_path, link):
    (tmp_path / "victim").mkdir()
    (tmp_path / "mine" / link).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "mine" / link).symlink_to(tmp_path / "victim")
    done = reproduce(runs["train"], outputs=tmp_path / "mine")
    assert done.returncode == 2 and "leads out of it" in done.stderr
    assert list((tmp_path / "victim").iterdir()) == []


def test_interpolation_into_the_environment_is_refused_and_not_resolved(runs, tmp_path):
    config = yaml.safe_load((runs["train"] / "config.yaml").read_text())
    config["report"]["title"] = "${oc.env:HOME}"
    shutil.copytree(runs["train"], tmp_path / "r")
    (tmp_path / "r" / "config.yaml").write_text(yaml.safe_dump(config))
    done = reproduce(tmp_path / "r", "--anyway", outputs=tmp_path / "mine")
    assert done.returncode == 2
    assert "report.title=${oc.env:HOME} is invalid" in done.stderr
    assert not (tmp_path / "mine").exists()


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
ENDLESS = {"bomb": BOMB, "deep": "[" * 50_000, "long": "a: 1\n" * 300_000, "binary": "\0\1"}


@pytest.mark.parametrize("name", ["config.yaml", "job.json", "summary.json"])
@pytest.mark.parametrize("content", [*ENDLESS, "/dev/zero", "pipe"])
def test_what_never_ends_is_refused(runs, tmp_path, name, content):
    shutil.copytree(runs["train"], tmp_path / "r")
    path = tmp_path / "r" / name
    path.unlink()
    if content == "pipe":
        os.mkfifo(path)
    elif content in ENDLESS:
        path.write_text(ENDLESS[content])
    else:
        path.symlink_to(content)
    with pytest.raises(ConfigError, match="is invalid; expected the folder of a run with"):
        read_saved(tmp_path / "r")


def test_a_table_that_never_ends_is_refused_before_any_work(runs, tmp_path):
    shutil.copytree(runs["train"], tmp_path / "r")
    (tmp_path / "r" / "curve.csv").unlink()
    (tmp_path / "r" / "curve.csv").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=r"curve\.csv is invalid; expected a table of a run"):
        repeat(tmp_path / "r", tmp_path / "mine", anyway=True, from_scratch=False)
    assert not (tmp_path / "mine").exists()


def test_an_alias_bomb_ends_the_program_at_once(runs, tmp_path):
    shutil.copytree(runs["train"], tmp_path / "r")
    (tmp_path / "r" / "config.yaml").write_text(BOMB)
    done = reproduce(tmp_path / "r", "--anyway", outputs=tmp_path / "mine")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "alias" in done.stderr and not (tmp_path / "mine").exists()


def test_commands_to_the_terminal_are_not_passed_on(runs, tmp_path):
    shutil.copytree(runs["train"], tmp_path / "r")
    job = json.loads((runs["train"] / "job.json").read_text())
    job["versions"]["torch"] = "\x1b]0;mine\x07"
    (tmp_path / "r" / "job.json").write_text(json.dumps(job))
    done = reproduce(tmp_path / "r", outputs=out(runs))
    assert done.returncode == 2 and "and was ?]0;mine? in the run" in done.stderr
