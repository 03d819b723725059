"""The stages that a set of jobs would build, and their cost, without building any."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapreplace
from operator import add
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from mda.benchmark import cores
from mda.cost.corpus import corpus_seconds
from mda.cost.hardware import Rates, rates_of_card
from mda.cost.job import Cost, Job, job_device
from mda.report.costs import StageTotal, duration, terminal_table
from mda.schema import Config, ConfigError
from mda.stages.attribution import ScoresStage
from mda.stages.capabilities import CapabilitiesStage
from mda.stages.context import Context
from mda.stages.corpus import CorpusStage
from mda.stages.found import FindOnly, Forecast, NotBuilt
from mda.stages.locating import EmergenceStage, RankingStage
from mda.stages.measuring import held_bytes, job_of, rates_here
from mda.stages.published import CurveStage, WeightsStage
from mda.stages.runs import ArmStage, BaseStage, StateStage
from mda.stages.sae import SaeStage
from mda.stages.stage import Stage
from mda.stages.tokens import TokensStage

STAGES: dict[str, type[Stage]] = {
    stage.declared.kind: stage
    for stage in (
        CorpusStage, WeightsStage, CurveStage, BaseStage, SaeStage, RankingStage, EmergenceStage,
        ScoresStage, TokensStage, StateStage, ArmStage, CapabilitiesStage,
    )
}  # fmt: skip
"""What is built for an arm, by its kind; curvature is a part of the scores' cost."""
IN_HOST_MEMORY = ("corpus", "weights")  # beside a GPU, too
LIMIT_S = 20.0  # of measuring this machine, for all shapes together

Pipeline = Callable[[Context], Any]


def fingerprints(config: Config, pipeline: Pipeline) -> dict[str, str]:
    """Returns the fingerprint of each stage of a job by kind, up to the first missing one."""
    store = FindOnly(Path(config.output_dir) / "store")
    with contextlib.suppress(NotBuilt):
        pipeline(Context(config, store, progress=False))
    return store.found


@dataclass(frozen=True)
class Preview:
    """One job: its stages in order, and which of them are in the store."""

    config: Config
    stages: Mapping[tuple[str, str], bool] = field(default_factory=dict)  # (kind, key) -> there
    refused: str = ""  # why the job cannot run, where that is known already


def preview_job(config: Config, pipeline: Pipeline) -> Preview:
    """Runs the pipeline of one job in a store that foresees missing artifacts."""
    store = Forecast(Path(config.output_dir) / "store")
    try:
        pipeline(Context(config, store, progress=False))
    except ConfigError as error:
        return Preview(config, refused=str(error))
    return Preview(config, store.asked)


def print_preview(configs: Sequence[Config], pipeline: Pipeline, side_by_side: int = 1) -> None:
    """Prints tables of what each job finds and builds, and of the cost of each stage.

    Each build is counted once, by the first job that needs it.
    """
    jobs = [preview_job(c, pipeline) for c in track(configs, "looking", transient=True)]
    table = Table("job", "seed", "arm", "in the store", "to build", box=None)
    planned: set[tuple[str, str]] = set()
    builds: list[tuple[Config, str]] = []
    for number, job in enumerate(jobs):
        arm = _arm(job.config) if any(kind == "arm" for kind, _ in job.stages) else ""
        about = (str(number), str(job.config.seed), arm)
        if job.refused:
            table.add_row(*about, "", f"fails: {escape(job.refused)}")
            continue
        present = [kind for (kind, _), found in job.stages.items() if found]
        missing = [stage for stage, found in job.stages.items() if not found]
        new = [kind for kind, key in missing if (kind, key) not in planned]
        shared = [f"({kind})" for kind, key in missing if (kind, key) in planned]
        planned.update(missing)
        builds += [(job.config, kind) for kind in new]
        row = (_listed(present), _listed([*new, *shared]))
        table.add_row(*about, *row)
    console = Console()
    console.print(table)
    counts = Counter(kind for _, kind in builds)
    said = ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "nothing"
    console.print(f"{len(jobs)} jobs; to build: {said}. In brackets: built by a job above.")
    if builds:
        print_costs(Estimates(builds), side_by_side)


def _listed(kinds: Sequence[str]) -> str:
    """Returns the kinds in order, each once, with its number where there are several."""
    counts = Counter(kinds)
    return " ".join(kind if n == 1 else f"{n} {kind}" for kind, n in counts.items()) or "-"


def print_costs(estimates: Estimates, side_by_side: int = 1) -> None:
    """Prints a table of the cost of each stage, and the total time."""
    console = Console()
    totals = estimates.totals()
    rates = list({rate.source: rate for rate in estimates.rates.values()}.values())
    console.print(terminal_table(totals, rates[0].memory if rates else None))
    configs = [config for config, _ in estimates.costs]
    room = min(_room(config, side_by_side) for config in configs)
    jobs = "one job at a time" if side_by_side == 1 else f"{side_by_side} jobs side by side"
    if room < side_by_side:
        jobs += f", counted as {room} at a time"
    elif side_by_side > 1 and any(config.plan.hardware != "this" for config in configs):
        jobs += ", each on a card of its own"
    seconds = estimates.elapsed(room)
    time = duration(seconds) if seconds else "unknown"
    least = "at least " if seconds and any(total.seconds is None for total in totals) else ""
    console.print(f"estimate: {least}{time}, {jobs}")
    for n in sorted({_sharing(config) for config, _ in estimates.costs} - {1}):
        said = f"training.devices={n} share the updates; scores, curves and capabilities run on one"
        console.print(said, highlight=False, soft_wrap=True)
    ends = {config.training.ends for config, cost in estimates.costs if cost.stage == "base"}
    if "window" in ends:
        said = "training.ends=window: a base run is counted to its last step, and may end before"
        console.print(said, highlight=False, soft_wrap=True)
    for rate in rates:
        console.print(rate.source, highlight=False, soft_wrap=True)


