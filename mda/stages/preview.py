"""What a set of jobs would build, without building any of it: stages, and an estimate of time."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from mda.schema import Config, ConfigError
from mda.stages.context import Context
from mda.stages.runs import model_inputs
from mda.store import Artifact, Store, fingerprint, make_key

STAGES = (
    "corpus", "weights", "curve", "base", "sae", "ranking", "emergence", "curvature", "scores",
    "state", "arm",
)  # fmt: skip
WINDOW = ("window", "before_onset", "after_onset")

Pipeline = Callable[[Context], Any]


class NotBuilt(Exception):
    """A stage that is not in the store; nothing after it can be known."""

    def __init__(self, kind: str, fingerprint: str) -> None:
        super().__init__(f"{kind} {fingerprint} is not in the store")
        self.kind, self.fingerprint = kind, fingerprint


class FindOnly(Store):
    """A store that finds and never builds: a stage that is missing raises NotBuilt."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.found: dict[str, str] = {}  # kind -> fingerprint of what was asked for

    def get_or_build(
        self,
        kind: str,
        inputs: Mapping[str, object],
        build: Callable[[Path], None],
        code: Sequence[str] = (),
        device: torch.device | str | None = None,
    ) -> Artifact:
        self.found[kind] = make_key(kind, inputs, code, device).fingerprint
        if (artifact := self.find(kind, inputs, code, device)) is None:
            raise NotBuilt(kind, self.found[kind])
        return artifact


def fingerprints(config: Config, pipeline: Pipeline) -> dict[str, str]:
    """kind -> fingerprint of each stage of a job, up to the first that is not in the store."""
    store = FindOnly(Path(config.output_dir) / "store")
    with contextlib.suppress(NotBuilt):
        pipeline(Context(config, store, progress=False))
    return store.found


@dataclass(frozen=True)
class Preview:
    """One job: what it finds, and what it must build; a key tells equal builds of two jobs."""

    config: Config
    missing: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    refused: str = ""  # why the job cannot run, where that is known already


def preview_job(config: Config, pipeline: Pipeline, last: str) -> Preview:
    """Look for the stages of one job, up to the one that its program ends with."""
    store = FindOnly(Path(config.output_dir) / "store")
    try:
        pipeline(Context(config, store, progress=False))
    except NotBuilt as stopped:
        stages = _stages(config, last)
        first = STAGES.index(stopped.kind)
        missing = [kind for kind in stages if STAGES.index(kind) >= first]
        # The last one is known by its hash; of those before it, what they will be made from.
        keys = [stopped.fingerprint] if stopped.kind == last else []
        keys += [_key(config, kind) for kind in missing[len(keys) :]]
        return Preview(config, tuple(missing), tuple(keys))
    except ConfigError as error:
        return Preview(config, refused=str(error))
    return Preview(config)


def print_preview(
    configs: Sequence[Config], pipeline: Pipeline, last: str, side_by_side: int = 1
) -> None:
    """Table of what each job finds and builds; each build is counted once, by the first job."""
    jobs = [preview_job(c, pipeline, last) for c in track(configs, "looking", transient=True)]
    rates = Rates(Store(Path(configs[0].output_dir) / "store"))
    table = Table("job", "seed", "arm", "in the store", "to build", "estimate", box=None)
    planned: set[str] = set()
    counts: Counter[str] = Counter()
    total, unknown = 0.0, False
    for number, job in enumerate(jobs):
        about = (str(number), str(job.config.seed), _arm(job.config) if last == "arm" else "")
        if job.refused:
            table.add_row(*about, "", f"fails: {escape(job.refused)}", "")
            continue
        new = [k for k, key in zip(job.missing, job.keys, strict=True) if key not in planned]
        planned.update(job.keys)
        counts.update(new)
        times = [rates.seconds(job.config, kind) for kind in new]
        known = [time for time in times if time is not None]
        unknown = unknown or len(known) < len(times)
        total += sum(known)
        there = [kind for kind in _stages(job.config, last) if kind not in job.missing]
        shared = [f"({kind})" for kind in job.missing if kind not in new]
        estimate = _time(sum(known), len(known) == len(times)) if new else ""
        table.add_row(*about, " ".join(there) or "-", " ".join(new + shared) or "-", estimate)
    console = Console()
    console.print(table)
    said = ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "nothing"
    console.print(f"{len(jobs)} jobs; to build: {said}. In brackets: built by a job above.")
    if counts:
        console.print(f"estimate: {_time(total / side_by_side, not unknown)}, {_how(side_by_side)}")


