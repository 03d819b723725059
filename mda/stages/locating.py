"""Where the unit is, how it emerged in the base run, and which window that spans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel

from mda import store
from mda.data.stream import Corpus
from mda.emergence.callback import Follow
from mda.emergence.onset import Curve, Onset, there_before, unit_onset, units_of
from mda.intervention.window import auto_window
from mda.schema import ConfigError
from mda.stages.context import Context, build_together, without
from mda.stages.plugin import kind_of, module_of
from mda.stages.runs import Run
from mda.stages.sae import sae_of
from mda.training.table import read_rows
from mda.types import Unit, Window
from mda.unit.blocks import shared_owners
from mda.unit.kind import Materials, UnitKind
from mda.unit.kind import check_label as check_label_of

NOT_THE_MEASUREMENT = ("name", "locate", "k", "metric", "threshold", "source", "only")


@dataclass(frozen=True)
class Located:
    """The unit that was found, in its window, among all units of its kind."""

    name: str  # L3H1, or mechanism
    members: tuple[str, ...]  # the unit; of a mechanism its heads, strongest first
    window: Window
    curve: Curve  # of the base run; rows of kept checkpoints have the members' metric
    kind: UnitKind
    units: tuple[Unit, ...]  # everything that is scored in one pass
    inputs: dict[str, object]  # what decides the units' measurement
    follow: Follow | None  # measures the members where curves do not anyway
    there_before: bool  # at the first step of the base run's curve: it did not emerge in that run


def check_label(context: Context, corpus: Corpus) -> None:
    """Raise ConfigError for a `unit.label` that tells nothing apart, before there is a base run."""
    unit = context.config.unit
    try:
        if (label := getattr(unit, "label", None)) is not None:
            check_label_of(corpus, label)
    except ValueError as error:
        raise ConfigError(f"unit={unit.name}: {error}") from error


def locate(context: Context, corpus: Corpus, base: Run) -> Located:
    """Find the unit by its metric at the end of the base run, and the window of the edit."""
    settings = context.config.unit
    sae = sae_of(context, corpus, base)
    inputs = without(asdict(settings), *NOT_THE_MEASUREMENT) | {"kind": settings.kind}
    if sae is not None:
        inputs["sae"] = sae.fingerprint()
    try:
        kind = kind_of(settings, Materials(corpus, base.architecture, sae))
    except ValueError as error:
        raise ConfigError(f"unit={settings.name}: {error}") from error
    wanted, together = getattr(settings, "k", 1), settings.locate == "mechanism"
    ranked = [settings.locate] if settings.named is not None else []
    if len(ranked) < wanted:  # one that is named and traced alone needs no other's metric
        ranked += [n for n in _ranked(context, base, kind, inputs) if n not in ranked]
    units = tuple(kind.units(ranked[:wanted], together))
    if settings.named is not None and ranked[0] not in (names := [unit.name for unit in units]):
        there = f"{names[0]} and {len(names) - 1:,} others"
        raise ConfigError(f"unit.locate={ranked[0]} does not exist; accepted: {there}")
    members = tuple(ranked[: wanted if together else 1])
    if together and (pair := shared_owners(units[-1].parts)):
        heads = " and ".join(f"H{head}" for head in pair)
        raise ConfigError(
            f"unit.locate=mechanism of {', '.join(members)} is refused: {heads} share keys and "
            "values, which would count twice; accepted: another unit.k, or one head by its name"
        )
    name = "mechanism" if together else members[0]
    if settings.only:
        units = tuple(unit for unit in units if unit.name == name)
    curve, follow = base.curve, None
    if members[0] not in units_of(base.curve, settings.metric):
        follow = _follower(kind, settings.metric, members)
        followed = _followed(context, base, follow, inputs | {"followed": list(members)})
        curve = joined(base.curve, followed)
    emerged = unit_onset(curve, settings.metric, members[0], settings.threshold)
    window = _window(context, base, emerged, members[0])
    return Located(name, members, window, curve, kind, units, inputs, follow, emerged.before)


def _ranked(context: Context, base: Run, kind: UnitKind, inputs: Mapping[str, object]) -> list[str]:
    """All units by their metric at the end of the base run, strongest first."""
    metric, last = context.config.unit.metric, base.curve[-1]
    if names := units_of(base.curve, metric):
        return sorted(names, key=lambda name: (-last[f"emergence/{metric}/{name}"], _place(name)))
    step = base.checkpoints[-1]

    def build(part: Path) -> None:
        store.write_json(part / "ranking.json", dict(kind.ranking(base.model(step))))

    entering = {"base": base.read_at(step), "step": step, "unit": dict(inputs)}
    code = code_of(context, base)
    found = build_together(context.store, "ranking", entering, build, code, base.device)
    values = store.read_json(found.path / "ranking.json")
    return sorted(values, key=lambda name: (-values[name], _place(name)))


def code_of(context: Context, base: Run) -> tuple[str, ...]:
    """The modules that rank and follow units."""
    return "mda.stages.locating", module_of(context.config.unit.kind), base.adapter


def _place(name: str) -> tuple[int, ...]:
    digits = "".join(c if c.isdigit() else " " for c in name)
    return tuple(map(int, digits.split()))


def _follower(kind: UnitKind, metric: str, names: tuple[str, ...]) -> Follow:
    def follow(model: PreTrainedModel) -> dict[str, float]:
        values = kind.metrics(model, names)
        return {f"emergence/{metric}/{name}": value for name, value in values.items()}

    return follow


def _followed(context: Context, base: Run, follow: Follow, inputs: Mapping[str, object]) -> Curve:
    """The base run's curve at its kept checkpoints, with the followed units' metric."""

    def build(part: Path) -> None:
        steps = base.checkpoints
        rows = [
            {"step": step, **follow(base.model(step))}
            for step in context.bar(steps, "emergence of the unit", len(steps))
        ]
        store.write_csv(part / "curve.csv", rows)

    read = base.read_at(*base.checkpoints)
    entering = {"base": read, "steps": base.checkpoints, "unit": dict(inputs)}
    code = code_of(context, base)
    found = build_together(context.store, "emergence", entering, build, code, base.device)
    return read_rows(found.path / "curve.csv")


def joined(one: Curve, other: Curve) -> Curve:
    """Two curves as one: a row for each step that either has, with the columns it has."""
    rows: dict[float, dict[str, float]] = {}
    for row in (*one, *other):
        rows.setdefault(row["step"], {}).update(row)
    return [rows[step] for step in sorted(rows)]


def _window(context: Context, base: Run, emerged: Onset, unit: str) -> Window:
    edit, last = context.config.intervention, int(base.curve[-1]["step"])
    if edit.steps is not None:
        start, end = edit.steps
        return Window(start, end, emerged.step, f"as given: [{start}, {end})")
    margins = edit.before_onset, edit.after_onset
    try:
        window = auto_window(emerged.step, base.checkpoints, last, *margins)
    except ValueError as error:
        raise ConfigError(f"intervention.window=auto: {unit}: {error}") from error
    if emerged.before:
        rule = f"{there_before(unit)}; it has no onset, so the window is the first steps"
        return replace(window, rule=f"{rule}: [{window.start}, {window.end})")
    return window
