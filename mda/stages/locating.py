"""Where the unit is, how it emerged in the base run, and which window that spans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel

from mda import store
from mda.data.stream import Corpus
from mda.emergence.callback import Follow
from mda.emergence.onset import Curve, Onset, there_before, unit_onset, units_of
from mda.intervention.window import auto_window
from mda.sae.autoencoder import Sae
from mda.schema import ConfigError, UnitConfig
from mda.schema.unit import HEAD_METRICS
from mda.stages.context import Context, build_together, without
from mda.stages.found import NotBuilt, known
from mda.stages.plugin import kind_of, module_of
from mda.stages.runs import Run
from mda.stages.sae import sae_key, sae_of
from mda.store import Artifact
from mda.training.table import read_rows
from mda.types import Unit, Window
from mda.unit.blocks import shared_owners
from mda.unit.kind import Materials, UnitKind
from mda.unit.kind import check_label as check_label_of

Build = Callable[[Path], None]
NOT_THE_MEASUREMENT = ("name", "locate", "k", "metric", "threshold", "source", "only")


@dataclass(frozen=True)
class Located:
    """The unit that is found, in its window, among all units of its kind.

    Everything is read as it is asked for: what the base run has to say raises NotBuilt where there
    is none yet. The keys are known in any case.
    """

    context: Context
    corpus: Corpus
    base: Run

    @property
    def settings(self) -> UnitConfig:
        """How the unit is found, and what is measured of it."""
        return self.context.config.unit

    @property
    def wanted(self) -> int:
        """How many units are sought."""
        return getattr(self.settings, "k", 1)

    @property
    def together(self) -> bool:
        """Whether the units found count as one, the mechanism."""
        return self.settings.locate == "mechanism"

    @property
    def on_curve(self) -> bool:
        """Whether the base run's own curve has the metric: every curve has those of all heads."""
        return self.settings.metric in HEAD_METRICS

    @cached_property
    def sae(self) -> Sae | None:
        """The autoencoder whose features are units."""
        return sae_of(self.context, self.corpus, self.base)

    @cached_property
    def inputs(self) -> dict[str, object]:
        """What decides the units' measurement, for keys."""
        settings = self.settings
        found = without(asdict(settings), *NOT_THE_MEASUREMENT) | {"kind": settings.kind}
        if settings.reads_sae:
            found["sae"] = sae_key(self.context, self.corpus, self.base)
        return found

    @cached_property
    def kind(self) -> UnitKind:
        """All units of the kind. Raises ConfigError where they cannot be made."""
        try:
            materials = Materials(self.corpus, self.base.architecture, self.sae)
            return kind_of(self.settings, materials)
        except ValueError as error:
            raise ConfigError(f"unit={self.settings.name}: {error}") from error

    @cached_property
    def ranked(self) -> list[str]:
        """Units by their metric at the end of the base run, strongest first, a named one before."""
        first = [self.settings.locate] if self.settings.named is not None else []
        if len(first) >= self.wanted:  # named and traced alone, it needs no other's metric
            return first
        metric, prefix = self.settings.metric, f"emergence/{self.settings.metric}/"
        if self.on_curve:
            last = self.base.curve[-1]
            values = {name: last[prefix + name] for name in units_of(self.base.curve, metric)}
        else:
            assert self._ranking is not None
            values = store.read_json(self._ranking.path / "ranking.json")
        ordered = sorted(values, key=lambda name: (-values[name], _place(name)))
        return [*first, *(name for name in ordered if name not in first)]

    @cached_property
    def members(self) -> tuple[str, ...]:
        """The unit; of a mechanism its heads, strongest first."""
        return tuple(self.ranked[: self.wanted if self.together else 1])

    @property
    def name(self) -> str:
        """L3H1, or mechanism."""
        return "mechanism" if self.together else self.members[0]

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """Everything that is scored in one pass."""
        units = self.kind.units(self.ranked[: self.wanted], self.together)
        return tuple(one for one in units if not self.settings.only or one.name == self.name)

    @property
    def follow(self) -> Follow | None:
        """Measures the members where curves do not anyway."""
        return None if self.on_curve else self._follow

    @cached_property
    def curve(self) -> Curve:
        """That of the base run; rows of kept checkpoints have the members' metric."""
        if self._emergence is None:
            return self.base.curve
        return joined(self.base.curve, read_rows(self._emergence.path / "curve.csv"))

    @cached_property
    def emerged(self) -> Onset:
        """When the unit emerged in the base run."""
        settings = self.settings
        return unit_onset(self.curve, settings.metric, self.members[0], settings.threshold)

    @cached_property
    def window(self) -> Window:
        """The steps that are edited. Raises ConfigError where there are none around the onset."""
        edit, unit, onset = self.context.config.intervention, self.members[0], self.emerged.step
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
        """What decides which unit is found."""
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
        """The members, or what decides which they are."""
        return known(lambda: list(self.members), self.found_by)

    @property
    def onset_key(self) -> dict[str, object]:
        """What decides when the unit emerged."""
        curve = self.base.measured_key if self._emergence is None else self._emergence.fingerprint
        return self.found_by | {
            "curve": curve,
            "metric": self.settings.metric,
            "threshold": self.settings.threshold,
        }

    @property
    def steps(self) -> tuple[int, int] | None:
        """First and last step of the window; None where it is not known yet."""
        if (given := self.context.config.intervention.steps) is not None:
            return given
        with suppress(NotBuilt):
            return self.window.start, self.window.end
        return None

    @property
    def window_key(self) -> object:
        """The window's steps, or what decides them."""
        edit = self.context.config.intervention
        around = {"before_onset": edit.before_onset, "after_onset": edit.after_onset}
        return list(self.steps) if self.steps else {"decided by": self.onset_key | around}

    @property
    def units_key(self) -> object:
        """All units and their parameters, or what decides them."""
        own = without(self.inputs, "probe", "label")
        if self.together or self.settings.reads_sae or self.settings.only:
            own |= {"found": self.members_key, "only": self.settings.only}
        return known(lambda: as_text(self.units), own)

    @cached_property
    def _ranking(self) -> Artifact | None:
        """The metric of every unit of the last model, where it decides and no curve has it."""
        if self.on_curve or (self.settings.named is not None and self.wanted == 1):
            return None
        step = self.base.checkpoints[-1]

        def build(part: Path) -> None:
            values = dict(self.kind.ranking(self.base.model(step)))
            store.write_json(part / "ranking.json", values)

        read = known(lambda: self.base.read_at(step), {"run": self.base.fingerprint})
        return self._made("ranking", {"base": read, "step": step, "unit": self.inputs}, build)

    @cached_property
    def _emergence(self) -> Artifact | None:
        """The members' metric at the base run's checkpoints, where its curve does not have it."""
        if self.on_curve:
            return None
        steps = self.base.checkpoints

        def build(part: Path) -> None:
            rows = [
                {"step": step, **self._follow(self.base.model(step))}
                for step in self.context.bar(steps, "emergence of the unit", len(steps))
            ]
            store.write_csv(part / "curve.csv", rows)

        read = known(lambda: self.base.read_at(*steps), {"run": self.base.fingerprint})
        unit = self.inputs | {"followed": self.members_key}
        return self._made("emergence", {"base": read, "steps": steps, "unit": unit}, build)

    def _made(self, kind: str, inputs: dict[str, object], build: Build) -> Artifact:
        code = ("mda.stages.locating", module_of(self.settings.kind), *self.base.code)
        return build_together(self.context.store, kind, inputs, build, code, self.base.device)

    def _follow(self, model: PreTrainedModel) -> dict[str, float]:
        values = self.kind.metrics(model, self.members)
        return {f"emergence/{self.settings.metric}/{name}": v for name, v in values.items()}

    def ask(self) -> None:
        """Build what finds and follows the unit, or find it in the store."""
        _ = self._ranking, self._emergence

    def check(self) -> None:
        """Raise ConfigError for a unit that does not exist, or heads that are no mechanism, or
        where there is no window around its onset."""
        named, locate = self.settings.named, self.settings.locate
        found = self.kind.units(self.ranked[: self.wanted], self.together)
        if named is not None and locate not in (names := [unit.name for unit in found]):
            there = f"{names[0]} and {len(names) - 1:,} others"
            raise ConfigError(f"unit.locate={locate} does not exist; accepted: {there}")
        if self.together and (pair := shared_owners(self.units[-1].parts)):
            heads = " and ".join(f"H{head}" for head in pair)
            raise ConfigError(
                f"unit.locate=mechanism of {', '.join(self.members)} is refused: {heads} share "
                "keys and values, which would count twice; accepted: another unit.k, or one head "
                "by its name"
            )
        _ = self.window


