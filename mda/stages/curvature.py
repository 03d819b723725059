"""The curvature of a checkpoint, fitted in shards that survive a kill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from mda import store
from mda.estimator import ekfac
from mda.stages.context import Runtime, barrier, mine, rank
from mda.stages.declared import CURVATURE
from mda.stages.runs import Run
from mda.stages.stage import HashFile, Stage
from mda.store import Artifact

FIT_SHARDS = (16, 512)  # see `sharded`; each is a file as large as the curvature
FEW = 16  # samples, of which every shard but the last is a multiple


@dataclass(frozen=True)
class CurvatureStage(Stage[ekfac.Curvature]):
    """EK-FAC curvature at a checkpoint, independent of measurement and damping."""

    declared = CURVATURE
    together = True

    base: Run
    sample_ids: np.ndarray
    step: int
    fit: ekfac.Fit

    def inputs(self, hash_file: HashFile) -> Mapping[str, object]:
        fit, site_of = self.fit, (ekfac.input_site, ekfac.output_site)
        return {
            "base": self.base.read_at(self.step),
            "step": self.step,
            "samples": store.hash_arrays(self.sample_ids),
            "blocks": {block.name: [site(block) for site in site_of] for block in fit.blocks},
            "factors": fit.factors,
            "skip": fit.skip,
            "labels": asdict(fit.labels),
        }

    def code(self) -> tuple[str, ...]:
        return ("mda.stages.curvature", *self.base.code)

    def device(self) -> torch.device:
        return self.base.device

    def build(self, part: Path, at: Runtime) -> None:
        def shards(name: str, partial_sums: ekfac.PartialSums) -> ekfac.Sums:
            pieces = list(enumerate(sharded(self.sample_ids, *FIT_SHARDS)))
            for i, ids in at.bar(mine(pieces), f"EK-FAC {name}", len(mine(pieces))):
                path = part / f"{name}_{i:04d}.safetensors"
                if not path.exists():
                    store.write_safetensors(path, partial_sums(ids))
            barrier()
            return _merged([part / f"{name}_{i:04d}.safetensors" for i, _ in pieces])

        model, rows = self.base.model(self.step), self.base.corpus.rows
        fitted = ekfac.fit_curvature(model, rows, self.sample_ids, self.fit, shards)
        barrier()  # every process has read the shards before the first one deletes them
        if rank() == 0:
            fitted.save(part / "curvature.safetensors")
            for path in [*part.glob("moments_*"), *part.glob("squares_*")]:
                path.unlink()

    def open(self, artifact: Artifact, at: Runtime) -> ekfac.Curvature:
        return ekfac.Curvature.load(artifact.path / "curvature.safetensors", self.fit.factors)


def sharded(sample_ids: np.ndarray, n: int, most: int) -> list[np.ndarray]:
    """Returns sample ids in some `n` shards of at most `most`; each finished shard is kept.

    The shards do not depend on the number of processes or the batch size, so several processes give
    the result of one to the last bit, and any number of them can resume it.
    """
    size = min(most, max(1, -(-len(sample_ids) // (n * FEW))) * FEW)
    return [sample_ids[i : i + size] for i in range(0, len(sample_ids), size)]


def _merged(paths: list[Path]) -> ekfac.Sums:
    """Returns sums over shards, added in the shards' order whoever computed them."""
    total: ekfac.Sums = {}
    for path in paths:
        for name, part in store.read_safetensors(path).items():
            total[name] = total[name] + part if name in total else part
    return total
