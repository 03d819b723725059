"""The command itself, in its own process: whole, killed and resumed, and read back from W&B."""

import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SMALL = ["experiment=smoke", "training.total_steps=400", "training.checkpoint_every=100"]


def command(out, *overrides):
    return [sys.executable, "experiments/train.py", *SMALL, f"output_dir={out}", *overrides]


def train(out, *overrides):
    done = subprocess.run(command(out, *overrides), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


def base_of(out):
    (manifest,) = Path(out).glob("store/base/*/manifest.json")
    return manifest.parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, train(out)


def test_the_folder_holds_what_the_summary_names(whole):
    out, folder = whole
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["program"] == "train"
    for name in [*summary["files"], summary["config"]]:
        assert (folder / name).stat().st_size > 0, name
    assert summary["fingerprints"]["base"] == base_of(out).name
    assert summary["results"]["steps"] == 400
    rows = list(csv.DictReader((folder / "curve.csv").open()))
    best = summary["results"]["heads"]["prefix_matching"][0]
    assert float(rows[-1][f"emergence/prefix_matching/{best['head']}"]) == best["score"]


def test_a_second_call_builds_nothing(whole):
    out, folder = whole
    again = train(out)
    assert again != folder
    assert json.loads((again / "summary.json").read_text())["times"]["built"] == []
    assert (again / "curve.csv").read_bytes() == (folder / "curve.csv").read_bytes()


def test_killed_at_a_random_moment_it_resumes_bit_identical(whole, tmp_path):
    out, _ = whole
    shutil.copytree(Path(out) / "store" / "corpus", tmp_path / "store" / "corpus")
    process = subprocess.Popen(
        command(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wanted = random.randint(20, 350)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        tables = list(tmp_path.glob("store/base/*.part/train.csv"))
        if tables and tables[0].read_text().count("\n") > wanted:
            break
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("store/base/*/manifest.json"))
    train(tmp_path)
    one, two = base_of(out), base_of(tmp_path)
    assert one.name == two.name
    for name in ("curve.csv", "train.csv"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    kept = sorted(p.name for p in (one / "checkpoints").iterdir())
    assert kept == sorted(p.name for p in (two / "checkpoints").iterdir())
    for step in kept:
        for file in ("model.safetensors", "optimizer.safetensors"):
            a, b = (load_file(base / "checkpoints" / step / file) for base in (one, two))
            assert all((a[key] == b[key]).all() for key in a), (step, file)


def leet(run):
    """A W&B offline run as W&B's own reader gives it: its records."""
    reader = [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json", run]
    done = subprocess.run(reader, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]


def test_wandb_s_own_reader_finds_every_row_of_the_curve(whole):
    out, folder = whole
    logged = train(out, "logger=wandb", "name=logged")
    (run,) = logged.glob("wandb/offline-run-*")
    records = leet(run)
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    curve = list(csv.DictReader((folder / "curve.csv").open()))
    points = [item for item in history if "val/loss" in item]
    assert len(points) == len(curve)
    for row, item in zip(curve, points, strict=True):
        for name in row.keys() - {"step"}:
            assert item[name] == float(row[name]), name
    losses = list(csv.DictReader((folder / "train.csv").open()))[19::20]
    logged_losses = [item["train/loss"] for item in history if "train/loss" in item]
    assert logged_losses == [float(row["train/loss"]) for row in losses]
    axes = {r["metric"]["name"]: r["metric"].get("step_metric") for r in records if "metric" in r}
    assert {axes[name] for name in curve[0].keys() - {"step"}} == {"step"}
    assert not any("*" in name for name in axes)
    (config,) = [r["run"]["config"]["update"] for r in records if r["type"] == "run"]
    assert config["model"]["d_model"] == 16
