"""The cost of scoring the window's samples, or their tokens, with each estimator."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from mda.cost import passes
from mda.cost.job import Cost, Job, measurement_bytes
from mda.cost.passes import FLOAT
from mda.estimator.exact import joint_bytes
from mda.model.loss import chunk_at_once
from mda.schema import UnrolledConfig
from mda.schema.plugins import implementation
from mda.schema.prompts import read_prompts, size_of
from mda.training.optimizer import learning_rate


def scores(job: Job) -> list[Cost]:
    """Returns the costs of the estimator, and of the stages that it needs before."""
    n_units, n = len(job.units), job.samples
    disk = n * (FLOAT * n_units + 20)  # ids, steps and losses besides
    told = job.config.estimator.cost
    if not told or job.config.unit.reads_sae:
        return [Cost("scores", 0, None, None, disk)]
    *before, last = implementation(told)(job)
    return [*before, replace(last, disk=disk)]


def token_scores(job: Job) -> list[Cost]:
    """Returns the cost of a forward pass with changes along a direction, for each checkpoint.

    Attention forms its patterns there, and those of a layer are in memory with their changes. Drawn
    or counted scores need no model.
    """
    length, n, shape = job.config.data.seq_len, job.samples, job.shape
    disk = n * (2 * length + FLOAT)
    if not any(cost.flops for cost in scores(job)):
        return [Cost("tokens", 0, disk=disk)]
    times = _read_checkpoints(job)
    batch = min(n, getattr(job.config.estimator, "batch_size", 1))
    patterns = 4 * batch * shape.n_heads * length**2
    hidden = 2 * batch * length * (8 * shape.d_model + 2 * shape.d_ff)
    memory = FLOAT * (times * shape.n_parameters + patterns + hidden)
    flops = {"score": times * n * passes.target_flops(shape, length)}
    return [Cost("tokens", times * n * length, flops, memory, disk)]


def ranking(job: Job) -> list[Cost]:
    """Returns the cost of a forward pass on held-out text, for modules one per module."""
    return [_metric(job, "ranking", 1 + len(job.units) if _ablates(job) else 1)]


def emergence(job: Job) -> list[Cost]:
    """Returns the cost of the unit's metric at every checkpoint."""
    return [_metric(job, "emergence", len(job.checkpoints) * (2 if _ablates(job) else 1))]


def _ablates(job: Job) -> bool:
    return getattr(job.config.unit, "probe", None) is not None


def _metric(job: Job, stage: str, passes_made: int) -> Cost:
    """Returns the cost of so many forward passes over the text or probe of a unit's metric."""
    if job.config.unit.reads_sae:
        return Cost(stage, 0, None, None)
    n, length = _probe(job)
    flops = passes_made * n * passes.forward_flops(job.shape, length)
    memory = FLOAT * job.shape.n_parameters + measurement_bytes(job)
    return Cost(stage, passes_made * n * length, {"measure": flops}, memory)


def _probe(job: Job) -> tuple[int, int]:
    """Returns the sequences of a unit's metric or measurement, and their length."""
    unit, data = job.config.unit, job.config.data
    probe = getattr(unit, "probe", None)
    if probe is not None and probe.file is not None:
        return size_of(read_prompts(probe.file, f"{probe.key}.file"))
    if probe is not None and getattr(unit, "label", None) is None:
        return probe.n_sequences, probe.length * probe.repeats
    return data.held_out // 2, data.seq_len


def ekfac(job: Job) -> list[Cost]:
    """Returns the costs of the fit of the curvature, and of a pass."""
    settings, length = job.config.estimator, job.config.data.seq_len
    n = min(job.samples, getattr(settings, "fit_sequences", None) or job.samples)
    batch = min(n, settings.batch_size)  # type: ignore[attr-defined]
    factors = settings.factors  # type: ignore[attr-defined]
    fit = {"fit": n * passes.fit_flops(job.shape, job.rows, length, factors)}
    memory = passes.fit_bytes(job.shape, job.rows, batch, length, job.in_mlp, factors)
    memory += passes.vocabulary_map_bytes(job.rows, batch * length)
    memory += passes.label_bytes(job.shape, batch * length, chunk_at_once(job.device))
    disk = passes.curvature_bytes(job.rows, factors)
    return [Cost("curvature", 2 * n * length, fit, memory, disk), _passes(job, 1)]


