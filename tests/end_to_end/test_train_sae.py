"""The program that trains an SAE: what it leaves, and what it finds again."""

import csv
import json
import shutil

from programs import leet, run, summary

from mda.sae.load import load_sae


def test_it_leaves_an_sae_and_says_how_good_it_is(tmp_path):
    first = run("train_sae", tmp_path, "logger=wandb")
    found = summary(first)
    assert found["times"]["built"] == ["base", "sae"]
    folder = tmp_path / "store" / "sae" / found["fingerprints"]["sae"]
    sae = load_sae(folder / "layers.0")
    assert (sae.n_features, sae.k) == (64, 4)
    assert found["results"]["hookpoint"] == str(sae.hook) == "L0.resid_post"
    assert 0 < found["results"]["explained_variance"] < 1
    for name in found["files"]:
        assert (first / name).stat().st_size > 0, name
    rows = list(csv.DictReader((first / "history.csv").open()))
    (offline,) = first.glob("wandb/offline-run-*")
    logged = [one["history"]["item"] for one in leet(offline) if one["type"] == "history"]
    points = {item["step"]: item["sae/explained_variance"] for item in logged}
    assert points == {int(row["step"]): float(row["explained_variance"]) for row in rows}

    second = summary(run("train_sae", tmp_path))
    assert second["times"]["built"] == []
    assert second["results"] == found["results"]

    source = shutil.copytree(folder / "layers.0", tmp_path / "published" / "layers.0")
    cfg = json.loads((source / "cfg.json").read_text())
    (source / "cfg.json").write_text(json.dumps(cfg | {"neuronpedia_id": "nano/0-res"}))
    words = ("unit=sae_feature", f"unit.source={source}", "report.dpi=30", "report.samples=2")
    traced = run("trace", tmp_path, *words)
    feature = summary(traced)["unit"].partition("F")[2]
    page = (traced / "top_samples.html").read_text("utf-8")
    assert f'href="https://www.neuronpedia.org/nano/0-res/{feature}"' in page
