"""Tracing and retraining as programs: control is the base run, kills and processes do not show."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from programs import command, kill_when, run, summary
from safetensors.torch import load_file
from servers import serving

from mda import store
from mda.analysis.arms import read_run
from mda.config import compose
from mda.model.build import saved_config, scratch
from mda.schema.edit import Share

WINDOW = ("intervention.window=[20,40]",)
# A window of 2,400 samples: several shards of curvature and of scores.
WIDE = (
    "training.batch_size=60",
    "data.n_sequences=3700",
    "intervention.window=[20,60]",
    "emergence.every=20",
    "estimator.batch_size=8",
)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


def artifact(out: Path, kind: str, fingerprint: str) -> Path:
    return out / "store" / kind / fingerprint


def test_control_is_the_base_run_bit_for_bit(out):
    folder = run("run", out, *WINDOW, "intervention=control")
    prints = summary(folder)["fingerprints"]
    begun = store.read_json(artifact(out, "arm", prints["arm"]) / "manifest.json")
    assert summary(folder)["begun"] == {key: begun[key] for key in ("started", "study", "git")}
    ends = [
        load_file(artifact(out, kind, prints[kind]) / "checkpoints/step_40" / name)
        for name in ("model.safetensors", "optimizer.safetensors")
        for kind in ("base", "arm")
    ]
    for base, arm in (ends[:2], ends[2:]):
        assert base.keys() == arm.keys()
        assert all((base[key] == arm[key]).all() for key in base)
    base_rows = (artifact(out, "base", prints["base"]) / "curve.csv").read_text().splitlines()
    arm = artifact(out, "arm", prints["arm"])
    rows = (arm / "curve.csv").read_text().splitlines()
    assert rows[1:] == [row for row in base_rows[1:] if 20 <= int(row.split(",")[0]) <= 40]
    shown = list(csv.DictReader((folder / "curve.csv").open()))
    able = json.loads(
        (artifact(out, "capabilities", prints["capabilities"]) / "capabilities.json").read_text()
    )
    for mine, row in zip(shown, csv.DictReader((arm / "curve.csv").open()), strict=True):
        assert {key: mine[key] for key in row} == row
        assert all(mine[key] == "" for key in able) or mine["step"] == "40"
    assert {key: float(shown[-1][key]) for key in able} == able
    assert {"capabilities/real_loss/top_heads", "capabilities/label_margin"} <= set(able)


@pytest.fixture(scope="module")
def quarter(out):
    return run("run", out, *WINDOW, "intervention.fraction=0.25")


def test_an_arm_edits_what_its_plan_says(out, quarter):
    folder, found = quarter, summary(quarter)
    scores = artifact(out, "scores", found["fingerprints"]["scores"])
    values = np.load(scores / "values.npy")
    units = list(json.loads((scores / "units.json").read_text()))
    ids = np.load(scores / "sample_ids.npy")
    order = np.argsort(-values[:, units.index(found["unit"])], kind="stable")
    lines = (folder / "edit.csv").read_text().splitlines()
    changes = list(csv.DictReader(lines[1:]))
    assert {int(row["sample_id"]) for row in changes} == set(ids[order[:20]].tolist())
    assert {float(row["weight"]) for row in changes} == {0.0}
    assert found["intervention"]["n"] == len(changes) == 20
    manifest = json.loads(
        (artifact(out, "arm", found["fingerprints"]["arm"]) / "manifest.json").read_text()
    )
    meant = compose([*WINDOW, "intervention.fraction=0.25"]).intervention.edit("ekfac")
    assert read_run(folder).arm.edit == meant and meant.amount == Share(0.25)
    assert found["results"]["started"] == manifest["started"] <= manifest["created"]


def test_a_table_that_was_changed_after_the_run_is_not_compared(quarter, tmp_path):
    read_run(quarter)
    for name, damage in (
        ("curve.csv", lambda lines: [*lines[:2], *lines[3:]]),  # cut short before the end
        ("edit.csv", lambda lines: lines[:-1]),
    ):
        changed = shutil.copytree(quarter, tmp_path / name)
        lines = (changed / name).read_text().splitlines(keepends=True)
        (changed / name).write_text("".join(damage(lines)))
        with pytest.raises(ValueError, match=rf"{name} has changed since the run left it"):
            read_run(changed)


def test_the_trace_holds_what_the_summary_names(out):
    folder = run("trace", out, *WINDOW)
    found = summary(folder)
    for name in found["files"]:
        assert (folder / name).stat().st_size > 0, name
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    assert len(rows) == found["results"]["samples"] == 80
    assert found["scored_steps"] == [32], "the kept one nearest to the middle"
    samples = json.loads((folder / "top_samples.json").read_text())["samples"]
    for record in samples["The 50 highest"]:
        parts = np.array(record["influence"])  # written with four digits each
        assert abs(parts.sum() - record["score"]) <= 6e-4 * np.abs(parts).sum()
        losses = np.array(record["by_loss"])
        assert abs(losses.sum() - record["score"]) <= 6e-4 * np.abs(losses).sum()
        assert len(record["tokens"]) == len(parts) + 1 == len(losses) + 1 == 33
    assert sum(found["results"]["positions"]["bands"].values()) == pytest.approx(1)
    top = samples["The 50 highest"][0]
    assert top["score"] == max(float(row["score"]) for row in rows)


def scores_of(out: Path, folder: Path) -> dict[str, np.ndarray]:
    found = artifact(out, "scores", summary(folder)["fingerprints"]["scores"])
    return {name: np.load(found / f"{name}.npy") for name in ("sample_ids", "values", "losses")}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    out = tmp_path_factory.mktemp("wide")
    return out, scores_of(out, run("trace", out, *WIDE))


def same_store(source: Path, target: Path) -> None:
    for kind in ("corpus", "base"):
        shutil.copytree(source / "store" / kind, target / "store" / kind)


@pytest.mark.parametrize(
    "moment",
    ["curvature/*.part/squares_*", pytest.param("scores/*.part/*_*", marks=pytest.mark.long)],
)
def test_killed_while_scoring_it_resumes_bit_equal(wide, tmp_path, moment):
    source, wanted = wide
    same_store(source, tmp_path)
    kill_when(
        command("trace", tmp_path, *WIDE),
        lambda: any(tmp_path.glob(f"store/{moment}.safetensors")),
    )
    assert not [p for p in tmp_path.glob("store/scores/*/manifest.json") if not p.parent.suffix]
    found = scores_of(tmp_path, run("trace", tmp_path, *WIDE))
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_fetch_every_row_once(tmp_path):
    """Of a published run, whose window nobody has fetched before."""
    sizes = compose(["experiment=smoke"]).model
    for step in (0, 20, 40, 60):
        folder = tmp_path / f"revisions/step{step}"
        model = scratch(sizes, step)
        store.write_json(folder / "config.json", saved_config(model))
        store.write_safetensors(folder / "model.safetensors", dict(model.named_parameters()))
    (tmp_path / "shards").mkdir()
    rows = np.random.default_rng(0).integers(1, 300, (2000, 33))
    rows[::2, 20:] = rows[::2, :13]  # repetitions to count
    rows.astype("<u2").tofile(tmp_path / "shards/rows-0.bin")
    with serving(tmp_path / "shards") as server:
        words = ["base=published", f"base.folder={tmp_path / 'revisions'}", "data=pile"]
        words += ["base.other_training=true"]
        words += [f"data.source={server.url}", "data.files='rows-{shard}.bin'"]
        words += ["data.shard_bytes=1000000", "data.total_rows=2000", "data.rows_per_request=8"]
        words += ["base.steps=[0,20,40,60]", "intervention.window=[20,60]", "estimator=repetition"]
        torchrun = str(Path(sys.executable).parent / "torchrun")
        run("trace", tmp_path / "out", *words, prefix=[torchrun, "--nproc-per-node", "2"])
        asked = [start for _, start, *_ in server.requests]
    assert len(asked) == len(set(asked)) == 32 // 8 + 160 // 8  # held out, and in the window


def test_two_processes_score_what_one_does(wide, tmp_path):
    source, wanted = wide
    same_store(source, tmp_path)
    torchrun = str(Path(sys.executable).parent / "torchrun")
    folder = run("trace", tmp_path, *WIDE, prefix=[torchrun, "--nproc-per-node", "2"])
    found = scores_of(tmp_path, folder)
    assert np.array_equal(found["sample_ids"], wanted["sample_ids"])
    np.testing.assert_array_equal(found["values"], wanted["values"])
    assert len(list((tmp_path / "runs" / "trace").iterdir())) == 1
