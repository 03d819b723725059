"""Samples are packed for the page without losing what a reader looks for."""

import numpy as np
import pytest
from made_up_runs import STANDARD, write_runs
from made_up_traces import write_trace

from mda import store
from mda.report.samples import pack_samples, read_samples, traces_of


def test_tokens_and_influence_survive_packing(tmp_path):
    folder = write_trace(tmp_path / "trace")
    records = [
        r for g in store.read_json(folder / "top_samples.json")["samples"].values() for r in g
    ]
    packed = pack_samples([read_samples(folder)], tmp_path)
    assert packed is not None and packed["cut"] is None
    assert len(packed["samples"]) == len(records) == 24
    for sample, record in zip(packed["samples"], records, strict=True):
        assert [packed["vocabulary"][t] for t in sample["tokens"]] == record["tokens"]
        assert packed["labels"][sample["label"]] == record["label"]
        back = np.array(sample["levels"]) / 100 * sample["largest"]
        truth = np.array([*record["influence"], 0.0])
        assert max(map(abs, sample["levels"])) == 100
        assert np.abs(back - truth).max() <= 0.012 * np.abs(truth).max()
        for key in ("id", "step", "score", "loss"):
            assert sample[key] == record[key]


def test_long_samples_are_cut_to_their_most_influential_stretch(tmp_path):
    folder = write_trace(tmp_path, n=2)
    content = store.read_json(folder / "top_samples.json")
    for group in content["samples"].values():
        for record in group:
            record["influence"] = [0.0] * 128
            record["influence"][60:70] = [1.0] * 10
            record["influence"][100] = 2.0
    store.write_json(folder / "top_samples.json", content)
    packed = pack_samples([read_samples(folder)], tmp_path, budget=40)
    assert packed is not None and packed["cut"] == 10
    for sample in packed["samples"]:
        assert sample["first"] == 60 and len(sample["tokens"]) == 10
        assert sample["levels"] == [50] * 10  # of the whole sample's largest, which is cut off


def test_several_traces_stay_told_apart(tmp_path):
    folders = [write_trace(tmp_path / str(seed), n=3, seed=seed) for seed in (0, 1)]
    packed = pack_samples([read_samples(folder) for folder in folders], tmp_path)
    assert packed is not None
    assert [s["file"] for s in packed["sources"]] == ["0/top_samples.json", "1/top_samples.json"]
    assert [s["name"] for s in packed["sources"]] == ["L2H0, ekfac, seed 0", "L2H1, ekfac, seed 1"]
    assert [s["source"] for s in packed["samples"]] == [0] * 6 + [1] * 6


def test_no_traces_no_samples(tmp_path):
    assert pack_samples([], tmp_path) is None


def test_traces_are_found_by_the_scores_they_belong_to(tmp_path):
    write_runs(tmp_path / "sweep", [0, 1], STANDARD[:2])
    for name, seed in (("a", 0), ("again", 0), ("b", 1), ("other", 2)):
        write_trace(tmp_path / "traces" / name, seed=seed)
    found = traces_of([tmp_path / "sweep"], tmp_path / "traces")
    assert [path.name for path in found] == ["a", "b"]


def test_a_folder_that_is_no_trace_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not the folder of a finished trace"):
        read_samples(tmp_path)
    folder = write_trace(tmp_path, n=1)
    content = store.read_json(folder / "top_samples.json")
    content["samples"]["The 1 highest"][0]["influence"] = [1.0]
    store.write_json(folder / "top_samples.json", content)
    with pytest.raises(ValueError, match="sample 0 has tokens without influence"):
        read_samples(folder)
