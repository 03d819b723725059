"""Capabilities at a run's end: its own stage, so that no training depends on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch

from mda import store
from mda.cost import stages as cost
from mda.emergence.capabilities import capabilities, make_trials
from mda.emergence.measure import icl_bands
from mda.emergence.onset import head_metric, heads_of
from mda.schema import CapabilitiesConfig, UnitConfig
from mda.stages.context import Runtime
from mda.stages.corpus import fetch
from mda.stages.declared import CAPABILITIES
from mda.stages.found import Made
from mda.stages.runs import Run
from mda.stages.stage import HashFile, Stage
from mda.store import Artifact
from mda.types import HeadId


@dataclass(frozen=True)
class Capabilities(Made):
    """The numbers by the names of `mda.emergence.capabilities`."""

    @cached_property
    def values(self) -> dict[str, float]:
        """The numbers by name."""
        return store.read_json(self.folder / "capabilities.json")


@dataclass(frozen=True)
class CapabilitiesStage(Stage[Capabilities]):
    """Tests of the model of a run's last checkpoint, with and without its strongest heads."""

    declared = CAPABILITIES
    costs = staticmethod(cost.capabilities)

    run: Run
    unit: UnitConfig
    settings: CapabilitiesConfig

    def inputs(self, hash_file: HashFile) -> Mapping[str, object]:
        emergence = self.run.recipe.emergence
        return {
            "run": self.run.fingerprint,
            "capabilities": asdict(self.settings),
            "bands": {"late": emergence.icl_late, "early": emergence.icl_early},
            "heads": head_metric(self.unit.metric),
        }

    def code(self) -> tuple[str, ...]:
        return ("mda.stages.capabilities", *self.run.code)

    def device(self) -> torch.device:
        return self.run.device

    def build(self, part: Path, at: Runtime) -> None:
        corpus, emergence = self.run.corpus, self.run.recipe.emergence
        fetch(at, corpus, corpus.held_out)
        bands = icl_bands(corpus.seq_len, emergence.icl_late, emergence.icl_early)
        trials = make_trials(corpus, self.settings, bands)
        model, heads = (
            self.run.model(self.run.checkpoints[-1]),
            strongest_heads(self.unit, self.run),
        )
        values = capabilities(model, self.run.architecture, trials, heads, self.settings)
        store.write_json(part / "capabilities.json", values)

    def open(self, artifact: Artifact, at: Runtime) -> Capabilities:
        return Capabilities(artifact)


def strongest_heads(unit: UnitConfig, run: Run) -> list[HeadId]:
    """Returns all heads by the unit's metric at the run's end, or by their induction score."""
    metric = head_metric(unit.metric)
    last = run.curve[-1]
    return sorted(
        heads_of(run.curve, metric), key=lambda head: (-last[f"emergence/{metric}/{head}"], head)
    )
