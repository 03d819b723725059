"""The unit: its place, its emergence in the base run, and the window around its onset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mda import store
from mda.cost import scoring
from mda.data.stream import Corpus
from mda.emergence.onset import (
    Curve,
    Onset,
    ranked,
    strongest_first,
    there_before,
    unit_onset,
)
from mda.intervention.window import auto_window
from mda.sae.autoencoder import Sae
from mda.sae.load import load_sae
from mda.schema import ConfigError, HeadConfig, InterventionConfig, SaeConfig, UnitConfig
from mda.stages.context import Runtime, without
from mda.stages.declared import EMERGENCE, RANKING
from mda.stages.found import Made, NotBuilt, known
from mda.stages.plugin import kind_of
from mda.stages.runs import Followed, Run
from mda.stages.sae import SaeStage, TrainedSae, read_sae
from mda.stages.stage import HashFile, Stage, make
from mda.store import Artifact
from mda.training.table import read_rows
from mda.types import Unit, Window
from mda.unit.blocks import shared_owners
from mda.unit.kind import Materials, UnitKind
from mda.unit.kind import check_label as check_label_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOT_THE_MEASUREMENT = ("name", "locate", "k", "metric", "threshold", "source", "only", "file")


@dataclass(frozen=True)
class Located:
    """The unit that was found, in its window, among all units of its kind.

    Everything is read on use: properties that need the base run raise NotBuilt where there is none
    yet. The keys are always known.
    """

    base: Run
    settings: UnitConfig
    sae_settings: SaeConfig
    edit: InterventionConfig  # whose window it is
    at: Runtime

    @property
    def wanted(self) -> int:
        """The number of units to find."""
        return getattr(self.settings, "k", 1)

    @property
    def together(self) -> bool:
        """True if the units found count as one, the mechanism."""
        return self.settings.locate == "mechanism"

    @property
    def on_curve(self) -> bool:
        """True if the base run's own curve has the metric, as for all heads."""
        return isinstance(self.settings, HeadConfig)

    @cached_property
    def sae(self) -> Sae | None:
        """The autoencoder whose features are units."""
        if self._trained_sae is not None:
            return self._trained_sae.sae
        return read_sae(self._sae_source, self.base) if self.settings.reads_sae else None

    @cached_property
    def _trained_sae(self) -> TrainedSae | None:
        if self._sae_source or not self.settings.reads_sae:
            return None
        return make(SaeStage(self.base, self.sae_settings), self.at)

    @property
    def _sae_source(self) -> str:
        return getattr(self.settings, "source", None) or ""

    @cached_property
    def inputs(self) -> dict[str, object]:
        """The settings that decide the units' measurement, for keys."""
        settings = self.settings
        found = without(asdict(settings), *NOT_THE_MEASUREMENT) | {"kind": settings.kind}
        if isinstance(probe := found.get("probe"), dict):
            found["probe"] = without(probe, "file")
        if files := settings.files():
            found["files"] = [self.at.store.hash_file(path) for path in files]
        if self._trained_sae is not None:
            found["sae"] = self._trained_sae.fingerprint
        elif settings.reads_sae:
            found["sae"] = load_sae(Path(self._sae_source)).fingerprint()
        return found

    @cached_property
    def kind(self) -> UnitKind:
        """All units of the kind. Raises ConfigError where they cannot be made."""
        try:
            materials = Materials(self.base.corpus, self.base.architecture, self.sae)
            return kind_of(self.settings, materials)
        except ValueError as error:
            raise ConfigError(f"unit={self.settings.name}: {error}") from error

    @cached_property
    def ranked(self) -> list[str]:
        """Units by their metric at the end of the base run, strongest first, a named one before."""
        first = [self.settings.locate] if self.settings.named is not None else []
        if len(first) >= self.wanted:  # named and traced alone, it needs no other's metric
            return first
        if self.on_curve:
            ordered = ranked(self.base.curve, self.settings.metric)
        else:
            assert self._ranking is not None
            ordered = strongest_first(store.read_json(self._ranking.folder / "ranking.json"))
        return [*first, *(name for name in ordered if name not in first)]

    @cached_property
    def members(self) -> tuple[str, ...]:
        """The unit itself; for a mechanism its heads, strongest first."""
        return tuple(self.ranked[: self.wanted if self.together else 1])

    @property
    def name(self) -> str:
        """L3H1, or mechanism."""
        return "mechanism" if self.together else self.members[0]

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """All units that are scored in one pass."""
        units = self.kind.units(self.ranked[: self.wanted], self.together)
        return tuple(one for one in units if not self.settings.only or one.name == self.name)

    @property
    def followed(self) -> Followed | None:
        """The additional measurements of an arm, for its key too."""
        inputs = self.inputs | {"members": self.members_key}
        return None if self.on_curve else Followed(inputs, self.settings.kind, self.follow)

    @cached_property
    def curve(self) -> Curve:
        """The curve of the base run; rows of kept checkpoints have the members' metric."""
        if self._emergence is None:
            return self.base.curve
        return joined(self.base.curve, read_rows(self._emergence.folder / "curve.csv"))

    @cached_property
    def emerged(self) -> Onset:
        """The onset of the unit in the base run."""
        settings = self.settings
        return unit_onset(self.curve, settings.metric, self.members[0], settings.onset_threshold)

    @cached_property
    def window(self) -> Window:
        """The steps that are edited. Raises ConfigError where there are none around the onset."""
        edit, unit, onset = self.edit, self.members[0], self.emerged.step
        if edit.steps is not None:
            start, end = edit.steps
            return Window(start, end, onset, f"as given: [{start}, {end})")
        last, around = int(self.curve[-1]["step"]), (edit.before_onset, edit.after_onset)
        try:
            window = auto_window(onset, self.base.checkpoints, last, *around)
        except ValueError as error:
            raise ConfigError(f"intervention.window=auto: {unit}: {error}") from error
        if self.emerged.before:
            rule = f"{there_before(unit)}; it has no onset, so the window is the first steps"
            return replace(window, rule=f"{rule}: [{window.start}, {window.end})")
        return window

    @property
    def found_by(self) -> dict[str, object]:
        """The settings that decide which unit is found."""
        settings = self.settings
        if settings.named is not None and self.wanted == 1:
            return {"named": settings.locate}
        how: dict[str, object] = {
            "metric": settings.metric,
            "locate": settings.locate,
            "k": self.wanted,
        }
        run = self.base.measured_key if self._ranking is None else self._ranking.fingerprint
        return how | {"run": run}

    @property
    def members_key(self) -> object:
        """The members, or the settings that decide them."""
        return known(lambda: list(self.members), self.found_by)

    @property
    def onset_key(self) -> dict[str, object]:
        """The inputs that decide the unit's onset."""
        curve = self.base.measured_key if self._emergence is None else self._emergence.fingerprint
        return self.found_by | {
            "curve": curve,
            "metric": self.settings.metric,
            "threshold": self.settings.onset_threshold,
        }

    @property
    def steps(self) -> tuple[int, int] | None:
        """The first and last step of the window; None where it is not known yet."""
        if (given := self.edit.steps) is not None:
            return given
        with suppress(NotBuilt):
            return self.window.start, self.window.end
        return None

    @property
    def window_key(self) -> object:
        """The window's steps, or the settings that decide them."""
        edit = self.edit
        around = {"before_onset": edit.before_onset, "after_onset": edit.after_onset}
        return list(self.steps) if self.steps else {"decided by": self.onset_key | around}

    @property
    def units_key(self) -> object:
        """All units and their parameters, or the settings that decide them."""
        own = without(self.inputs, "probe", "label")
        if self.together or self.settings.those_found or self.settings.only:
            own |= {"found": self.members_key, "only": self.settings.only}
        return known(lambda: as_text(self.units), own)

    @cached_property
    def _ranking(self) -> Made | None:
        """The metric of every unit of the last model, if it is needed and no curve has it."""
        if self.on_curve or (self.settings.named is not None and self.wanted == 1):
            return None
        return make(RankingStage(self), self.at)

    @cached_property
    def _emergence(self) -> Made | None:
        """The members' metric at the base run's checkpoints, if its curve does not have it."""
        return None if self.on_curve else make(EmergenceStage(self), self.at)

    @property
    def code(self) -> tuple[str, ...]:
        """The modules that rank and follow units."""
        return ("mda.stages.locating", *self.settings.modules, *self.base.code)

    def follow(self, model: PreTrainedModel) -> dict[str, float]:
        """Returns the members' metric, by its name on a curve."""
        values = self.kind.metrics(model, self.members)
        return {f"emergence/{self.settings.metric}/{name}": v for name, v in values.items()}

    def ask(self) -> None:
        """Builds the stages that find and follow the unit, or finds them in the store."""
        _ = self._ranking, self._emergence

    def check(self) -> None:
        """Raises ConfigError for an impossible unit, mechanism or window.

        That is a unit that does not exist, heads that are no mechanism, or no window around the
        onset.
        """
        named, locate = self.settings.named, self.settings.locate
        units = self.kind.units(self.ranked[: self.wanted], self.together)
        if named is not None and locate not in (names := [unit.name for unit in units]):
            there = f"{names[0]} and {len(names) - 1:,} others"
            raise ConfigError(f"unit.locate={locate} does not exist; expected {there}")
        if self.together and (pair := shared_owners(self.units[-1].parts)):
            heads = " and ".join(f"H{head}" for head in pair)
            raise ConfigError(
                f"unit.locate=mechanism of {', '.join(self.members)} is invalid: {heads} share "
                "keys and values, which would count twice; expected another unit.k, or one head "
                "by its name"
            )
        _ = self.window


