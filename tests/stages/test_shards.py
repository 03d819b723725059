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
from mda.types import Schedule


def test_shards_change_no_score(traced, monkeypatch, tmp_path):
    """80 samples in three shards, the last one shorter; curvature in three as well."""
    whole, _ = traced("estimator.fit_sequences=20", f"output_dir={tmp_path / 'whole'}")
    monkeypatch.setattr(attribution, "SCORE_SHARD", 30)
    monkeypatch.setattr(curvature, "FIT_SHARD", 8)
    parts, context = traced("estimator.fit_sequences=20", f"output_dir={tmp_path / 'parts'}")
    assert len(parts.traced.scores.sample_ids) > 2 * 30
    assert not list(context.store.root.rglob("*_00000.safetensors"))
    one, other = whole.traced.scores, parts.traced.scores
    assert one.sample_ids.tolist() == other.sample_ids.tolist()
    np.testing.assert_allclose(other.losses, one.losses, rtol=1e-5)
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
    order = Schedule(0, 4, np.arange(0, n + 1, 4), np.arange(n), np.ones(n, np.float32))
    located: Any = SimpleNamespace(units=units)
    nothing: Any = None
    work = attribution.ScoringWork(context_of(), nothing, nothing, located, order, (0, 1), tmp_path)

    def score(ids):
        values = torch.from_numpy(ids)[:, None] + 1000.0 * torch.arange(144)
        return SampleScores(values, torch.from_numpy(ids / 2))

    score(np.arange(4))
    before, most = anonymous_bytes(), 0
    first, total = (work.over_samples(name, score) for name in ("one", "two"))
    total.values_NU.add_(first.values_NU)
    most = anonymous_bytes() - before
    attribution._save(tmp_path, order, units, total)
    scores = attribution.load_scores(tmp_path)
    most = max(most, anonymous_bytes() - before)
    assert scores.values.shape == (n, 144) and scores.values.dtype == np.float32
    assert scores.values.nbytes == 57.6e6
    assert scores.of("u3").tolist() == (2.0 * (np.arange(n) + 3000)).tolist()
    assert scores.losses.tolist() == (np.arange(n, dtype=np.float32) / 2).tolist()
    assert most < 30e6, f"{most:,} bytes"
    assert not list(tmp_path.glob("tmp*")), "the file in which they were added up is gone"
