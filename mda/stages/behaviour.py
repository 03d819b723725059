"""What a finished run can do at its end: a stage of its own, so that no training depends on it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from mda import store
from mda.data.stream import Corpus
from mda.emergence.behaviour import behaviour, make_trials
from mda.emergence.measure import icl_bands
from mda.emergence.onset import head_metric, heads_of
from mda.schema import Config
from mda.stages.context import Context
from mda.stages.corpus import fetch
from mda.stages.runs import Run
from mda.types import HeadId


@dataclass(frozen=True)
class Behaviour:
    """The numbers by the names of `mda.emergence.behaviour`."""

    values: dict[str, float]
    fingerprint: str
    built: bool
    wall_s: float


def behaviour_of(context: Context, corpus: Corpus, run: Run) -> Behaviour:
    """What the model of a run's last checkpoint can do, with and without its strongest heads."""
    config = context.config
    step, heads = run.checkpoints[-1], strongest_heads(config, run)
    bands = icl_bands(corpus.seq_len, config.emergence.icl_late, config.emergence.icl_early)
    inputs = {
        "corpus": corpus.fingerprint,
        "run": run.fingerprint,
        "step": step,
        "behaviour": asdict(config.behaviour),
        "bands": bands,
        "heads": [str(head) for head in heads],
    }

    def build(part: Path) -> None:
        fetch(context, corpus, corpus.held_out)
        trials = make_trials(corpus, config.behaviour, bands)
        model = run.model(step)
        found = behaviour(model, run.architecture, trials, heads, config.behaviour)
        store.write_json(part / "behaviour.json", found)

    code = ("mda.stages.behaviour", run.adapter)
    artifact = context.store.get_or_build("behaviour", inputs, build, code, run.device)
    values = store.read_json(artifact.path / "behaviour.json")
    wall_s = artifact.manifest["wall_s"]
    return Behaviour(values, artifact.fingerprint, artifact.built, wall_s)


def strongest_heads(config: Config, run: Run) -> list[HeadId]:
    """All heads by the unit's metric at the run's end, or else by their induction score."""
    metric = head_metric(config.unit.metric)
    last = run.curve[-1]
    return sorted(
        heads_of(run.curve, metric), key=lambda head: (-last[f"emergence/{metric}/{head}"], head)
    )
