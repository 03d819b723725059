"""Scores made elsewhere: every kind of file gives the window's samples their own scores."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from mda.config import compose
from mda.estimator.from_file import in_order, read_scores
from mda.pipeline import arm, trace
from mda.schema import ConfigError, FileConfig
from mda.stages.context import Context

IDS = np.array([7, 3, 11, 5])  # the window's samples in stream order
SCORES = np.array([0.5, -1.0, 2.0, 0.25])


def npy(path):
    np.save(path / "scores.npy", SCORES[:, None])
    return path / "scores.npy"


def csv(path):
    rows = ["sample_id,note,score", "5,d,0.25", "11,c,2.0", "99,x,9", "3,b,-1.0", "7,a,0.5"]
    (path / "scores.csv").write_text("\n".join(rows))
    return path / "scores.csv"


def parquet(path):
    order = np.argsort(IDS)
    table = pa.table({"sample_id": IDS[order], "L3H1": SCORES[order]})
    pq.write_table(table, path / "scores.parquet")
    return path / "scores.parquet"


def bergson(path, written=True, n_questions=2, better: bool | None = True):
    """As bergson 2.5.1 writes it: records of a score and whether it was written, two questions."""
    kind = {
        "names": ["score_0", "written_0", "score_1", "written_1"],
        "formats": ["float32", "bool", "float32", "bool"],
        "offsets": [0, 4, 8, 12],
        "itemsize": 16,
    }
    records = np.zeros(len(SCORES), np.dtype(kind))
    records["score_0"], records["score_1"] = SCORES, -SCORES
    records["written_0"] = records["written_1"] = True
    records["written_0"][2] = written
    records.tofile(path / "scores.bin")
    about = {"attribute_tokens": False, "num_items": 4, "num_rows": 4, "num_scores": n_questions}
    (path / "info.json").write_text(json.dumps(about | {"dtype": kind}))
    score = {"score_cfg": {"score": "individual", "higher_is_better": better}, "index_cfg": {}}
    if better is not None:
        (path / "config.yaml").write_text(yaml.safe_dump({"steps": [{"score": score}]}))
    return path


def bergson_candidates(path, rows=(0, 1, 2, 3)):
    bergson(path)
    np.save(path / "candidates.npy", np.array(rows))  # rows of the data set, not sample ids
    return path


def dattri(path):
    """As dattri-llm writes it: a row for each sample and step, a column for each question."""
    scores = torch.tensor([[2.0], [0.25], [-0.4], [0.5], [-0.6]])
    torch.save(scores, path / "scores.pt")
    ids = ["11", "5", "3", "7", "3"]
    about = {"row_train_ids": ids, "row_steps": [0, 0, 0, 0, 1], "test_ids": ["q"]}
    (path / "metadata.json").write_text(json.dumps(about))
    return path


@pytest.mark.parametrize("write", [npy, csv, parquet, bergson, bergson_candidates, dattri])
def test_each_sample_gets_its_own_score(tmp_path, write):
    path = write(tmp_path)
    found = in_order(read_scores(path, None), IDS, path)
    np.testing.assert_allclose(found, SCORES, rtol=1e-6)


def test_a_column_is_chosen_by_its_name(tmp_path):
    found = read_scores(bergson(tmp_path), "score_1")
    np.testing.assert_array_equal(found, -SCORES)
    with pytest.raises(ConfigError, match=r"score_2 is not in it; .* score_0, score_1"):
        read_scores(tmp_path, "score_2")


def test_scores_of_bergson_that_fall_with_influence_are_turned_around(tmp_path):
    """Approximate unrolling writes the change of the loss, and says so in its configuration."""
    found = read_scores(bergson(tmp_path, better=False), None)
    np.testing.assert_array_equal(found, -SCORES)


def write(path, text):
    (path / "scores.csv").write_text(text)
    return path / "scores.csv"


MISTAKES = [
    (lambda p: write(p, "sample_id,score\n7,1\n3,2\n11,3"), "no score for 1 of 4 samples.* 5;"),
    (lambda p: write(p, "sample_id,score\n7,1\n3,2\n11,nan\n5,1"), "1 scores are not .* sample 11"),
    (lambda p: write(p, "sample_id,score\n7,1\n7,2"), "sample 7 has several"),
    (lambda p: write(p, "id,score\n7,1"), "no column sample_id; it has id, score"),
    (lambda p: write(p, "sample_id,a,b\n7,1,2"), "column=score is not in it; expected one of a, b"),
    (lambda p: write(p, ""), "cannot be read"),
    (lambda p: bergson(p, written=False), "never written"),
    (lambda p: bergson(p, better=None), "no config.yaml with score_cfg.higher_is_better"),
    (lambda p: bergson_candidates(p, IDS), "scores 4 candidates of an earlier run"),
    (lambda p: npy(p).rename(p / "scores.bin.npy"), None),
    (lambda p: p, "expected .npy, .csv"),
]


@pytest.mark.parametrize("make, said", MISTAKES)
def test_what_does_not_fit_is_refused(tmp_path, make, said):
    path = make(tmp_path)
    if said is None:
        np.save(path, SCORES[:3])
        said = "has .3,. scores; expected 4"
    with pytest.raises(ConfigError, match=said):
        in_order(read_scores(path, None), IDS, path)


def test_an_array_with_python_objects_is_refused(tmp_path):
    np.save(tmp_path / "scores.npy", np.array([{}] * 4), allow_pickle=True)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_scores(tmp_path / "scores.npy", None)


def test_a_path_that_is_not_there_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"estimator.path=nowhere.npy"):
        FileConfig(path="nowhere.npy")


def test_the_scores_choose_what_an_arm_removes_and_another_content_is_another_trace(tmp_path):
    words = ["experiment=smoke", f"output_dir={tmp_path / 'out'}", "estimator=file",
             f"estimator.path={tmp_path / 'scores.npy'}",
             "capabilities.ablation=false"]  # fmt: skip
    n = 20 * 4
    scores = np.random.default_rng(0).normal(size=n)
    np.save(tmp_path / "scores.npy", scores)
    traced = trace(Context.of(compose(words))).traced
    np.testing.assert_allclose(traced.scores.values[:, 0], scores, rtol=1e-6)
    done = arm(Context.of(compose([*words, "intervention=remove"])))
    top = traced.scores.sample_ids[np.sort(np.argsort(-scores)[:8])]
    assert sorted(done.edited.changes.sample_ids) == sorted(top)

    turned = trace(Context.of(compose([*words, "estimator.negate=true"]))).traced
    np.testing.assert_allclose(turned.scores.values[:, 0], -scores, rtol=1e-6)
    np.save(tmp_path / "scores.npy", scores[::-1])
    other = trace(Context.of(compose(words))).traced
    assert len({one.fingerprint for one in (traced, turned, other)}) == 3
    moved = tmp_path / "elsewhere.npy"
    (tmp_path / "scores.npy").rename(moved)
    settings = replace(compose(words[:2]), estimator=FileConfig(path=str(moved)))
    assert trace(Context.of(settings)).traced.fingerprint != other.fingerprint  # by its name