class Estimates:
    """Costs of builds and their times; a shape is measured once."""

    def __init__(self, builds: Sequence[tuple[Config, str]]) -> None:
        self.costs: list[tuple[Config, Cost]] = []
        kinds: dict[str, dict[str, None]] = {}  # shape -> kinds of work, in order
        self.jobs: dict[str, Job] = {}
        for config, stage in builds:
            if not config.model.known:
                self.costs.append((config, Cost(stage, 0, None, None, None)))
                continue
            key = _shape(config)
            job = replace(self.jobs.setdefault(key, job_of(config)), config=config)
            for cost in STAGES[stage].costs(job):
                self.costs.append((config, cost))
                kinds.setdefault(key, {}).update(dict.fromkeys(cost.flops or {}))
        # Before any model is measured.
        here = {job.device for job in self.jobs.values() if job.config.plan.hardware == "this"}
        process = {device.type: held_bytes(device) for device in here}
        self.rates = {
            key: self._rates(self.jobs[key], list(wanted), LIMIT_S / len(kinds), process)
            for key, wanted in kinds.items()
        }

    def _rates(
        self, job: Job, kinds: Sequence[str], limit_s: float, process: Mapping[str, float]
    ) -> Rates:
        plan = job.config.plan
        if plan.hardware != "this":
            half = job.config.training.precision != "32-true"
            return rates_of_card(plan.hardware, plan.share, half, job.shape.d_model)
        return replace(rates_here(job, kinds, limit_s), process=process[job.device.type])

    def seconds(self, config: Config, cost: Cost) -> float | None:
        """Returns the time of a cost; None if unknown."""
        if cost.stage == "corpus" and config.plan.hardware == "this":
            return corpus_seconds(config.data)
        if cost.flops is None:
            return None
        n = _sharing(config)
        flops = {k: v / n if k == "update" else v for k, v in cost.flops.items()}
        return self.rates[_shape(config)].seconds(flops) if flops else 0.0

    def elapsed(self, at_once: int) -> float:
        """Returns the time of all builds, if known: stage after stage, so many jobs at once."""
        stages: dict[str, list[float]] = {}  # stage -> when each job is free again
        for config, cost in self.costs:
            ends = stages.setdefault(cost.stage, [0.0] * at_once)
            heapreplace(ends, ends[0] + (self.seconds(config, cost) or 0.0))
        return sum(max(ends) for ends in stages.values())

    def totals(self) -> list[StageTotal]:
        """Returns totals by stage, in the order of the work."""
        totals: dict[str, StageTotal] = {}
        for config, cost in self.costs:
            rates = self.rates.get(_shape(config))
            memory = cost.memory
            elsewhere = cost.stage in IN_HOST_MEMORY and job_device(config).type == "cuda"
            if memory is not None and rates is not None and not elsewhere:
                memory += rates.process
            new = StageTotal(
                cost.stage, 1, cost.tokens,
                None if cost.flops is None else sum(cost.flops.values()),
                self.seconds(config, cost), memory, cost.disk,
            )  # fmt: skip
            totals[cost.stage] = _added(totals[cost.stage], new) if cost.stage in totals else new
        return list(totals.values())


def _room(config: Config, wanted: int) -> int:
    """Returns how many of the requested jobs have a GPU, or enough cores, to themselves."""
    if config.plan.hardware != "this":
        return wanted
    on_gpu = job_device(config).type == "cuda"
    places = (
        torch.cuda.device_count() if on_gpu else cores() // (config.training.threads or cores())
    )
    return max(1, min(wanted, places))


def _sharing(config: Config) -> int:
    """Returns the number of devices that share an update; CPU processes share one."""
    return config.training.devices if job_device(config).type == "cuda" else 1


def _added(one: StageTotal, other: StageTotal) -> StageTotal:
    def over(name: str, combine: Callable[[float, float], float]) -> float | None:
        a, b = getattr(one, name), getattr(other, name)
        return None if a is None or b is None else combine(a, b)

    return StageTotal(
        one.stage, one.times + other.times, one.tokens + other.tokens, over("flops", add),
        over("seconds", add), over("memory", max), over("disk", add),
    )  # fmt: skip


def _shape(config: Config) -> str:
    """Returns the settings that decide the speed of a job's work, apart from its amount."""
    training, estimator = config.training, config.estimator
    micro, precision = training.micro_batch_size, training.precision
    identity = (
        config.model,
        config.data.seq_len,
        training.batch_size,
        micro,
        precision,
        config.unit,
    )
    identity = (*identity, training.accelerator)
    return repr((*identity, training.threads, getattr(estimator, "batch_size", None), config.plan))


def _arm(config: Config) -> str:
    name = config.intervention.name
    return name if name == "control" else f"{name} {config.estimator.name}"