def check_label(context: Context, corpus: Corpus) -> None:
    """Raise ConfigError for a `unit.label` that tells nothing apart, before there is a base run."""
    unit = context.config.unit
    try:
        if (label := getattr(unit, "label", None)) is not None:
            with suppress(NotBuilt):
                check_label_of(corpus, label)
    except ValueError as error:
        raise ConfigError(f"unit={unit.name}: {error}") from error


def locate(context: Context, corpus: Corpus, base: Run) -> Located:
    """Find the unit by its metric at the end of the base run, and the window of the edit."""
    found = Located(context, corpus, base)
    found.ask()
    with suppress(NotBuilt):
        found.check()
    return found


def as_text(units: Sequence[Unit]) -> dict[str, list[str]]:
    """Each unit's blocks and its row in them, for files and keys."""
    return {unit.name: [f"{block.name}[{row}]" for block, row in unit.parts] for unit in units}


def _place(name: str) -> tuple[int, ...]:
    digits = "".join(c if c.isdigit() else " " for c in name)
    return tuple(map(int, digits.split()))


def joined(one: Curve, other: Curve) -> Curve:
    """Two curves as one: a row for each step that either has, with the columns it has."""
    rows: dict[float, dict[str, float]] = {}
    for row in (*one, *other):
        rows.setdefault(row["step"], {}).update(row)
    return [rows[step] for step in sorted(rows)]
