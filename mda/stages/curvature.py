"""The curvature of a checkpoint, fitted in shards that a kill leaves standing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mda import store
from mda.data.stream import Corpus
from mda.estimator import ekfac
from mda.stages.context import Context, barrier, build_together, mine, rank
from mda.stages.runs import Run
from mda.types import ParameterBlock

FIT_SHARDS = (16, 512)  # see `sharded`; each is a file as large as the curvature
FEW = 16  # samples, of which every shard but the last is a multiple


def fitted_curvature(
    context: Context,
    corpus: Corpus,
    base: Run,
    sample_ids: np.ndarray,
    step: int,
    blocks: Sequence[ParameterBlock],
    labels: ekfac.Labels,
    batch_size: int,
    factors: str,
) -> ekfac.Curvature:
    """EK-FAC curvature at a checkpoint: an artifact of its own, whatever is measured or damped."""
    inputs = {
        "base": base.read_at(step),
        "step": step,
        "samples": store.hash_arrays(sample_ids),
        "blocks": {b.name: [ekfac.input_site(b), ekfac.output_site(b)] for b in blocks},
        "factors": factors,
        "labels": {"kind": labels.kind, "seed": labels.seed},
    }

    def build(part: Path) -> None:
        def shards(name: str, partial_sums: ekfac.PartialSums) -> ekfac.Sums:
            pieces = list(enumerate(sharded(sample_ids, *FIT_SHARDS)))
            for i, ids in context.bar(mine(pieces), f"EK-FAC {name}", len(mine(pieces))):
                path = part / f"{name}_{i:04d}.safetensors"
                if not path.exists():
                    store.write_safetensors(path, partial_sums(ids))
            barrier()
            return _merged([part / f"{name}_{i:04d}.safetensors" for i, _ in pieces])

        model = base.model(step)
        fitted = ekfac.fit_curvature(
            model, corpus.rows, sample_ids, blocks, labels, batch_size, shards, factors
        )
        barrier()  # every process has read the shards before the first one deletes them
        if rank() == 0:
            fitted.save(part / "curvature.safetensors")
            for path in [*part.glob("moments_*"), *part.glob("squares_*")]:
                path.unlink()

    code = ("mda.stages.curvature", *base.code)
    artifact = build_together(context.store, "curvature", inputs, build, code, base.device)
    return ekfac.Curvature.load(artifact.path / "curvature.safetensors", factors)


def sharded(sample_ids: np.ndarray, n: int, most: int) -> list[np.ndarray]:
    """Sample ids in some `n` shards of at most `most`, between which a kill loses nothing.

    Neither the number of processes nor the batch size enters: what several processes share is what
    one does alone, to the last bit, and any number of them goes on with it.
    """
    size = min(most, max(1, -(-len(sample_ids) // (n * FEW))) * FEW)
    return [sample_ids[i : i + size] for i in range(0, len(sample_ids), size)]


def _merged(paths: list[Path]) -> ekfac.Sums:
    """Sums over shards, added in the shards' order whoever computed them."""
    total: ekfac.Sums = {}
    for path in paths:
        for name, part in store.read_safetensors(path).items():
            total[name] = total[name] + part if name in total else part
    return total
