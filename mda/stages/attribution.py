"""From a located unit to scores: what each sample of the window did for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import GPTNeoXForCausalLM

from mda import store
from mda.data.stream import Corpus
from mda.estimator import tracin
from mda.estimator.random_scores import random_scores
from mda.estimator.score import Directions, make_directions, score_batch, score_samples
from mda.schema import EkfacConfig, RandomConfig, TracinConfig
from mda.stages.context import Context, barrier, build_together, mine, rank, without
from mda.stages.corpus import base_schedule
from mda.stages.curvature import fitted_curvature, model_at, sharded
from mda.stages.locating import Unit, scored_steps
from mda.stages.runs import Run
from mda.training import checkpoint
from mda.training.optimizer import learning_rate
from mda.types import Schedule, Scores
from mda.unit.probe import Probe, draw_probe, probe_gradients
from mda.unit.subspace import BlockTensors, Subspace, Units, all_heads, mechanism
from mda.unit.tokens import token_distribution

VERSION = 1
NOT_INPUTS = ("batch_size", "checkpoint", "checkpoints", "n_checkpoints")  # `steps` says which
SCORE_SHARD = 1024  # samples between two points at which a kill loses nothing


@dataclass(frozen=True)
class Traced:
    """Scores of the window, with what is needed to go on from them."""

    scores: Scores
    fingerprint: str
    folder: Path
    built: bool
    wall_s: float
    steps: tuple[int, ...]  # the checkpoints that were scored


def score(context: Context, rows: Corpus, base: Run, unit: Unit) -> Traced:
    """Influence of every sample of the window on every head (and on the mechanism)."""
    config = context.config
    window = base_schedule(config, rows, unit.window.start, unit.window.end)
    steps = scored_steps(context, base, unit)
    units = _units(config.model.n_layers, config.model.n_heads, unit)
    inputs = {
        "version": VERSION,
        "base": base.fingerprint,
        "window": [unit.window.start, unit.window.end],
        "units": _as_text(units),
        "estimator": without(asdict(config.estimator), *NOT_INPUTS),
        "steps": list(steps),
    }
    if not isinstance(config.estimator, RandomConfig):
        inputs["unit"] = without(asdict(config.unit), "name", "locate", "k", "metric", "threshold")

    def build(part: Path) -> None:
        if isinstance(config.estimator, RandomConfig):
            values = random_scores(window.sample_ids, len(units.names), config.estimator.seed)
            losses = np.full(len(window.sample_ids), np.nan, dtype=np.float32)
            _save(part, window, units, values.numpy(), losses)
        else:
            _score_shards(context, rows, base, unit, units, window, steps, part)

    artifact = build_together(context.store, "scores", inputs, build)
    return Traced(
        _load(artifact.path),
        artifact.fingerprint,
        artifact.path,
        artifact.built,
        artifact.manifest["wall_s"],
        steps,
    )


def directions(
    context: Context, rows: Corpus, base: Run, unit: Unit, units: Units, step: int
) -> tuple[GPTNeoXForCausalLM, Directions]:
    """The model at a step, and what a sample's gradient is multiplied with there.

    EK-FAC: H^-1 grad f. TracIn: eta grad f, with Adam's step sizes where asked for.
    """
    config, estimator = context.config, context.config.estimator
    model = model_at(context, base, step)
    subspace = Subspace(tuple(config.unit.blocks), config.unit.biases)
    together = unit.heads if unit.name == "mechanism" else ()
    gradients = probe_gradients(
        model, make_probe(context, rows), units.layers, subspace, together
    ).blocks
    if isinstance(estimator, EkfacConfig):
        curvature = fitted_curvature(context, rows, base, unit, units, step)
        blocks: BlockTensors = curvature.inverse_times(gradients, estimator.damping)
    else:
        assert isinstance(estimator, TracinConfig)
        eta = learning_rate(step, config.training) if estimator.lr_weights else 1.0
        sizes = None
        if estimator.adam_preconditioning:
            moments = checkpoint.second_moments(base.checkpoint(step), config.training.beta2)
            sizes = tracin.adam_step_sizes(
                model, moments, units.layers, subspace, config.training.eps
            )
        blocks = tracin.directions(gradients, eta, sizes)
    return model, make_directions(model, blocks, subspace, units)


def make_probe(context: Context, rows: Corpus) -> Probe:
    """The unit's probe: drawn from the corpus' tokens, the same for every checkpoint."""
    probe = context.config.unit.probe
    return draw_probe(
        probe.target,
        token_distribution(rows.counts, rows.special_ids, probe.distribution),
        n=probe.n_sequences,
        length=probe.length,
        repeats=probe.repeats,
        seed=probe.seed,
    )


def token_influence(
    context: Context, rows: Corpus, base: Run, unit: Unit, traced: Traced, sample_ids: np.ndarray
) -> np.ndarray:
    """Influence of every token of some samples on the unit, [n, T], summed over checkpoints.

    Position t is that of the input token at which the unit's parameters act; a row's sum is the
    sample's score.
    """
    units = _units(context.config.model.n_layers, context.config.model.n_heads, unit)
    total = np.zeros((len(sample_ids), rows.seq_len))
    for step in traced.steps:
        model, packed = directions(context, rows, base, unit, units, step)
        influence_BTU, _ = score_batch(model, rows.rows(sample_ids), packed, units)
        total += influence_BTU[..., units.names.index(unit.name)].cpu().double().numpy()
    return total


def _score_shards(
    context: Context,
    rows: Corpus,
    base: Run,
    unit: Unit,
    units: Units,
    window: Schedule,
    steps: tuple[int, ...],
    part: Path,
) -> None:
    estimator = context.config.estimator
    assert isinstance(estimator, EkfacConfig | TracinConfig)
    shards = list(enumerate(sharded(window.sample_ids, SCORE_SHARD)))
    values = np.zeros((len(window.sample_ids), len(units.names)))
    losses = np.zeros(len(window.sample_ids), dtype=np.float32)
    for step in steps:
        model, packed = directions(context, rows, base, unit, units, step)
        todo = mine(shards)
        for i, shard in context.bar(todo, f"scores at step {step}", len(todo)):
            path = part / f"{step}_{i:05d}.safetensors"
            if not path.exists():
                batch = estimator.batch_size
                found = score_samples(model, rows.rows, shard, packed, units, batch)
                store.write_safetensors(path, {"values": found.values_NU, "losses": found.losses_N})
        barrier()
        if rank() > 0:  # the first process merges, and deletes what it has merged
            continue
        parts = [store.read_safetensors(part / f"{step}_{i:05d}.safetensors") for i, _ in shards]
        values += torch.cat([found["values"] for found in parts]).double().numpy()
        losses = torch.cat([found["losses"] for found in parts]).float().numpy()
    if rank() == 0:
        _save(part, window, units, values.astype(np.float32), losses)
        for path in part.glob("*_*.safetensors"):
            path.unlink()


def _save(
    part: Path, window: Schedule, units: Units, values: np.ndarray, losses: np.ndarray
) -> None:
    rows = np.diff(window.offsets)
    store.write_npy(part / "sample_ids.npy", window.sample_ids)
    store.write_npy(part / "steps.npy", np.repeat(np.arange(window.start, window.end), rows))
    store.write_npy(part / "values.npy", values)
    store.write_npy(part / "losses.npy", losses)
    store.write_json(part / "units.json", _as_text(units))


def _load(folder: Path) -> Scores:
    names = ("sample_ids", "steps", "values", "losses")
    arrays = {name: store.read_npy(folder / f"{name}.npy") for name in names}
    return Scores(units=tuple(store.read_json(folder / "units.json")), **arrays)


def _units(n_layers: int, n_heads: int, unit: Unit) -> Units:
    heads = all_heads(n_layers, n_heads)
    if unit.name != "mechanism":
        return heads
    joint = mechanism(unit.heads)
    return Units(heads.names + joint.names, heads.heads + joint.heads)


def _as_text(units: Units) -> dict[str, list[str]]:
    pairs = zip(units.names, units.heads, strict=True)
    return {name: [str(head) for head in heads] for name, heads in pairs}
