"""Scores of single tokens: the influence of the loss at every position of the window on the unit.

They are kept as float16, in shards that survive a kill, and read one shard at a time. A sample's
values are divided by their own scale, so that none is too small for float16: the relative rounding
error is 2^-11. A window of 16,384 samples of 128 tokens takes 4 MB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from mda import store
from mda.cost import scoring
from mda.estimator.estimator import TokenEstimator
from mda.stages.attribution import SCORE_SHARDS, Traced, work_of
from mda.stages.context import Runtime, barrier, mine
from mda.stages.corpus import fetch
from mda.stages.curvature import sharded
from mda.stages.declared import TOKENS
from mda.stages.found import Made
from mda.stages.plugin import estimator_of, module_of
from mda.stages.stage import HashFile, Stage
from mda.store import Artifact
from mda.types import TokenScores

LARGEST = 2.0**15  # of a sample's values in its file


@dataclass(frozen=True)
class TracedTokens(Made):
    """Scores of the window's tokens for the unit found."""

    traced: Traced

    @property
    def scores(self) -> TokenScores:
        """The scores, which are read one shard at a time."""
        samples, folder = self.traced.scores, self.folder
        n = len(sharded(samples.sample_ids, *SCORE_SHARDS))

        def parts() -> Iterator[np.ndarray]:
            for i in range(n):
                yield unpacked(store.read_safetensors(_file(folder, i)))

        return TokenScores(samples.sample_ids, samples.steps, parts)


@dataclass(frozen=True)
class TokensStage(Stage[TracedTokens]):
    """The part of each token's loss in the unit's score of its sample."""

    declared = TOKENS
    costs = staticmethod(scoring.token_scores)
    together = True

    traced: Traced

    def inputs(self, hash_file: HashFile) -> Mapping[str, object]:
        located = self.traced.located
        unit = {"members": located.members_key, "together": located.together}
        return {"scores": self.traced.fingerprint, "unit": unit}

    def code(self) -> tuple[str, ...]:
        estimator = module_of(self.traced.settings.estimator)
        return ("mda.stages.tokens", estimator, *self.traced.located.base.code)

    def device(self) -> torch.device:
        return self.traced.located.base.device

    def build(self, part: Path, at: Runtime) -> None:
        traced = self.traced
        work = work_of(traced.located, traced.settings, traced.steps, at, part)
        fetch(at, work.corpus, work.sample_ids, together=True)
        scorer = cast(TokenEstimator, estimator_of(traced.settings)).target_influence(work)
        todo = mine(list(enumerate(sharded(work.sample_ids, *SCORE_SHARDS))))
        for i, ids in at.bar(todo, "scores of tokens", len(todo)):
            if not (path := _file(part, i)).exists():
                store.write_safetensors(path, packed(scorer(ids)))
        barrier()

    def open(self, artifact: Artifact, at: Runtime) -> TracedTokens:
        return TracedTokens(artifact, self.traced)


def packed(values_NT: Tensor) -> dict[str, Tensor]:
    """Returns values as float16 and each sample's scale, for a safetensors file."""
    scale_N = values_NT.abs().amax(1).double() / LARGEST
    scale_N = torch.where(scale_N > 0, scale_N, 1.0)  # a sample of zeros stays zeros, not NaN
    return {"values": (values_NT / scale_N[:, None]).half(), "scales": scale_N.float()}


def unpacked(tensors: dict[str, Tensor]) -> np.ndarray:
    """Returns the values that `packed` was given, float32 [n, T]."""
    return (tensors["values"].float() * tensors["scales"][:, None]).numpy()


def _file(folder: Path, shard: int) -> Path:
    return folder / f"tokens_{shard:05d}.safetensors"
