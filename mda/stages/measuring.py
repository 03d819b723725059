"""The speed of this machine for the stages' kinds of work, each measured once on a small part.

The model has random weights and tokens, which take as long as any others. A few tokens are measured
first; then, while time is left, as many sequences of full length as fit, or, where one is too long,
a shorter one, whose time is scaled by its operations.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from mda.benchmark import RELIABLE, Clock, Load
from mda.cost import passes
from mda.cost.hardware import Rates
from mda.cost.job import Job
from mda.data.stream import Corpus
from mda.emergence.measure import Probes, measure
from mda.estimator.ekfac import INDEPENDENT, Fit, sum_moments, sum_squares
from mda.estimator.score import score_samples
from mda.model.architecture import architecture
from mda.model.build import initial_model, layout_of
from mda.schema import Config
from mda.stages.plugin import kind_of
from mda.stages.recipe import device_of
from mda.training.loss import accumulate_gradients
from mda.training.optimizer import adamw
from mda.types import ParameterBlock
from mda.unit.blocks import Directions
from mda.unit.kind import Materials
from mda.unit.scope import scored

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FIRST_TOKENS = 64  # few enough for any model, and the first try pays for one-time set-up
TRIES = 3  # at most; the fastest counts: the one that others disturbed least
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def job_of(config: Config) -> Job:
    """Returns a job with its model's shape and its units, without weights or corpus."""
    model = layout_of(config.model)
    units = ()
    if not config.unit.reads_sae:
        kind = kind_of(config.unit, Materials(stand_in(config), architecture(model)))
        names = [unit.name for unit in kind.units([])]
        together = config.unit.locate == "mechanism"
        units = tuple(kind.units(names[: getattr(config.unit, "k", 1)], together))
        found = config.unit.locate if together or config.unit.named else names[0]
        if config.unit.only:
            units = tuple(unit for unit in units if unit.name == found)
        units = scored(units, found, config.estimator.requires.scope, model)
    return Job(config, passes.Shape.of(model), units)


def stand_in(config: Config, n: int = 8) -> Corpus:
    """Returns a few random rows in place of a corpus that is not built yet."""
    data = config.data
    generator = np.random.default_rng(0)
    label = str(getattr(config.unit, "label", None))
    return Corpus(
        tokens=generator.integers(0, data.vocab_size, (n, data.seq_len + 1)),
        labels=np.arange(n) // 2 % 2,
        label_names=(f"not {label}", label),
        vocab_size=data.vocab_size,
        special_ids=(),
        counts=np.ones(data.vocab_size, dtype=np.int64),
        tokenizer=None,
        held_out=np.arange(n),
        fingerprint="",
    )