def exact(job: Job) -> list[Cost]:
    """Returns the costs of each block's gradients of the fitted sequences, and their products."""
    settings, length = job.config.estimator, job.config.data.seq_len
    n = min(job.samples, getattr(settings, "fit_sequences", None) or job.samples)
    batch = min(n, settings.batch_size)  # type: ignore[attr-defined]
    together = settings.requires.scope != "unit"
    times = (2 if together else 1) * len(job.rows)
    flops = times * n * passes.capture_flops(job.shape, length)
    flops += n * passes.product_flops({block: block.owners for block in job.rows}, length)
    memory = passes.capture_bytes(job.shape, batch, length, job.in_mlp)
    memory += passes.vocabulary_map_bytes(job.rows, batch * length)
    sizes = [block.shape[1] * block.shape[2] for block in job.rows]
    if together:
        flops += 2 * n * n * sum(sizes) + n**3 / 3
        memory += joint_bytes(n, max(sizes))
    else:
        on_gpu = job.device.type == "cuda"
        owners = (block.owners for block in job.rows)
        flops += sum(o * passes.inverse_flops(n, p) for o, p in zip(owners, sizes, strict=True))
        memory += max(passes.inverse_bytes(n, block, on_gpu) for block in job.rows)
    scores = _passes(job, 1)
    assert scores.flops is not None and scores.memory is not None
    return [
        replace(
            scores,
            tokens=scores.tokens + times * n * length,
            flops={**scores.flops, "fit": flops},
            memory=max(scores.memory, memory),
        )
    ]


def unrolled(job: Job) -> list[Cost]:
    """Returns the costs of training again, and of every step backwards.

    All but the last segment of a stretch are trained twice. A step backwards is its gradient and
    the gradient's own derivative, which costs two more.
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


def tracin(job: Job) -> list[Cost]:
    """Returns the cost of a pass for each checkpoint that is read."""
    return [_passes(job, _read_checkpoints(job))]


def loss(job: Job) -> list[Cost]:
    """Returns the cost of a forward pass."""
    length, n = job.config.data.seq_len, job.samples
    batch = job.config.estimator.batch_size  # type: ignore[attr-defined]
    memory = passes.capture_bytes(job.shape, min(n, batch), length) + _tile_bytes(job, batch)
    return [
        Cost("scores", n * length, {"measure": n * passes.forward_flops(job.shape, length)}, memory)
    ]


def embedding(job: Job) -> list[Cost]:
    """Returns the cost of a forward pass over the window and over the probe."""
    length, n = job.config.data.seq_len, job.samples
    batch = job.config.estimator.batch_size  # type: ignore[attr-defined]
    n_probe, probe_length = _probe(job)
    flops = n * passes.forward_flops(job.shape, length)
    flops += n_probe * passes.forward_flops(job.shape, probe_length)
    memory = passes.capture_bytes(job.shape, min(n, batch), length)
    tokens = n * length + n_probe * probe_length
    return [Cost("scores", tokens, {"measure": flops}, memory)]


def _tile_bytes(job: Job, n_sequences: int) -> float:
    tokens = n_sequences * job.config.data.seq_len
    return passes.tile_bytes(job.shape, tokens, chunk_at_once(job.device))


def _passes(job: Job, times: int) -> Cost:
    """Returns the cost of so many captures of the window, with every direction's products."""
    length, n = job.config.data.seq_len, job.samples
    batch = min(n, job.config.estimator.batch_size)  # type: ignore[attr-defined]
    one = passes.capture_flops(job.shape, length) + passes.product_flops(job.rows, length)
    directions = sum(rows * b.shape[1] * b.shape[2] for b, rows in job.rows.items())
    memory = passes.capture_bytes(job.shape, batch, length, job.in_mlp) + _tile_bytes(job, batch)
    memory += (passes.DOUBLE + FLOAT) * directions
    memory += passes.vocabulary_map_bytes(job.rows, batch * length)
    return Cost("scores", times * n * length, {"score": times * n * one}, memory)


def _read_checkpoints(job: Job) -> int:
    """Returns the number of checkpoints at which the estimator passes over the window."""
    settings, (start, end) = job.config.estimator, job.window
    if not hasattr(settings, "n_checkpoints"):
        return 1
    inside = [step for step in job.checkpoints if start <= step <= end]
    if settings.requires.moving:
        inside = [step for step in inside if learning_rate(step, job.config.training) > 0]
    return len(settings.checkpoints or inside[: settings.n_checkpoints])  # type: ignore[attr-defined]


def _known(job: Job) -> list[int]:
    """Returns the window's start, and the checkpoints inside."""
    start, end = job.window
    return [start, *(step for step in job.checkpoints if start < step < end)]


def one_pass(job: Job) -> list[Cost]:
    """Returns the cost of a score from one capture of the window."""
    return [_passes(job, 1)]


def no_model(job: Job) -> list[Cost]:
    """Returns no cost, for a score that needs no model."""
    return [Cost("scores")]
