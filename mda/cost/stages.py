"""The cost of each stage of a job, from its settings alone, without building anything.

A cost is None if the settings do not determine it: autoencoders, and the time of anything that is
fetched.
"""

from __future__ import annotations

from dataclasses import replace

from mda.cost import passes
from mda.cost.job import Cost, Job, measurement_bytes
from mda.cost.passes import FLOAT
from mda.emergence.steps import curve_steps, held_out_every
from mda.schema import Config, PublishedConfig
from mda.schema.prompts import read_prompts, size_of
from mda.training.loss import logits_at_once

TOKEN_BYTES = 2  # uint16
PACKING_BYTES = 20  # of a token while a corpus is packed in memory, as lists and arrays


def corpus(job: Job) -> list[Cost]:
    """Returns the costs of packing or fetching the rows."""
    data, width = job.config.data, job.config.data.seq_len + 1
    n = getattr(data, "n_sequences", None)
    if data.name == "tokens":  # the user's own file, mapped
        return [Cost("corpus", flops=None, memory=None)]
    if data.name == "pile":  # rows come as they are used; all of them are counted here
        steps = job.window if job.config.base.published else (0, job.last_step)
        n = (steps[1] - steps[0]) * job.config.training.batch_size + data.held_out
    if n is None:
        return [Cost("corpus", flops=None, memory=None, disk=None)]
    memory = PACKING_BYTES * n * width if data.name in ("embedded", "synthetic") else 0.0
    return [Cost("corpus", n * width, None, memory, n * width * TOKEN_BYTES)]


def weights(job: Job) -> list[Cost]:
    """Returns the costs of one revision."""
    one = FLOAT * job.shape.n_parameters
    return [Cost("weights", 0, None, 2 * one, one)]


def curve(job: Job) -> list[Cost]:
    """Returns the costs of a published run's curve, each revision once."""
    n, weights = len(_published(job.config).steps), FLOAT * job.shape.n_parameters
    tokens, flops = _measurement(job, n, n)
    memory = weights + measurement_bytes(job)
    return [Cost("curve", tokens, {"measure": flops}, memory)]


def base(job: Job) -> list[Cost]:
    """Returns the costs of the training from the first step; none for a published run."""
    if job.config.base.published:  # the revisions, under the names of checkpoints
        return []
    return [_training(job, "base", 0, job.last_step, len(job.checkpoints))]


def arm(job: Job) -> list[Cost]:
    """Returns the costs of the training of the window, with two gradients where those are mixed.

    That is an upper bound: only edited steps have two.
    """
    until = job.config.intervention.until
    cost = _training(job, "arm", job.window[0], until or job.window[1], 2 if until else 1)
    if getattr(job.config.intervention, "scope", "all") == "all":
        return [cost]
    assert cost.flops is not None and cost.memory is not None
    share = job.config.training.batch_size * (job.window[1] - job.window[0])
    twice = share * passes.update_flops(job.shape, job.config.data.seq_len)
    flops = {**cost.flops, "update": cost.flops["update"] + twice}
    tokens = cost.tokens + job.samples * job.config.data.seq_len
    memory = cost.memory + (FLOAT + 1) * job.shape.n_parameters  # the other gradient, and a mark
    return [replace(cost, tokens=tokens, flops=flops, memory=memory)]


def state(job: Job) -> list[Cost]:
    """Returns the costs of the training from the checkpoint before the window to its start."""
    start = job.window[0]
    before = max(step for step in job.checkpoints if step <= start)
    return [_training(job, "state", before, start, 1)]


def sae(job: Job) -> list[Cost]:
    """Returns no costs, as the settings do not determine them."""
    return [Cost("sae", 0, None, None, None)]


def capabilities(job: Job) -> list[Cost]:
    """Returns the costs of text and two tasks: intact, and without strongest or random heads."""
    settings, length = job.config.capabilities, job.config.data.seq_len
    tries = 2 + settings.random_sets if settings.ablation else 1
    held_out = min(settings.held_out, job.config.data.held_out)
    lengths = [length] * held_out * (tries + settings.ablation)  # and once for the mean outputs
    for size in (2 * settings.span + 2, settings.snippet + 2):
        prompt = size * (min(settings.shots, (length + 1) // size - 1) + 1) - 2
        lengths += [prompt] * settings.prompts * tries
    flops = sum(passes.forward_flops(job.shape, n) for n in lengths)
    memory = FLOAT * job.shape.n_parameters + measurement_bytes(job)
    return [Cost("capabilities", sum(lengths), {"measure": flops}, memory)]


def _training(job: Job, stage: str, start: int, end: int, kept: int) -> Cost:
    training, length = job.config.training, job.config.data.seq_len
    n = (end - start) * training.batch_size
    share = training.batch_size // training.devices
    at_once = min(share, training.micro_batch_size or share)
    emergence = job.config.emergence
    settings = emergence.in_arms if stage == "arm" else emergence
    points, held_out = (
        len(curve_steps(start, end, every)) for every in (settings.every, held_out_every(settings))
    )
    tokens, flops = _measurement(job, points, held_out)
    again = training.activation_checkpointing
    states = FLOAT * passes.ADAMW * job.shape.n_parameters
    memory = max(
        passes.update_bytes(job.shape, at_once, length, again, logits_at_once(job.device)),
        states + measurement_bytes(job),
    )
    work = {
        "update": n * passes.update_flops(job.shape, length, again),
        "measure": flops,
    }
    checkpoint = FLOAT * 3 * job.shape.n_parameters  # weights and two moments
    return Cost(stage, n * length + tokens, work, memory, kept * checkpoint)


def _measurement(job: Job, points: int, held_out_points: int) -> tuple[float, float]:
    """Returns tokens and operations of an emergence curve's points, some with held-out text."""
    settings, length = job.config.emergence, job.config.data.seq_len
    rows = job.config.data.held_out
    rows = rows if settings.held_out is None else min(rows, settings.held_out)
    repeated, probes = 2 * settings.length, points * settings.n_sequences
    texts = held_out_points * rows
    flops = probes * passes.forward_flops(job.shape, repeated)
    flops += texts * passes.forward_flops(job.shape, length)
    tokens = probes * repeated + texts * length
    if settings.prompts is not None:
        rows, size = size_of(read_prompts(settings.prompts, f"{settings.key}.prompts"))
        flops += points * rows * passes.forward_flops(job.shape, size)
        tokens += points * rows * size
    return tokens, flops


def _published(config: Config) -> PublishedConfig:
    assert isinstance(config.base, PublishedConfig)
    return config.base
