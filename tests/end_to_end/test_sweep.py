"""Sweeps as a user runs them: side by side, twice at once, killed and relaunched, read back."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import warm
from programs import ROOT, kill_parent_alone, kill_when, leet, summary

SEEDS = 1
ARMS = (
    "intervention=control,remove,augment", "estimator=ekfac,random",
    "seed=" + ",".join(map(str, range(SEEDS))),
)  # fmt: skip
JOBS = 6 * SEEDS
PARALLEL = ("hydra/launcher=parallel", "hydra.launcher.n_jobs=2")


def sweep(out: Path, name: str, *more: str) -> list[str]:
    program = [sys.executable, "experiments/run.py", "-m", "experiment=smoke"]
    return [*program, f"output_dir={out}", f"name={name}", *ARMS, *PARALLEL, *more]


def finish(command: list[str], code: int = 0) -> str:
    done = warm.run(command, ROOT)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def jobs(out: Path, name: str) -> list[dict]:
    folders = sorted((out / "runs" / "run" / name).glob("[0-9]*"), key=lambda path: int(path.name))
    return [json.loads((folder / "job.json").read_text()) for folder in folders]


def report(out: Path, name: str) -> dict[str, list[dict[str, str]]]:
    """The tables of compare.py on a sweep, without the folders in which its runs lie."""
    program = [sys.executable, "experiments/compare.py", "report.resamples=99", "report.dpi=30"]
    runs = f"report.runs=[{out / 'runs' / 'run' / name}]"
    folder = Path(finish([*program, f"output_dir={out}", runs]).splitlines()[-1])
    tables = {}
    for table in ("effects", "values", "verdicts"):
        with (folder / f"{table}.csv").open() as file:
            tables[table] = [{k: v for k, v in row.items() if k != "run"}
                             for row in csv.DictReader(file)]  # fmt: skip
    return tables


def built(out: Path, kind: str) -> list[str]:
    found = out.glob(f"store/{kind}/*/manifest.json")
    return sorted(path.parent.name for path in found if not path.parent.suffix)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, finish(sweep(out, "grid", "logger=wandb"))


@pytest.mark.slow
def test_shared_stages_are_built_once_and_the_table_tells_how_each_job_ended(whole):
    out, said = whole
    assert len(built(out, "base")) == SEEDS
    assert len(built(out, "scores")) == 2 * SEEDS  # of two estimators
    assert len(built(out, "arm")) == 5 * SEEDS  # one control serves both
    found = [job["status"] for job in jobs(out, "grid")]
    assert (found.count("done"), found.count("skipped")) == (5 * SEEDS, SEEDS)
    assert f"{JOBS} jobs: {5 * SEEDS} done, {SEEDS} skipped" in said
    lines = re.findall(r"^job \d+ skipped, all of it was in the store", said, re.MULTILINE)
    assert len(lines) == SEEDS
    logs = list((out / "runs" / "run" / "grid").glob("*/output.log"))
    assert len(logs) == JOBS


@pytest.mark.slow
def test_wandb_runs_of_a_sweep_share_its_group_and_no_history(whole):
    out, _ = whole
    ids = set()
    for job in sorted((out / "runs" / "run" / "grid").glob("[0-9]*")):
        (offline,) = job.glob("wandb/offline-run-*")
        records = leet(offline)
        (run,) = [r["run"] for r in records if r["type"] == "run"]
        config = summary(job)
        assert run["run_group"] == "grid" and run["job_type"] == "arm"
        assert run["config"]["update"]["seed"] == config["seed"]
        assert run["config"]["update"]["intervention"]["name"] == config["intervention"]["name"]
        ids.add(run["run_id"])
        history = [r["history"]["item"] for r in records if r["type"] == "history"]
        points = [item for item in history if "emergence/copy_gain" in item]
        curve = list(csv.DictReader((job / "curve.csv").open()))
        arm = [row for row in curve if int(row["step"]) >= config["window"]["start"]]
        gains = [float(row["emergence/copy_gain"]) for row in arm]
        assert gains == [point["emergence/copy_gain"] for point in points]
        assert any("heads.nrows" in item for item in history), "no table of heads"
        assert any("figures/heads.path" in item for item in history), "no heat map"
    assert len(ids) == JOBS


@pytest.mark.long
@pytest.mark.slow
def test_two_sweeps_at_the_same_time_build_each_stage_once(whole, tmp_path):
    both = [
        subprocess.Popen(sweep(tmp_path, name), cwd=ROOT, stdout=subprocess.DEVNULL)
        for name in ("one", "two")
    ]
    assert [process.wait() for process in both] == [0, 0]
    out, _ = whole
    counted = Counter(
        kind
        for path in tmp_path.glob("runs/run/*/*/summary.json")
        for kind in json.loads(path.read_text())["times"]["built"]
    )
    for kind in ("base", "scores", "arm"):
        assert built(tmp_path, kind) == built(out, kind)
        assert counted[kind] == len(built(out, kind)), f"{kind} was built more than once"
    trained = [job["status"] for name in ("one", "two") for job in jobs(tmp_path, name)]
    assert len(trained) == 2 * JOBS and set(trained) == {"done", "skipped"}
    wanted = report(out, "grid")
    assert report(tmp_path, "one") == wanted
    assert report(tmp_path, "two") == wanted


@pytest.mark.long
@pytest.mark.slow
def test_killed_halfway_and_relaunched_only_missing_work_is_done(whole, tmp_path):
    command = sweep(tmp_path, "killed")
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while len(built(tmp_path, "arm")) < 2 * SEEDS and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, "the sweep ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before, whole_jobs = built(tmp_path, "arm"), built(tmp_path, "capabilities")
    times = {name: (tmp_path / "store/arm" / name).stat().st_mtime_ns for name in before}
    finish(sweep(tmp_path, "again"))
    out, _ = whole
    assert built(tmp_path, "arm") == built(out, "arm")
    for name, then in times.items():
        assert (tmp_path / "store/arm" / name).stat().st_mtime_ns == then, "trained twice"
    statuses = [job["status"] for job in jobs(tmp_path, "again")]
    assert statuses.count("skipped") >= len(whole_jobs) > 0
    assert report(tmp_path, "again") == report(out, "grid")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_workers_end_with_a_sweep_that_is_killed_alone(tmp_path):
    kill_parent_alone(sweep(tmp_path, "killed"), tmp_path, "runs/run/killed/*/output.log")
    assert len(list(tmp_path.glob("runs/run/killed/*/summary.json"))) < JOBS


@pytest.mark.long
def test_a_dry_run_counts_what_is_missing_and_what_it_will_take(whole, tmp_path):
    out, _ = whole
    same_store(out, tmp_path)
    assert f"{JOBS} jobs; to build: nothing" in finish(sweep(tmp_path, "dry", "--dry-run"))
    for kind in ("arm", "capabilities"):
        shutil.rmtree(tmp_path / "store" / kind)
    said = finish(sweep(tmp_path, "dry", "--dry-run"))
    assert f"{JOBS} jobs; to build: {5 * SEEDS} arm, {5 * SEEDS} capabilities." in said
    assert re.search(r"estimate: [\d.]+ (s|min), 2 jobs side by side", said)
    shutil.rmtree(tmp_path / "store" / "scores")
    said = finish(sweep(tmp_path, "dry", "--dry-run"))
    assert f"to build: {5 * SEEDS} arm, {5 * SEEDS} capabilities, {2 * SEEDS} scores." in said
    impossible = finish(sweep(tmp_path, "dry", "--dry-run", "intervention.window=auto"))
    assert "fails: intervention.window=auto" in " ".join(impossible.split())
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_one_failing_job_stops_no_other_and_the_table_says_how_to_repeat_it(whole, tmp_path):
    out, _ = whole
    same_store(out, tmp_path)
    command = [sys.executable, "experiments/run.py", "-m", "experiment=smoke", "name=failing",
               f"output_dir={tmp_path}", "intervention=remove", "intervention.label=nothing,null",
               *PARALLEL]  # fmt: skip
    said = finish(command, code=1)
    first, second = jobs(tmp_path, "failing")
    assert (first["status"], second["status"]) == ("failed", "skipped")
    assert "nothing" in first["reason"] and "\n" not in first["reason"]
    again = re.findall(r"to run job 0 again:  (.*)", said)
    assert again and "intervention.label=nothing" in again[0]


def same_store(source: Path, target: Path) -> None:
    shutil.copytree(source / "store", target / "store")


@pytest.mark.long
@pytest.mark.slow
def test_submitit_runs_the_same_jobs(whole, tmp_path):
    out, _ = whole
    same_store(out, tmp_path)
    command = [part for part in sweep(tmp_path, "local") if part not in PARALLEL]
    finish([*command, "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"])
    assert {job["status"] for job in jobs(tmp_path, "local")} == {"skipped"}
    assert report(tmp_path, "local") == report(out, "grid")


def test_a_killed_job_leaves_its_configuration_and_says_it_is_unfinished(tmp_path):
    args = [sys.executable, "experiments/train.py", "experiment=smoke", f"output_dir={tmp_path}"]
    tables = "store/base/*.part/train.csv"
    kill_when([*args, "name=killed"], lambda: any(tmp_path.glob(tables)))
    job = json.loads((tmp_path / "runs/train/killed/job.json").read_text())
    assert job["status"] == "unfinished"
    assert job["config"]["training"]["total_steps"] == 60
    assert set(job["git"]) == {"sha", "dirty"} and job["versions"]["torch"]
    assert job["command"].startswith("mda train experiment=smoke")