@dataclass
class Bench:
    """A job's model, and its four kinds of work on some sequences of some length."""

    job: Job

    @cached_property
    def model(self) -> PreTrainedModel:
        return initial_model(self.job.config.model, 0).to(device_of(self.job.config.training))  # type: ignore[arg-type]

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        return adamw(self.model, self.job.config.training)

    @cached_property
    def blocks(self) -> dict[ParameterBlock, Tensor]:
        """A random direction for each row, [R, I, J]."""
        rows = self.job.rows.items()
        return {b: torch.randn(n, *b.shape[1:], dtype=torch.float64) for b, n in rows}

    def tokens(self, n: int, length: int) -> Tensor:
        return torch.randint(self.job.config.data.vocab_size, (n, length + 1))

    def update(self, n: int, length: int, at_once: int | None = None) -> float:
        """Runs forward, backward, clipping and step; returns the operations, as all kinds do.

        `at_once` sequences are run together: as configured, or else all.
        """
        training, model = self.job.config.training, self.model.train()
        if training.activation_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        half = HALF.get(training.precision)
        with torch.autocast(model.device.type, half) if half else nullcontext():
            tokens = self.tokens(n, length).to(model.device)
            weights = torch.ones(n, device=model.device)
            accumulate_gradients(model, tokens, weights, n, at_once or training.micro_batch_size)
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.grad_clip or 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        again = training.activation_checkpointing
        return n * passes.update_flops(self.job.shape, length, again)

    def measure(self, n: int, length: int) -> float:
        """Runs a point of an emergence curve: held-out rows and an eighth as many repeated ones."""
        half, m = min(self.job.config.emergence.length, length // 2), n // 8 + 2
        repeated, rows = self.tokens(m, 2 * half)[:, 1:], self.tokens(n + 1, length)
        labels, late, early = ("all",) * (n + 1), (length // 2, length), (0, 1)
        measure(self.model, Probes(repeated, half, rows, labels, late, early))
        flops = (n + 1) * passes.forward_flops(self.job.shape, length)
        return flops + m * passes.forward_flops(self.job.shape, 2 * half)

    def score(self, n: int, length: int, at_once: int | None = None) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        directions = Directions.of(self.job.units, self.blocks)
        rows = self.tokens(n, length)
        score_samples(self.model, rows.__getitem__, np.arange(n), directions, at_once or n)
        one = passes.capture_flops(self.job.shape, length)
        return n * (one + passes.product_flops(self.job.rows, length))

    def fit(self, n: int, length: int, at_once: int | None = None) -> float:
        rows, ids = self.tokens(n, length), np.arange(n)
        factors = getattr(self.job.config.estimator, "factors", INDEPENDENT)
        fit = Fit(list(self.blocks), batch_size=at_once or n, factors=factors)
        sum_moments(self.model, rows.__getitem__, ids, fit)
        basis = {
            site: torch.eye(i, dtype=torch.float64).repeat(g, 1, 1)
            for site, (g, i) in passes.sites(self.blocks, factors).items()
        }
        sum_squares(self.model, rows.__getitem__, ids, fit, basis)
        return n * passes.fit_flops(self.job.shape, self.blocks, length, factors)

    def largest(self, kind: str) -> int:
        """Returns the sequences that the kind of work takes at a time."""
        config = self.job.config
        if kind == "update":
            return config.training.batch_size
        if kind == "measure":
            return config.emergence.held_out or config.data.held_out
        return getattr(config.estimator, "batch_size", 1)


def rates_here(job: Job, kinds: Collection[str], limit_s: float) -> Rates:
    """Returns operations per second of each kind of work, in about `limit_s` seconds in total.

    If a few tokens take longer, each kind that counts gets one try. On a busy machine, the rates
    are those of an idle one: own CPU time replaces wall time. The threads are those of the job.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(job.config.training.threads or before)
    try:
        return _rates_here(job, kinds, limit_s)
    finally:
        torch.set_num_threads(before)


def _rates_here(job: Job, kinds: Collection[str], limit_s: float) -> Rates:
    bench, rates, load, said = Bench(job), {}, Load(), []
    full = job.config.data.seq_len
    for kind in track(kinds, "measuring", transient=True):
        rates[kind], length = _fastest(bench, kind, limit_s / len(kinds))
        short = f" at {length} of {full} tokens" if length < full else ""
        said.append(f"{kind} {rates[kind] / 1e9:,.1f}{short}")
    others = load.others() or 0.0
    source = f"this machine, measured in GFLOP/s: {', '.join(said) or 'nothing to compute'}"
    if others > RELIABLE:
        source += f"; others take {others:.0%} of its cores now, beside them it takes longer"
    return Rates(rates, source, memory=_memory(job.device))


def _fastest(bench: Bench, kind: str, limit_s: float) -> tuple[float, int]:
    """Returns operations per second of a kind of work, and the length of the measured sequences.

    A few tokens are always tried twice, because the first try includes one-time set-up. Larger
    tries follow while `limit_s` seconds of wall time are not over.
    """
    work: Callable[[int, int], float] = getattr(bench, kind)
    config, full = bench.job.config, bench.job.config.data.seq_len
    length, short = full, min(FIRST_TOKENS, full)
    spent = timed(work, 1, short, config).wall_s
    trial = timed(work, 1, short, config)
    spent += trial.wall_s
    allowed = limit_s / (TRIES + 1) / trial.seconds * short  # tokens at this speed
    while length > short and length > allowed:
        length //= 2
    n = max(1, min(bench.largest(kind), int(allowed // length)))
    tries: list[Timed] = []
    while len(tries) < TRIES and spent < limit_s:
        tries.append(timed(work, n, length, config))
        spent += tries[-1].wall_s
    if not tries:
        tries, length = [trial], short
    return max(one.flops / one.seconds for one in tries), length


@dataclass(frozen=True)
class Timed:
    """Operations of some work, its seconds on an idle machine, and its wall time."""

    flops: float
    seconds: float
    wall_s: float


def timed(work: Callable[[int, int], float], n: int, length: int, config: Config) -> Timed:
    """Runs some work once and times it."""
    gpu = device_of(config.training).type == "cuda"
    load = Load()
    with (clock := Clock()):
        flops = work(n, length)
        if gpu:
            torch.cuda.synchronize()
    alone = clock.cpu_s / torch.get_num_threads()
    busy = not gpu and (load.others() or 0.0) > RELIABLE
    return Timed(flops, max(alone if busy else clock.wall_s, 1e-9), clock.wall_s)


def held_bytes(device: torch.device) -> float:
    """Returns the GPU memory that is taken, or that this process holds; 0 if unknown.

    It is called before a model is built, whose memory comes on top.
    """
    if device.type == "cuda":
        torch.zeros(1, device=device)  # so that what the GPU keeps for a process is counted
        free, total = torch.cuda.mem_get_info()
        return total - free
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def _memory(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[1]
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