@dataclass(frozen=True)
class RankingStage(Stage[Made]):
    """The metric of every unit of the kind at the end of the base run."""

    declared = RANKING
    costs = staticmethod(scoring.ranking)
    together = True

    located: Located

    def inputs(self, hash_file: HashFile) -> Mapping[str, object]:
        base = self.located.base
        step = base.checkpoints[-1]
        return {"base": base.key_at(step), "step": step, "unit": self.located.inputs}

    def code(self) -> tuple[str, ...]:
        return self.located.code

    def device(self) -> torch.device:
        return self.located.base.device

    def build(self, part: Path, at: Runtime) -> None:
        base = self.located.base
        values = self.located.kind.ranking(base.model(base.checkpoints[-1]))
        store.write_json(part / "ranking.json", dict(values))

    def open(self, artifact: Artifact, at: Runtime) -> Made:
        return Made(artifact)


@dataclass(frozen=True)
class EmergenceStage(Stage[Made]):
    """The members' metric at every checkpoint of the base run."""

    declared = EMERGENCE
    costs = staticmethod(scoring.emergence)
    together = True

    located: Located

    def inputs(self, hash_file: HashFile) -> Mapping[str, object]:
        base, steps = self.located.base, self.located.base.checkpoints
        unit = self.located.inputs | {"followed": self.located.members_key}
        return {"base": base.key_at(*steps), "steps": steps, "unit": unit}

    def code(self) -> tuple[str, ...]:
        return self.located.code

    def device(self) -> torch.device:
        return self.located.base.device

    def build(self, part: Path, at: Runtime) -> None:
        located, steps = self.located, self.located.base.checkpoints
        rows = [
            {"step": step, **located.follow(located.base.model(step))}
            for step in at.bar(steps, "emergence of the unit", len(steps))
        ]
        store.write_csv(part / "curve.csv", rows)

    def open(self, artifact: Artifact, at: Runtime) -> Made:
        return Made(artifact)


