"""The curvature of a checkpoint, fitted in shards that a kill leaves standing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import GPTNeoXForCausalLM

from mda import store
from mda.data.stream import Corpus
from mda.estimator import ekfac
from mda.model.pythia import load_weights
from mda.schema import EkfacConfig
from mda.stages.context import Context, barrier, build_together, mine, rank
from mda.stages.corpus import base_schedule
from mda.stages.locating import Unit
from mda.stages.runs import Run
from mda.unit.subspace import Subspace, Units

VERSION = 1
FIT_SHARD = 512  # samples between two points at which a kill loses nothing


def fitted_curvature(
    context: Context, rows: Corpus, base: Run, unit: Unit, units: Units, step: int
) -> ekfac.Curvature:
    """EK-FAC curvature at a checkpoint: an artifact of its own, whatever the probe or damping."""
    config, estimator = context.config, context.config.estimator
    assert isinstance(estimator, EkfacConfig)
    window = base_schedule(config, rows, unit.window.start, unit.window.end)
    ids = ekfac.fit_subset(window.sample_ids, estimator.fit_sequences, estimator.seed)
    subspace = Subspace(tuple(config.unit.blocks), config.unit.biases)
    labels = ekfac.Labels(estimator.labels, estimator.seed)
    inputs = {
        "version": VERSION,
        "base": base.fingerprint,
        "step": step,
        "samples": store.hash_arrays(ids),
        "layers": units.layers,
        "blocks": list(subspace.blocks),
        "biases": subspace.bias,
        "labels": {"kind": labels.kind, "seed": labels.seed},
    }

    def build(part: Path) -> None:
        model = model_at(context, base, step)
        fit = (units.layers, subspace, labels, estimator.batch_size)

        def passed(name: str, shard_sums) -> dict:
            shards = list(enumerate(sharded(ids, FIT_SHARD)))
            for i, shard in context.bar(mine(shards), f"EK-FAC {name}", len(mine(shards))):
                path = part / f"{name}_{i:04d}.safetensors"
                if not path.exists():
                    sums = shard_sums(shard)
                    store.write_safetensors(path, {"/".join(map(str, k)): sums[k] for k in sums})
            barrier()
            return _merged([part / f"{name}_{i:04d}.safetensors" for i, _ in shards])

        moments = passed("moments", lambda x: ekfac.sum_moments(model, rows.rows, x, *fit))
        basis = ekfac.eigenbasis({ekfac.SiteId(int(k[0]), k[1]): v for k, v in moments.items()})
        squares = passed(
            "squares", lambda x: ekfac.sum_squares(model, rows.rows, x, *fit, basis=basis)
        )
        barrier()  # every process has read the shards before the first one deletes them
        if rank() == 0:
            blocks = {ekfac.BlockId(int(k[0]), k[1]): v for k, v in squares.items()}
            ekfac.curvature(basis, blocks, len(ids)).save(part / "curvature.safetensors")
            for path in [*part.glob("moments_*"), *part.glob("squares_*")]:
                path.unlink()

    artifact = build_together(context.store, "curvature", inputs, build)
    return ekfac.Curvature.load(artifact.path / "curvature.safetensors")


def model_at(context: Context, base: Run, step: int) -> GPTNeoXForCausalLM:
    """The base run's model at a kept step, on the device of training."""
    model = load_weights(context.config.model, base.weights(step))
    if _on_gpu(context):
        torch.nn.Module.cuda(model)
    return model


def _on_gpu(context: Context) -> bool:
    return context.config.training.accelerator != "cpu" and torch.cuda.is_available()


def sharded(sample_ids: np.ndarray, size: int) -> list[np.ndarray]:
    """Sample ids in pieces of `size`, the last one shorter."""
    return [sample_ids[i : i + size] for i in range(0, len(sample_ids), size)]


def _merged(paths: list[Path]) -> dict[tuple[str, ...], torch.Tensor]:
    """Sums over shards, added in the shards' order whoever computed them."""
    total: dict[tuple[str, ...], torch.Tensor] = {}
    for path in paths:
        for name, part in store.read_safetensors(path).items():
            key = tuple(name.split("/"))
            total[key] = total[key] + part if key in total else part
    return total
