"""What a run becomes on the hub: tables that are read back, a card, and scores to use again."""

import csv
import json
import shutil

import datasets
import numpy as np
import pyarrow.parquet as parquet
import pytest
import yaml
from dataset_hub import serving
from huggingface_hub import constants, snapshot_download
from programs import run

from mda import store
from mda.config import compose
from mda.pipeline import trace
from mda.programs.push import push, upload
from mda.report.dataset import COLUMNS, Part, _command, origins, parts_of
from mda.schema import ConfigError
from mda.stages.context import Context

TOKEN, REPO = "hf_write", "someone/heads"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of a trace and of an arm, which share a store."""
    out = tmp_path_factory.mktemp("out")
    traced = run("trace", out, "report.dpi=30", "report.samples=2", "name=traced")
    arm = run("run", out, "report.dpi=30", "capabilities.ablation=false", "name=arm")
    return out, traced, arm


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(tmp_path / "hub", TOKEN) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)  # HF_ENDPOINT is read at import
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def front(folder):
    """The metadata of a card."""
    _, head, _ = (folder / "README.md").read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(head)


def test_scores_that_were_pushed_come_back_and_choose_samples_again(runs, hub, tmp_path, capsys):
    out, traced, _ = runs
    push(traced, tmp_path / "set", REPO, "cc-by-4.0", private=True)
    assert f"uploaded: {hub.url}/datasets/{REPO}" in capsys.readouterr().out
    assert hub.private == [REPO]
    again = snapshot_download(REPO, repo_type="dataset", local_dir=tmp_path / "again")
    sent = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    there = {path.name: path.read_bytes() for path in (hub.root / REPO).iterdir()}
    assert sent == there and {"README.md", "scores.parquet", "top_samples.html"} <= set(sent)

    written = list(csv.DictReader((traced / "scores.csv").open()))
    (read,) = datasets.load_dataset(again, cache_dir=str(tmp_path / "cache")).values()
    assert read["sample_id"] == [int(row["id"]) for row in written]
    assert read["score"] == [float(row["score"]) for row in written]

    words = ["experiment=smoke", f"output_dir={out}", "estimator=file", f"estimator.path={again}"]
    found = trace(Context.of(compose(words))).traced.scores
    np.testing.assert_allclose(found.values[:, 0], read["score"], rtol=1e-6)
    assert found.sample_ids.tolist() == read["sample_id"]


def test_a_card_says_what_was_traced_by_what_and_which_columns_there_are(runs, tmp_path):
    out, traced, _ = runs
    traced = shutil.copytree(traced, tmp_path / "run")
    with (traced / "top_samples.html").open("a") as page:  # as a comparison's page has commands
        page.write(f"<p>output_dir={out}</p>\n")
    push(traced, tmp_path / "set", None, "cc-by-4.0", private=False)
    card, summary = (tmp_path / "set" / "README.md").read_text("utf-8"), parts_of(traced)[0].summary
    head = front(tmp_path / "set")
    assert head["license"] == "cc-by-4.0"
    assert head["configs"][0] == {
        "config_name": "scores", "data_files": "scores.parquet", "default": True
    }  # fmt: skip
    for said in (
        f"{summary['unit']}, a unit of kind induction_head", "nano (peak_lr=",
        "n_layers=2, d_model=16",
        "synthetic, rows of 32 tokens", "ekfac (", "steps 20 to 40", "A score above 0 means",
        "2601.21996", str(summary["git"]["sha"] or "none"), "OWNER/NAME",
    ):  # fmt: skip
        assert said in card
    for column in ("sample_id", "step", "label", "loss", "score"):
        assert f"- `{column}`: {COLUMNS[column]}" in card
    kinds = (".md", ".yaml", ".html")
    told = [path for path in (tmp_path / "set").iterdir() if path.suffix in kinds]
    assert len(told) == 3 and not any(str(out) in path.read_text("utf-8") for path in told)


def test_a_published_model_is_named_by_its_repository_and_files_by_nothing(tmp_path):
    base = ["base=published", "base.repo=EleutherAI/pythia-160m", "base.steps=[0,512]"]
    pile = ["model=published", "training=pythia", "data=pile", "model.peak_lr=6e-4"]
    told = origins(compose([*base, *pile]))
    assert told["model"] == "EleutherAI/pythia-160m, as published"
    assert told["data"] == "pile, rows of 2048 tokens"
    (tmp_path / "scores.npy").touch()
    words = ["estimator=file", f"estimator.path={tmp_path}/scores.npy", "estimator.column=a"]
    assert origins(compose(words))["estimator"] == "file (column=a, negate=false)"


def test_the_command_on_a_card_is_one_that_a_shell_reads(tmp_path):
    told = "mda run 'output_dir=my outputs' 'report.runs=[a b]' intervention=remove"
    store.write_json(tmp_path / "job.json", {"command": told})
    command = _command(Part(".", tmp_path, {}))
    assert command == "mda run 'report.runs=[a b]' intervention=remove"


def test_an_arm_is_pushed_with_the_scores_that_chose_its_samples(runs, tmp_path):
    _, traced, arm = runs
    push(traced, tmp_path / "trace", None, "unknown", private=False)
    push(arm, tmp_path / "arm", None, "unknown", private=False)
    there, here = (
        parquet.read_table(tmp_path / name / "scores.parquet").drop_columns(
            ["label"] if name == "trace" else []
        )
        for name in ("trace", "arm")
    )
    assert here.column_names == there.column_names
    for name in here.column_names:
        np.testing.assert_allclose(here[name].to_numpy(), there[name].to_numpy(), rtol=1e-6)
    assert "**scores** (80 rows)" in (tmp_path / "arm" / "README.md").read_text("utf-8")
    assert {"edit.parquet", "curve.parquet"} <= {one.name for one in (tmp_path / "arm").iterdir()}


def test_runs_in_one_folder_share_their_tables_with_a_column_that_says_which(runs, tmp_path):
    _, _, arm = runs
    both = tmp_path / "both"
    for name in ("one", "two"):
        (both / name).mkdir(parents=True)
        for path in arm.iterdir():
            if path.is_file():
                (both / name / path.name).write_bytes(path.read_bytes())
    (both / "summary.json").write_text((arm / "summary.json").read_text())
    for name in ("job.json", "config.yaml"):
        (both / name).write_text((arm / name).read_text())
    push(both, None, None, "unknown", private=False)
    push(both, None, None, "unknown", private=False)  # the folder of its own is written anew
    table = datasets.load_dataset(str(both / "dataset"), "edit", cache_dir=str(tmp_path / "cache"))[
        "train"
    ]
    n = json.loads((arm / "summary.json").read_text())["intervention"]["n"]
    assert table["run"] == ["one"] * n + ["two"] * n
    assert set(table.column_names) <= set(COLUMNS), "every column of an edit is described"


def test_what_can_not_be_pushed_is_one_sentence(runs, hub, tmp_path, monkeypatch):
    _, traced, _ = runs
    with pytest.raises(ConfigError, match=r"expected the folder of a finished run"):
        push(tmp_path, None, None, "unknown", private=False)
    with pytest.raises(ConfigError, match=r"--folder .* a folder that is not there yet"):
        push(traced, tmp_path, None, "unknown", private=False)
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    with pytest.raises(ConfigError, match=r"--repo someone/heads: the hub answers 401; expected"):
        upload(tmp_path, REPO, private=False)
    with pytest.raises(ConfigError, match=r"--repo a/b/c: HFValidationError; expected"):
        upload(tmp_path, "a/b/c", private=False)
