"""The base run's program: whole, killed and resumed, and read back from W&B."""

import csv
import random
import re
import shutil
from pathlib import Path

import pytest
from programs import command, kill_when, leet, run, summary
from safetensors.torch import load_file

LONGER = ("training.total_steps=300", "data.n_sequences=1300", "training.checkpoint_every=100")


def base_of(out: Path) -> Path:
    (manifest,) = out.glob("store/base/*/manifest.json")
    return manifest.parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, run("train", out, *LONGER)


def test_the_folder_holds_what_the_summary_names(whole):
    out, folder = whole
    found = summary(folder)
    assert found["program"] == "train"
    for name in [*found["files"], found["config"]]:
        assert (folder / name).stat().st_size > 0, name
    assert found["fingerprints"]["base"] == base_of(out).name
    assert found["results"]["steps"] == 300
    rows = list(csv.DictReader((folder / "curve.csv").open()))
    best = found["results"]["heads"]["prefix_matching"][0]
    assert float(rows[-1][f"emergence/prefix_matching/{best['head']}"]) == best["score"]


def test_a_second_call_builds_nothing(whole):
    out, folder = whole
    again = run("train", out, *LONGER)
    assert again != folder
    assert summary(again)["times"]["built"] == []
    assert (again / "curve.csv").read_bytes() == (folder / "curve.csv").read_bytes()


def test_killed_at_a_random_moment_it_resumes_bit_identical(whole, tmp_path):
    out, _ = whole
    shutil.copytree(out / "store" / "corpus", tmp_path / "store" / "corpus")
    wanted = random.randint(20, 250)

    def reached() -> bool:
        tables = list(tmp_path.glob("store/base/*.part/train.csv"))
        return bool(tables) and tables[0].read_text().count("\n") > wanted

    kill_when(command("train", tmp_path, *LONGER), reached)
    assert not [p for p in tmp_path.glob("store/base/*/manifest.json") if not p.parent.suffix]
    run("train", tmp_path, *LONGER)
    one, two = base_of(out), base_of(tmp_path)
    assert one.name == two.name
    for name in ("curve.csv", "train.csv"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    kept = sorted(p.name for p in (one / "checkpoints").iterdir())
    assert kept == sorted(p.name for p in (two / "checkpoints").iterdir())
    for step in kept:
        for file in ("model.safetensors", "optimizer.safetensors"):
            a, b = (load_file(base / "checkpoints" / step / file) for base in (one, two))
            assert a.keys() == b.keys()
            assert all((a[key] == b[key]).all() for key in a), (step, file)


def test_wandb_s_own_reader_finds_every_row_of_the_curve(whole):
    out, folder = whole
    logged = run("train", out, *LONGER, "logger=wandb", "name=logged")
    (offline,) = logged.glob("wandb/offline-run-*")
    records = leet(offline)
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    curve = list(csv.DictReader((folder / "curve.csv").open()))
    points = [item for item in history if "emergence/copy_gain" in item]
    assert len(points) == len(curve)
    for row, item in zip(curve, points, strict=True):
        measured = {name: float(value) for name, value in row.items() if value != "nan"}
        single = {name for name in measured if re.search(r"/L\d+H\d+$", name)}
        whole_model = {name: measured[name] for name in measured.keys() - single}
        assert single, "heads are in a table of their own"
        assert {name: item[name] for name in item if name in row} == whole_model
    steps = [int(item["step"]) for item in points if "val/loss" in item]
    assert steps == sorted({*range(0, int(curve[-1]["step"]), 20), int(curve[-1]["step"])})
    losses = list(csv.DictReader((folder / "train.csv").open()))[19::20]
    logged_losses = [item["train/loss"] for item in history if "train/loss" in item]
    assert logged_losses == [float(row["train/loss"]) for row in losses]
    axes = {r["metric"]["name"]: r["metric"].get("step_metric") for r in records if "metric" in r}
    assert {axes[name] for name in whole_model.keys() - {"step"}} == {"step"}
    assert not any("*" in name for name in axes)
    (config,) = [r["run"]["config"]["update"] for r in records if r["type"] == "run"]
    assert config["model"]["d_model"] == 16