class Rates:
    """Seconds that a stage takes, from what this store has built of the same kind and size."""

    def __init__(self, store: Store) -> None:
        self.artifacts = [one for one in store.artifacts() if not one.manifest["resumed"]]
        trained = [one for one in self._of("base") if "model" in one.manifest["inputs"]]
        self.bases = {one.fingerprint: one for one in trained}

    def seconds(self, config: Config, kind: str) -> float | None:
        """Median over earlier builds; training is scaled by its steps. None without any."""
        if kind in ("corpus", "weights", "curve"):
            return _median(one.manifest["wall_s"] for one in self._of(kind))
        same = [b for b in self.bases.values() if self._same_size(b, config)]
        if kind in ("base", "arm"):
            per_step = _median(b.manifest["wall_s"] / _steps(b) for b in same)
            steps = config.training.last_step if kind == "base" else _window_steps(config)
            return None if per_step is None else per_step * steps
        prints = {b.fingerprint for b in same}
        built = [one for one in self._of(kind) if one.manifest["inputs"]["base"] in prints]
        if kind == "scores":
            name = config.estimator.name
            built = [b for b in built if b.manifest["inputs"]["estimator"]["name"] == name]
            # Scores of EK-FAC include the fit of their curvature.
        return _median(one.manifest["wall_s"] for one in built)

    def _of(self, kind: str) -> list[Artifact]:
        return [one for one in self.artifacts if one.kind == kind]

    def _same_size(self, base: Artifact, config: Config) -> bool:
        inputs = base.manifest["inputs"]
        batch = inputs["training"]["batch_size"]
        return _model_of(config) == inputs["model"] and batch == config.training.batch_size


def _model_of(config: Config) -> dict[str, object] | None:
    """What enters of a model; None for a published one, which is not known before it is there."""
    return model_inputs(config) if config.model.known else None


def _stages(config: Config, last: str) -> list[str]:
    # Built within the scores or the arm, and their time is part of those.
    left_out = {"sae", "ranking", "emergence", "curvature", "state"}
    if not config.base.published:
        left_out |= {"weights", "curve"}
    if last == "arm" and not config.intervention.chooses:
        left_out.add("scores")
    return [kind for kind in STAGES[: STAGES.index(last) + 1] if kind not in left_out]


def _key(config: Config, kind: str) -> str:
    groups = ["base"] if kind == "weights" else ["data"]
    if kind not in ("corpus", "weights"):
        groups += ["base", "seed", "model", "training", "emergence"]
    if kind in ("scores", "arm") or (kind == "base" and config.intervention.steps):
        groups += ["window"]  # a base run keeps a checkpoint where a given window starts
    if kind in ("scores", "arm"):
        groups += ["unit"]
    if kind == "scores" or (kind == "arm" and config.intervention.chooses):
        groups += ["estimator"]
    if kind == "arm":
        groups += ["intervention"]
    values = asdict(config)
    values["window"] = {name: values["intervention"][name] for name in WINDOW}
    return fingerprint(kind, {group: values[group] for group in groups})


def _steps(base: Artifact) -> int:
    training = base.manifest["inputs"]["training"]
    return training["stop_step"] or training["total_steps"]


def _window_steps(config: Config) -> int:
    edit = config.intervention
    if edit.steps is not None:
        return edit.steps[1] - edit.steps[0]
    return edit.before_onset + edit.after_onset + config.training.checkpoint_every // 2


def _arm(config: Config) -> str:
    name = config.intervention.name
    return name if name == "control" else f"{name} {config.estimator.name}"


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return median(found) if found else None


def _time(seconds: float, complete: bool) -> str:
    text = f"{seconds / 60:,.0f} min" if seconds >= 90 else f"{seconds:,.0f} s"
    return text if complete else f"at least {text}" if seconds else "unknown"


def _how(side_by_side: int) -> str:
    jobs = "one job at a time" if side_by_side == 1 else f"{side_by_side} jobs side by side"
    return f"{jobs}, by what this store has built of the same size"
