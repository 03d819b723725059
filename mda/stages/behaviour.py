"""What a finished run can do at its end: a stage of its own, so that no training depends on it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from mda import store
from mda.data.stream import Corpus
from mda.emergence.behaviour import behaviour, make_trials
from mda.emergence.measure import icl_bands
from mda.emergence.onset import head_metric, heads_of
from mda.schema import Config
from mda.stages.context import Context
from mda.stages.corpus import fetch
from mda.stages.found import Made
from mda.stages.runs import Run
from mda.types import HeadId


@dataclass(frozen=True)
class Behaviour(Made):
    """The numbers by the names of `mda.emergence.behaviour`."""

    @cached_property
    def values(self) -> dict[str, float]:
        """Name -> number."""
        return store.read_json(self.folder / "behaviour.json")


def behaviour_of(context: Context, corpus: Corpus, run: Run) -> Behaviour:
    """What the model of a run's last checkpoint can do, with and without its strongest heads."""
    config = context.config
    bands = {"late": config.emergence.icl_late, "early": config.emergence.icl_early}
    inputs = {
        "run": run.fingerprint,
        "behaviour": asdict(config.behaviour),
        "bands": bands,
        "heads": head_metric(config.unit.metric),
    }

    def build(part: Path) -> None:
        fetch(context, corpus, corpus.held_out)
        trials = make_trials(corpus, config.behaviour, icl_bands(corpus.seq_len, *bands.values()))
        model, heads = run.model(run.checkpoints[-1]), strongest_heads(config, run)
        found = behaviour(model, run.architecture, trials, heads, config.behaviour)
        store.write_json(part / "behaviour.json", found)

    code = ("mda.stages.behaviour", *run.code)
    return Behaviour(context.store.get_or_build("behaviour", inputs, build, code, run.device))


def strongest_heads(config: Config, run: Run) -> list[HeadId]:
    """All heads by the unit's metric at the run's end, or else by their induction score."""
    metric = head_metric(config.unit.metric)
    last = run.curve[-1]
    return sorted(
        heads_of(run.curve, metric), key=lambda head: (-last[f"emergence/{metric}/{head}"], head)
    )
