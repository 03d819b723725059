"""From a base run to scores: where the unit is, which window, and what each sample did for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import GPTNeoXForCausalLM

from mda import store
from mda.data.stream import Corpus
from mda.emergence.onset import head_onset, heads_of
from mda.estimator import ekfac, tracin
from mda.estimator.random_scores import random_scores
from mda.estimator.score import Directions, make_directions, score_batch, score_samples
from mda.intervention.window import Window, auto_window
from mda.model.pythia import load_weights
from mda.schema import ConfigError, EkfacConfig, RandomConfig, TracinConfig
from mda.stages.context import Context, barrier, build_together, mine, rank, without
from mda.stages.corpus import base_schedule
from mda.stages.runs import Run
from mda.training import checkpoint
from mda.training.optimizer import learning_rate
from mda.types import HeadId, Schedule, Scores
from mda.unit.probe import Probe, draw_probe, probe_gradients
from mda.unit.subspace import BlockTensors, Subspace, Units, all_heads, mechanism
from mda.unit.tokens import token_distribution

VERSION = 1
NOT_INPUTS = ("batch_size", "checkpoint", "checkpoints", "n_checkpoints")  # `steps` says which
FIT_SHARD, SCORE_SHARD = 512, 1024  # samples between two points at which a kill loses nothing


@dataclass(frozen=True)
class Unit:
    """The unit that was found: its name among the scores, its heads, its window."""

    name: str
    heads: tuple[HeadId, ...]
    window: Window


@dataclass(frozen=True)
class Traced:
    """Scores of the window, with what is needed to go on from them."""

    scores: Scores
    fingerprint: str
    folder: Path
    built: bool
    wall_s: float
    steps: tuple[int, ...]  # the checkpoints that were scored


def locate(context: Context, base: Run) -> Unit:
    """Find the unit by its metric at the end of the base run, and the window of the edit."""
    unit = context.config.unit
    ranked = sorted(
        heads_of(base.curve, unit.metric),
        key=lambda head: (-base.curve[-1][f"emergence/{unit.metric}/{head}"], head),
    )
    if unit.head is not None:
        heads = (HeadId(*unit.head),)
    else:
        heads = tuple(ranked[: unit.k if unit.locate == "mechanism" else 1])
    name = "mechanism" if unit.locate == "mechanism" else str(heads[0])
    return Unit(name, heads, _window(context, base, heads[0]))


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


def scored_steps(context: Context, base: Run, unit: Unit) -> tuple[int, ...]:
    """Steps of the kept checkpoints that the estimator scores.

    `onset`, `window_middle` and `window_end` mean the kept checkpoint nearest to that step.
    Raises ConfigError for a step without a checkpoint.
    """
    estimator, window = context.config.estimator, unit.window
    if isinstance(estimator, RandomConfig):
        return ()
    if isinstance(estimator, TracinConfig):
        if given := estimator.checkpoints:
            return tuple(_kept(base, step, "estimator.checkpoints") for step in given)
        inside = [step for step in base.checkpoints if window.start <= step <= window.end]
        return spread(inside, estimator.n_checkpoints)
    assert isinstance(estimator, EkfacConfig)
    if isinstance(estimator.checkpoint, int):
        return (_kept(base, estimator.checkpoint, "estimator.checkpoint"),)
    named = {
        "onset": window.onset,
        "window_middle": (window.start + window.end) / 2,
        "window_end": window.end,
    }
    return (base.kept(named[estimator.checkpoint]),)


def spread(steps: Sequence[int], n: int | None) -> tuple[int, ...]:
    """The n of some rising steps that lie nearest to an even grid from the first to the last.

    One alone is the middle; all of them for None, and where there are no more than n.
    """
    if n is None or len(steps) <= n:
        return tuple(steps)
    middle = [(steps[0] + steps[-1]) / 2]
    grid = middle if n == 1 else np.linspace(steps[0], steps[-1], n)
    return tuple(sorted({min(steps, key=lambda step: (abs(step - at), step)) for at in grid}))


def directions(
    context: Context, rows: Corpus, base: Run, unit: Unit, units: Units, step: int
) -> tuple[GPTNeoXForCausalLM, Directions]:
    """The model at a step, and what a sample's gradient is multiplied with there.

    EK-FAC: H^-1 grad f. TracIn: eta grad f, with Adam's step sizes where asked for.
    """
    config, estimator = context.config, context.config.estimator
    model = _model(context, base, step)
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
        model = _model(context, base, step)
        fit = (units.layers, subspace, labels, estimator.batch_size)

        def passed(name: str, shard_sums) -> dict:
            shards = list(enumerate(_shards(ids, FIT_SHARD)))
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
    shards = list(enumerate(_shards(window.sample_ids, SCORE_SHARD)))
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


def _window(context: Context, base: Run, head: HeadId) -> Window:
    unit, edit = context.config.unit, context.config.intervention
    onset = head_onset(base.curve, unit.metric, head, unit.threshold).step
    if edit.steps is not None:
        start, end = edit.steps
        _kept(base, start, "intervention.window")
        return Window(start, end, onset, f"as given: [{start}, {end})")
    last = int(base.curve[-1]["step"])
    try:
        return auto_window(onset, base.checkpoints, last, edit.before_onset, edit.after_onset)
    except ValueError as error:
        raise ConfigError(f"intervention.window=auto: {head}: {error}") from error


def _kept(base: Run, step: int, key: str) -> int:
    if step not in base.checkpoints:
        kept = ", ".join(map(str, base.checkpoints))
        raise ConfigError(f"{key}={step}: the base run kept no such checkpoint; accepted: {kept}")
    return step


def _model(context: Context, base: Run, step: int) -> GPTNeoXForCausalLM:
    model = load_weights(context.config.model, base.weights(step))
    if _on_gpu(context):
        torch.nn.Module.cuda(model)
    return model


def _on_gpu(context: Context) -> bool:
    return context.config.training.accelerator != "cpu" and torch.cuda.is_available()


def _units(n_layers: int, n_heads: int, unit: Unit) -> Units:
    heads = all_heads(n_layers, n_heads)
    if unit.name != "mechanism":
        return heads
    joint = mechanism(unit.heads)
    return Units(heads.names + joint.names, heads.heads + joint.heads)


def _as_text(units: Units) -> dict[str, list[str]]:
    pairs = zip(units.names, units.heads, strict=True)
    return {name: [str(head) for head in heads] for name, heads in pairs}


def _shards(sample_ids: np.ndarray, size: int) -> list[np.ndarray]:
    return [sample_ids[i : i + size] for i in range(0, len(sample_ids), size)]


def _merged(paths: list[Path]) -> dict[tuple[str, ...], torch.Tensor]:
    """Sums over shards, added in the shards' order whoever computed them."""
    total: dict[tuple[str, ...], torch.Tensor] = {}
    for path in paths:
        for name, part in store.read_safetensors(path).items():
            key = tuple(name.split("/"))
            total[key] = total[key] + part if key in total else part
    return total
