"""Several processes give what one gives: no sample twice, none missing."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from mda.estimator.ekfac import Labels, fit_curvature
from mda.estimator.score import make_directions, score_samples
from mda.estimator.sharding import gather_rows, rank_and_size, shard, sum_over_processes
from mda.model.pythia import scratch
from mda.schema import ModelConfig
from mda.unit.probe import draw_probe, probe_gradients
from mda.unit.subspace import BlockId, Subspace, all_heads


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20])
def test_shards_are_contiguous_complete_and_even(size):
    ids = np.arange(13)[::-1]
    parts = [shard(ids, rank, size) for rank in range(size)]
    assert np.array_equal(np.concatenate(parts), ids)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_needs_no_group():
    assert rank_and_size() == (0, 1)
    sums = {"a": torch.ones(2)}
    assert torch.equal(sum_over_processes(sums)["a"], sums["a"])
    assert torch.equal(gather_rows(sums["a"]), sums["a"])


def test_two_processes_agree_with_one(tmp_path):
    """This process is rank 0 of two; the other runs this file."""
    alone = fit_and_score()
    meeting = str(tmp_path / "meeting")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    other = subprocess.Popen([sys.executable, __file__, meeting], env=environment)
    try:
        together = as_rank(0, meeting)
    finally:
        assert other.wait(timeout=60) == 0
    assert torch.equal(alone["ids"], together["ids"])
    for name in ("values", "losses", "lambda"):  # float64, other order of some additions
        torch.testing.assert_close(together[name], alone[name], rtol=1e-9, atol=1e-12)


def as_rank(rank: int, meeting: str) -> dict[str, torch.Tensor]:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    try:
        return fit_and_score()
    finally:
        dist.destroy_process_group()


def fit_and_score() -> dict[str, torch.Tensor]:
    """EK-FAC on nine samples, a number that two processes do not share evenly."""
    shape = ModelConfig(n_layers=2, d_model=16, n_heads=2, d_ff=32, vocab_size=40, max_seq_len=32)
    model, subspace, units = scratch(shape, seed=0).double(), Subspace(), all_heads(2, 2)
    tokens = torch.randint(40, (9, 9), generator=torch.Generator().manual_seed(0))
    ids = np.arange(9)
    uniform = torch.full((40,), 1 / 40, dtype=torch.float64)
    probe = draw_probe("copy", uniform, n=3, length=5, seed=0)
    curvature = fit_curvature(model, lambda i: tokens[i], ids, [0, 1], subspace, Labels(), 4)
    gradients = probe_gradients(model, probe, [0, 1], subspace).blocks
    packed = make_directions(model, curvature.inverse_times(gradients, 0.1), subspace, units)
    mine = shard(ids)
    scores = score_samples(model, lambda i: tokens[i], mine, packed, units, batch_size=4)
    return {
        "ids": gather_rows(torch.from_numpy(mine)),
        "values": gather_rows(scores.values_NU),
        "losses": gather_rows(scores.losses_N),
        "lambda": curvature.eigenvalues[BlockId(1, "qk")],
    }


if __name__ == "__main__":
    as_rank(1, sys.argv[1])
