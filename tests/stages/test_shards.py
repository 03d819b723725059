"""Scores and curvature that are taken in shards are those that are taken at once."""

import numpy as np

from mda.stages import attribution, curvature


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
