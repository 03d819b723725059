"""Scores and curvature that are taken in shards are those that are taken at once."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mda.estimator.score import SampleScores
from mda.stages import attribution, curvature
from mda.types import Stream


@pytest.mark.parametrize(
    ("n", "n_fit", "n_scored"),
    [(5, 1, 1), (48, 3, 3), (84, 6, 6), (4096, 16, 64), (100_000, 196, 98)],
)
def test_shards_are_small_where_samples_are_few(n, n_fit, n_scored):
    """A kill loses a sixteenth, and three processes that share 84 samples have two shards each."""
    ids = np.arange(n)[::-1]
    for sizes, wanted in ((curvature.FIT_SHARDS, n_fit), (attribution.SCORE_SHARDS, n_scored)):
        shards = curvature.sharded(ids, *sizes)
        assert len(shards) == wanted
        assert np.concatenate(shards).tolist() == ids.tolist()
        assert max(map(len, shards)) <= sizes[1]


def test_shards_change_no_score(traced, monkeypatch, tmp_path):
    """160 samples in ten shards, or in five: the same to the bit."""
    few, context = traced("estimator.fit_sequences=40", "estimator.batch_size=16")
    monkeypatch.setattr(attribution, "SCORE_SHARDS", (2, 32))
    many = tmp_path / "other"
    other, _ = traced("estimator.fit_sequences=40", "estimator.batch_size=16", f"output_dir={many}")
    for kind in ("scores", "curvature"):
        assert not list((context.store.root / kind).rglob("*_00000.safetensors"))
    assert len(few.traced.scores.sample_ids) == 160
    for name in ("sample_ids", "losses", "values"):
        np.testing.assert_array_equal(
            getattr(other.traced.scores, name), getattr(few.traced.scores, name)
        )


def test_shards_of_a_fit_change_no_more_than_the_rounding_of_its_sums(
    traced, monkeypatch, tmp_path
):
    whole, _ = traced("estimator.fit_sequences=20", f"output_dir={tmp_path / 'whole'}")
    monkeypatch.setattr(curvature, "FEW", 8)
    parts, _ = traced("estimator.fit_sequences=20", f"output_dir={tmp_path / 'parts'}")
    one, other = whole.traced.scores, parts.traced.scores
    np.testing.assert_allclose(
        other.values, one.values, rtol=1e-3, atol=1e-6 * abs(one.values).max()
    )


def anonymous_bytes() -> int:
    """Memory of this process that no file stands behind."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in x)
    return 1024 * int(line.split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_scores_of_many_samples_and_units_lie_on_disk(context_of, tmp_path):
    """100,000 samples of 144 units, 115 MB in float64, added up over two checkpoints, and saved."""
    n, units = 100_000, [SimpleNamespace(name=f"u{i}", parts=()) for i in range(144)]
    stream = Stream(0, 4, np.arange(0, n + 1, 4), np.arange(n), np.ones(n, np.float32))
    context, unused = context_of(), dict.fromkeys(
        ("settings", "corpus", "kind", "found", "members", "steps", "seed", "adam_eps", "base")
    )  # fmt: skip
    given: Any = unused | {"units": units, "sample_ids": stream.sample_ids, "stream": stream}
    work = attribution.ScoringWork(**given, at=context.at, part=tmp_path)

    def score(ids):
        values = torch.from_numpy(ids)[:, None] + 1000.0 * torch.arange(144)
        return SampleScores(values, torch.from_numpy(ids / 2))

    score(np.arange(4))
    before, most = anonymous_bytes(), 0
    first, total = (work.over_samples(name, score) for name in ("one", "two"))
    total.values_NU.add_(first.values_NU)
    most = anonymous_bytes() - before
    attribution._save(tmp_path, stream, units, total)
    scores = attribution.load_scores(tmp_path)
    most = max(most, anonymous_bytes() - before)
    assert scores.values.shape == (n, 144) and scores.values.dtype == np.float32
    assert scores.values.nbytes == 57.6e6
    assert scores.of("u3").tolist() == (2.0 * (np.arange(n) + 3000)).tolist()
    assert scores.losses.tolist() == (np.arange(n, dtype=np.float32) / 2).tolist()
    assert most < 30e6, f"{most:,} bytes"
    assert not list(tmp_path.glob("tmp*")), "the file in which they were added up is gone"