def check_label(unit: UnitConfig, corpus: Corpus) -> None:
    """Raises ConfigError, before any training, for a `unit.label` that separates no text."""
    try:
        if (label := getattr(unit, "label", None)) is not None:
            with suppress(NotBuilt):
                check_label_of(corpus, label)
    except ValueError as error:
        raise ConfigError(f"unit={unit.name}: {error}") from error


def locate(
    base: Run, unit: UnitConfig, sae: SaeConfig, edit: InterventionConfig, at: Runtime
) -> Located:
    """Finds the unit by its metric at the end of the base run, and the window of the edit."""
    located = Located(base, unit, sae, edit, at)
    located.ask()
    with suppress(NotBuilt):
        located.check()
    return located


def as_text(units: Sequence[Unit]) -> dict[str, list[str]]:
    """Returns each unit's blocks and its row in them, for files and keys."""
    return {unit.name: [f"{block.name}[{row}]" for block, row in unit.parts] for unit in units}


def joined(one: Curve, other: Curve) -> Curve:
    """Returns two curves as one: a row for each step of either, with the columns of both."""
    rows: dict[float, dict[str, float]] = {}
    for row in (*one, *other):
        rows.setdefault(row["step"], {}).update(row)
    return [rows[step] for step in sorted(rows)]
