"""What each stage of a job costs, from its settings alone: nothing is built and nothing is asked.

`tokens` are those that go through the model, of a corpus those that are written; `memory` is
without what the process itself takes; `disk` is what stays when the stage is done. A stage whose
work cannot be told from the settings has None there: autoencoders, and the time of anything that is
fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from mda.cost import passes
from mda.cost.passes import FLOAT, Shape
from mda.emergence.callback import curve_steps, held_out_every
from mda.emergence.measure import TOKENS
from mda.schema import Config, PublishedConfig, UnrolledConfig
from mda.schema.unit import HEAD_METRICS
from mda.training.checkpoint import declared_steps
from mda.training.loss import LOGITS
from mda.types import ParameterBlock, Unit

TOKEN_BYTES = 2  # uint16
PACKING_BYTES = 20  # of a token while a corpus is packed in memory, as lists and arrays


@dataclass(frozen=True)
class Cost:
    """What one stage takes."""

    stage: str
    tokens: float = 0.0
    flops: Mapping[str, float] | None = field(default_factory=dict)  # kind of work -> operations
    memory: float | None = 0.0  # bytes
    disk: float | None = 0.0  # bytes


@dataclass(frozen=True)
class Job:
    """A job's settings with what follows from them: the model's shape, and what is scored."""

    config: Config
    shape: Shape
    units: Sequence[Unit]

    @property
    def rows(self) -> dict[ParameterBlock, int]:
        """How many directions [I, J] each block is multiplied with."""
        found: dict[ParameterBlock, set[int]] = {}
        for unit in self.units:
            for block, row in unit.parts:
                found.setdefault(block, set()).add(row)
        return {block: len(rows) for block, rows in found.items()}

    @property
    def window(self) -> tuple[int, int]:
        """Steps of the arm, as given, or as many as an automatic window has at most."""
        edit, last = self.config.intervention, _last(self.config)
        if edit.steps is not None:
            return edit.steps
        length = edit.before_onset + edit.after_onset + self.config.training.checkpoint_every // 2
        return max(0, last - length), last

    @property
    def samples(self) -> int:
        """Samples of the window."""
        return (self.window[1] - self.window[0]) * self.config.training.batch_size


def costs(job: Job, stage: str) -> list[Cost]:
    """The costs of a stage as `mda plan` counts them, in the order of the work."""
    return COSTS[stage](job)


def _corpus(job: Job) -> list[Cost]:
    data, width = job.config.data, job.config.data.seq_len + 1
    n = getattr(data, "n_sequences", None)
    if data.name == "tokens":  # the user's own file, mapped
        return [Cost("corpus", flops=None, memory=None)]
    if data.name == "pile":  # rows come as they are used; all of them are counted here
        steps = job.window if job.config.base.published else (0, _last(job.config))
        n = (steps[1] - steps[0]) * job.config.training.batch_size + data.held_out
    if n is None:
        return [Cost("corpus", flops=None, memory=None, disk=None)]
    memory = PACKING_BYTES * n * width if data.name in ("embedded", "synthetic") else 0.0
    return [Cost("corpus", n * width, None, memory, n * width * TOKEN_BYTES)]


def _weights(job: Job) -> list[Cost]:
    one, n = FLOAT * job.shape.n_parameters, len(_published(job.config).steps)
    return [Cost("weights", 0, None, 2 * one, n * one)]


def _curve(job: Job) -> list[Cost]:
    n, weights = len(_published(job.config).steps), FLOAT * job.shape.n_parameters
    tokens, flops = _measurement(job, n, n)
    memory = weights + _measurement_bytes(job)
    return [Cost("curve", tokens, {"measure": flops}, memory)]


def _base(job: Job) -> list[Cost]:
    config = job.config
    if config.base.published:  # the revisions, under the names of checkpoints
        return []
    training, end = config.training, _last(config)
    kept = declared_steps(0, end, training.checkpoint_every, training.checkpoint_log_spaced)
    return [_training(job, "base", 0, end, len(kept))]


def _arm(job: Job) -> list[Cost]:
    return [_training(job, "arm", *job.window, 1), _behaviour(job)]


def _behaviour(job: Job) -> Cost:
    """Text and two tasks: as the arm is, without its strongest heads, and without random ones."""
    settings, length = job.config.behaviour, job.config.data.seq_len
    tries = 2 + settings.random_sets if settings.ablation else 1
    held_out = min(settings.held_out, job.config.data.held_out)
    lengths = [length] * held_out * (tries + settings.ablation)  # and once for the mean outputs
    for size in (2 * settings.span + 2, settings.snippet + 2):
        prompt = size * (min(settings.shots, (length + 1) // size - 1) + 1) - 2
        lengths += [prompt] * settings.prompts * tries
    flops = sum(passes.forward_flops(job.shape, n) for n in lengths)
    memory = FLOAT * job.shape.n_parameters + _measurement_bytes(job)
    return Cost("behaviour", sum(lengths), {"measure": flops}, memory)


def _tokens(job: Job) -> list[Cost]:
    """A forward pass that carries changes along one direction, for each checkpoint that is read.

    Attention forms its patterns there, and those of a layer are alive with their changes. What is
    drawn or counted asks no model.
    """
    length, n, shape = job.config.data.seq_len, job.samples, job.shape
    disk = n * (2 * length + FLOAT)
    if job.config.estimator.name in ("random", "repetition"):
        return [Cost("tokens", 0, disk=disk)]
    times = _read_checkpoints(job)
    batch = min(n, getattr(job.config.estimator, "batch_size", 1))
    patterns = 4 * batch * shape.n_heads * length**2
    hidden = 2 * batch * length * (8 * shape.d_model + 2 * shape.d_ff)
    memory = FLOAT * (times * shape.n_parameters + patterns + hidden)
    flops = {"score": times * n * passes.target_flops(shape, length)}
    return [Cost("tokens", times * n * length, flops, memory, disk)]


def _training(job: Job, stage: str, start: int, end: int, kept: int) -> Cost:
    training, length = job.config.training, job.config.data.seq_len
    n = (end - start) * training.batch_size
    share = training.batch_size // training.devices
    at_once = min(share, training.micro_batch_size or share)
    settings = job.config.emergence
    points, held_out = (
        len(curve_steps(start, end, every)) for every in (settings.every, held_out_every(settings))
    )
    tokens, flops = _measurement(job, points, held_out)
    again = training.activation_checkpointing
    states = FLOAT * passes.ADAMW * job.shape.n_parameters
    memory = max(
        passes.update_bytes(job.shape, at_once, length, again), states + _measurement_bytes(job)
    )
    work = {
        "update": n * passes.update_flops(job.shape, length, again),
        "measure": flops,
    }
    checkpoint = FLOAT * 3 * job.shape.n_parameters  # weights and two moments
    return Cost(stage, n * length + tokens, work, memory, kept * checkpoint)


def _measurement(job: Job, points: int, held_out_points: int) -> tuple[float, float]:
    """Tokens and operations of the points of an emergence curve, some with held-out text."""
    settings, length = job.config.emergence, job.config.data.seq_len
    rows = job.config.data.held_out
    rows = rows if settings.held_out is None else min(rows, settings.held_out)
    repeated, probes = 2 * settings.length, points * settings.n_sequences
    texts = held_out_points * rows
    flops = probes * passes.forward_flops(job.shape, repeated)
    flops += texts * passes.forward_flops(job.shape, length)
    return probes * repeated + texts * length, flops


def _measurement_bytes(job: Job) -> float:
    """A part of the tokens on its way through one layer, its logits, and every layer's patterns."""
    shape, settings = job.shape, job.config.emergence
    tokens = max(TOKENS, job.config.data.seq_len)
    hidden = tokens * (8 * shape.d_model + 2 * shape.d_ff)
    logits = 2 * min(tokens * shape.vocab_size, LOGITS)
    rows, size = min(settings.n_sequences, TOKENS // (2 * settings.length)), 2 * settings.length
    patterns = (shape.n_layers + 2) * rows * shape.n_heads * size**2
    return FLOAT * max(hidden + logits, hidden // 2 + patterns)


def _scores(job: Job) -> list[Cost]:
    config = job.config
    estimator, n_units, n = config.estimator, len(job.units), job.samples
    located = _located(job)
    disk = n * (FLOAT * n_units + 20)  # ids, steps and losses besides
    count = SCORED.get(estimator.name)
    if count is None or config.unit.reads_sae:
        return [*located, Cost("scores", 0, None, None, disk)]
    *before, last = count(job)
    return [*located, *before, replace(last, disk=disk)]


def _located(job: Job) -> list[Cost]:
    """Units other than heads are ranked on held-out text, one forward pass, or one each."""
    unit, data = job.config.unit, job.config.data
    if unit.metric in HEAD_METRICS:  # every curve has the metrics of all heads
        return []
    if unit.reads_sae:
        return [Cost("locate", 0, None, None)]
    probe = getattr(unit, "probe", None)
    label = getattr(unit, "label", None)
    n, length = (data.held_out // 2, data.seq_len)
    if probe is not None and label is None:
        n, length = probe.n_sequences, probe.length * probe.repeats
    times = 1 + len(job.units) if probe is not None else 1  # a module is ablated by itself
    checkpoints = len(_kept(job.config))
    passes_made = times + checkpoints * (2 if probe is not None else 1)
    flops = passes_made * n * passes.forward_flops(job.shape, length)
    memory = FLOAT * job.shape.n_parameters + _measurement_bytes(job)
    return [Cost("locate", passes_made * n * length, {"measure": flops}, memory)]


def _by_ekfac(job: Job) -> list[Cost]:
    settings, length = job.config.estimator, job.config.data.seq_len
    n = min(job.samples, getattr(settings, "fit_sequences", None) or job.samples)
    batch = min(n, settings.batch_size)  # type: ignore[attr-defined]
    fit = {"fit": n * passes.fit_flops(job.shape, job.rows, length)}
    memory = passes.fit_bytes(job.shape, job.rows, batch, length, _mlp(job))
    disk = passes.curvature_bytes(job.rows)
    return [Cost("curvature", 2 * n * length, fit, memory, disk), _passes(job, 1)]


def _by_exact(job: Job) -> list[Cost]:
    """Each block's gradients of the fitted sequences, in a pass of its own, and their products."""
    settings, length = job.config.estimator, job.config.data.seq_len
    n = min(job.samples, getattr(settings, "fit_sequences", None) or job.samples)
    batch = min(n, settings.batch_size)  # type: ignore[attr-defined]
    flops = len(job.rows) * n * passes.capture_flops(job.shape, length)
    flops += n * passes.product_flops({block: block.owners for block in job.rows}, length)
    flops += sum(b.owners * passes.inverse_flops(n, b.shape[1] * b.shape[2]) for b in job.rows)
    memory = passes.capture_bytes(job.shape, batch, length, _mlp(job))
    memory += max(passes.inverse_bytes(n, block) for block in job.rows)
    scores = _passes(job, 1)
    assert scores.flops is not None and scores.memory is not None
    return [
        replace(
            scores,
            tokens=scores.tokens + len(job.rows) * n * length,
            flops={**scores.flops, "fit": flops},
            memory=max(scores.memory, memory),
        )
    ]


def _by_unrolled(job: Job) -> list[Cost]:
    """Training again, all but the last segment of a stretch twice; then every step backwards.

    A step backwards is its gradient and the gradient's own derivative, which costs two more.
    """
    settings, training = job.config.estimator, job.config.training
    assert isinstance(settings, UnrolledConfig)
    (start, end), length = job.window, job.config.data.seq_len
    last = min(settings.last_steps or end - start, end - start)
    known = [start] if settings.n_perturbed else _known(job)
    inside = [max(step for step in known if step <= end - last)]
    inside += [step for step in known if step > inside[0]]
    stretches = [b - a for a, b in pairwise([*inside, end])]
    segment = min(settings.segment or max(stretches), max(stretches))
    again = sum(steps + (-(-steps // segment) - 1) * (segment - 1) for steps in stretches)
    n, runs = training.batch_size, max(1, settings.n_perturbed)
    update = passes.update_flops(job.shape, length)
    states = segment + -(-max(stretches) // segment) + len(known)
    at_once = min(n, training.micro_batch_size or n)
    return [
        Cost(
            "scores",
            runs * n * (again + last) * length,
            {"update": runs * n * (again + 3 * last) * update},
            FLOAT * 3 * states * job.shape.n_parameters
            + passes.second_order_bytes(job.shape, at_once, length),
        )
    ]


def _known(job: Job) -> list[int]:
    """The window's start, and the checkpoints inside."""
    start, end = job.window
    return [start, *(step for step in _kept(job.config) if start < step < end)]


def _by_tracin(job: Job) -> list[Cost]:
    return [_passes(job, _read_checkpoints(job))]


def _read_checkpoints(job: Job) -> int:
    """How many checkpoints the estimator passes over the window with."""
    settings, (start, end) = job.config.estimator, job.window
    if not hasattr(settings, "n_checkpoints"):
        return 1
    inside = [step for step in _kept(job.config) if start <= step <= end]
    return len(settings.checkpoints or inside[: settings.n_checkpoints])  # type: ignore[attr-defined]


def _by_loss(job: Job) -> list[Cost]:
    length, n = job.config.data.seq_len, job.samples
    batch = job.config.estimator.batch_size  # type: ignore[attr-defined]
    memory = passes.capture_bytes(job.shape, min(n, batch), length)
    return [
        Cost("scores", n * length, {"measure": n * passes.forward_flops(job.shape, length)}, memory)
    ]


def _passes(job: Job, times: int) -> Cost:
    """So many captures of the window, with the products of every direction."""
    length, n = job.config.data.seq_len, job.samples
    batch = min(n, job.config.estimator.batch_size)  # type: ignore[attr-defined]
    one = passes.capture_flops(job.shape, length) + passes.product_flops(job.rows, length)
    directions = sum(rows * b.shape[1] * b.shape[2] for b, rows in job.rows.items())
    memory = passes.capture_bytes(job.shape, batch, length, _mlp(job))
    memory += (passes.DOUBLE + FLOAT) * directions
    return Cost("scores", times * n * length, {"score": times * n * one}, memory)


def _mlp(job: Job) -> bool:
    return job.config.unit.metric not in HEAD_METRICS


def _last(config: Config) -> int:
    base = config.base
    return base.steps[-1] if isinstance(base, PublishedConfig) else config.training.last_step


def _kept(config: Config) -> list[int]:
    """Steps whose checkpoint there is."""
    if isinstance(config.base, PublishedConfig):
        return config.base.steps
    training = config.training
    every, log_spaced = training.checkpoint_every, training.checkpoint_log_spaced
    return declared_steps(0, training.last_step, every, log_spaced)


def _published(config: Config) -> PublishedConfig:
    assert isinstance(config.base, PublishedConfig)
    return config.base


COSTS: Mapping[str, Callable[[Job], list[Cost]]] = {
    "corpus": _corpus,
    "weights": _weights,
    "curve": _curve,
    "base": _base,
    "scores": _scores,
    "tokens": _tokens,
    "arm": _arm,
}
SCORED: Mapping[str, Callable[[Job], list[Cost]]] = {
    "ekfac": _by_ekfac,
    "exact": _by_exact,
    "unrolled": _by_unrolled,
    "tracin": _by_tracin,
    "gradient_norm": lambda job: [_passes(job, 1)],
    "loss": _by_loss,
    "random": lambda job: [Cost("scores")],
    "repetition": lambda job: [Cost("scores")],
}
"""Estimators whose cost is known; one that asks no model counts as nothing."""
