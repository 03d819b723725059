"""Scores of single tokens: what the loss at every position of the window did for the unit.

They are kept as float16, in shards that a kill leaves standing, and read one shard at a time. A
sample's values are divided by a scale of its own, so that none is too small for float16: they are
rounded to 2^-11 of themselves. A window of 16,384 samples of 128 tokens takes 4 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from mda import store
from mda.data.stream import Corpus
from mda.estimator.estimator import TokenEstimator
from mda.stages.attribution import SCORE_SHARDS, ScoringWork, Traced
from mda.stages.context import Context, barrier, build_together, mine
from mda.stages.corpus import base_schedule, fetch
from mda.stages.curvature import sharded
from mda.stages.found import Made
from mda.stages.locating import Located
from mda.stages.plugin import estimator_of, module_of
from mda.stages.runs import Run
from mda.types import TokenScores

LARGEST = 2.0**15  # of a sample's values in its file


@dataclass(frozen=True)
class TracedTokens(Made):
    """Scores of the window's tokens for the unit that was found."""

    traced: Traced

    @property
    def scores(self) -> TokenScores:
        """They are read one shard at a time."""
        samples, folder = self.traced.scores, self.folder
        n = len(sharded(samples.sample_ids, *SCORE_SHARDS))

        def parts() -> Iterator[np.ndarray]:
            for i in range(n):
                yield unpacked(store.read_safetensors(_file(folder, i)))

        return TokenScores(samples.sample_ids, samples.steps, parts)


def score_tokens(
    context: Context, corpus: Corpus, base: Run, located: Located, traced: Traced
) -> TracedTokens:
    """What the loss of every token of the window adds to the unit's score of its sample."""
    config = context.config

    def build(part: Path) -> None:
        schedule = base_schedule(config, corpus, located.window.start, located.window.end)
        fetch(context, corpus, schedule.sample_ids, together=True)
        work = ScoringWork(context, corpus, base, located, schedule, traced.steps, part)
        scorer = cast(TokenEstimator, estimator_of(config.estimator)).target_influence(work)
        todo = mine(list(enumerate(sharded(schedule.sample_ids, *SCORE_SHARDS))))
        for i, ids in context.bar(todo, "scores of tokens", len(todo)):
            if not (path := _file(part, i)).exists():
                store.write_safetensors(path, packed(scorer(ids)))
        barrier()

    inputs = {
        "scores": traced.fingerprint,
        "unit": located.members_key,
        "together": located.together,
    }
    code = ("mda.stages.tokens", module_of(config.estimator.estimator), *base.code)
    artifact = build_together(context.store, "tokens", inputs, build, code, base.device)
    return TracedTokens(artifact, traced)


def packed(values_NT: Tensor) -> dict[str, Tensor]:
    """Values as float16 and each sample's scale, for a safetensors file."""
    scale_N = values_NT.abs().amax(1).double() / LARGEST
    scale_N = torch.where(scale_N > 0, scale_N, 1.0)
    return {"values": (values_NT / scale_N[:, None]).half(), "scales": scale_N.float()}


def unpacked(tensors: dict[str, Tensor]) -> np.ndarray:
    """What `packed` was given, float32 [n, T]."""
    return (tensors["values"].float() * tensors["scales"][:, None]).numpy()


def _file(folder: Path, shard: int) -> Path:
    return folder / f"tokens_{shard:05d}.safetensors"
