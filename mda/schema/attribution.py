"""The intervention group: where the stream is edited, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from mda.schema.edit import (
    RANDOM,
    Band,
    Bottom,
    Count,
    Edit,
    Ids,
    Match,
    Random,
    Rows,
    Scorer,
    Share,
    Top,
)
from mda.schema.setting import Group, is_range, nearest, setting

IN_EDIT = {
    "mode", "select", "fraction", "count", "band", "ids", "label", "match", "match_targeted",
    "within", "spans", "rows", "scope",
}  # fmt: skip
"""Settings that `InterventionConfig.edit` reads."""

MATCHED_BY = ("label", "loss", "repetition")


@dataclass(frozen=True)
class EditMode:
    """What a mode of an edit does, for those who do not know the mode."""

    maker: str  # `module:function` of its changes, see mda/intervention/choice.py
    of: str = "samples"  # what is chosen, and amounts are of: samples or tokens
    reads: tuple[str, ...] = ()  # settings that no other mode reads
    draws: bool = False  # other numbers than the choice, from the edit's seed
    takes_unused: bool = False  # as many samples from behind the window as are edited


@dataclass
class InterventionConfig(Group):
    """The place of the edit in the stream; its class is chosen by `intervention=...`."""

    key: ClassVar[str] = "intervention"
    edits: ClassVar[bool] = True
    maker: ClassVar[str] = ""  # of a kind without modes
    modes: ClassVar[Mapping[str, EditMode]] = {}
    name: str = setting("???", "kind of edit, set by intervention=...")
    window: Any = setting(
        "auto",
        "steps [start,end) that are edited and retrained; auto: around the onset",
        accepts="auto, or steps [start,end] with start below end",
    )
    before_onset: int = setting(
        500, "auto window: starts at least this many steps before the onset", low=0
    )
    after_onset: int = setting(1500, "auto window: ends this many steps after the onset", low=1)
    until: int | None = setting(
        None,
        "step to which the arm trains on after the window, unedited; null: it ends there",
        low=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window != "auto" and not is_range(self.window):
            raise self._refuse("window", "auto, or steps [start,end] with 0 <= start < end")
        if self.until is None:
            return
        if self.steps is not None and self.until <= self.steps[1]:
            raise self._refuse("until", f"a step after the window's end, {self.steps[1]}, or null")
        if self.edit_mode.takes_unused:
            taken = "whose samples come from behind the window"
            raise self._refuse("until", f"null with mode={getattr(self, 'mode', '')}, {taken}")

    @property
    def edit_mode(self) -> EditMode:
        """The maker of its changes, and what that reads."""
        return self.modes.get(getattr(self, "mode", ""), EditMode(self.maker, draws=True))

    @property
    def idle(self) -> set[str]:
        """The names of settings without effect on the edit, given the others."""
        return set()

    @property
    def by_token(self) -> bool:
        """True if single tokens are edited: amounts are then of the window's tokens."""
        return self.edit_mode.of == "tokens"

    @property
    def by_scores(self) -> bool:
        """True if the edit depends on the samples' scores."""
        return False

    @property
    def scores_tokens(self) -> bool:
        """True if single tokens are chosen, which requires a score for each token."""
        return False

    @property
    def inserted(self) -> str | None:
        """The file of rows from outside the corpus, if the edit inserts any."""
        return None

    @property
    def chooses(self) -> bool:
        """True if samples are chosen by their scores."""
        return self.edits and self.inserted is None

    @property
    def steps(self) -> tuple[int, int] | None:
        """The window if it is given in steps, None for auto."""
        return None if self.window == "auto" else (self.window[0], self.window[1])

    def edit(self, estimator: str) -> Edit:
        """Returns the edit of these settings, given the estimator that scores the samples."""
        return Edit(self.name)


@dataclass
class EditConfig(InterventionConfig):
    """The choice of the window's samples that are edited."""

    select: str = setting(
        "top", "samples by their score", one_of=("top", "bottom", "band", "random", "ids")
    )
    fraction: float | None = setting(
        0.1, "share of the window's samples, or tokens where these are edited", above=0, high=1
    )
    count: int | None = setting(None, "number of samples or tokens, in place of fraction", low=1)
    label: str | None = setting(None, "choose among samples of this class only")
    ids: list[int] = setting([], "sample ids, with select=ids", low=0)
    band: list[float] | None = setting(
        None, "quantiles [lower,upper] of the score, with select=band", low=0, high=1
    )
    seed: int = setting(
        0,
        "seed of select=random, match, mode=replace and mode=spans, mixed with the run's",
        low=0,
        high=2**32 - 1,
    )
    match: str = setting(
        "none",
        "give a random set the targeted one's distribution of label, loss, repetition, or several "
        "jointly, as label+repetition; sample: of tokens",
        accepts="none, sample, or one or more of label, loss, repetition, joined by +",
    )
    scope: str = setting(
        "all",
        "parameters whose gradient is the edited stream's: unit, its own; others; all. The rest "
        "have the unedited stream's",
        one_of=("unit", "others", "all"),
    )
    match_targeted: str = setting(
        "exclude", "whether a matched set may contain targeted samples", one_of=("exclude", "allow")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.select == "ids") != bool(self.ids):
            raise self._refuse("ids", "a list of sample ids with intervention.select=ids, else []")
        if (self.select == "band") != (self.band is not None):
            raise self._refuse("band", "[lower,upper] with intervention.select=band, else null")
        if self.band is not None and (len(self.band) != 2 or self.band[0] >= self.band[1]):
            raise self._refuse("band", "[lower,upper] with lower below upper, from 0 to 1")
        named = self.match.split("+")
        alone = self.match in ("none", "sample")
        if not alone and (len({*named}) < len(named) or not {*named} <= {*MATCHED_BY}):
            close = nearest(self.match, ("none", "sample", *MATCHED_BY))
            raise self._refuse("match", f"none, sample, or of {', '.join(MATCHED_BY)} one or more, "
                               f"joined by +{close}")  # fmt: skip
        if self.match == "sample" and not self.scores_tokens:
            accepted = f"none, {', '.join(MATCHED_BY)}; sample where mode=mask_tokens"
            raise self._refuse("match", accepted)
        amount = self.select in ("top", "bottom", "random")
        if amount and (self.fraction is None) == (self.count is None):
            raise self._refuse("count", "either a count or intervention.fraction, the other null")

    def edit(self, estimator: str) -> Edit:
        choose = self._choice()
        amount = None
        if self.select not in ("band", "ids"):
            share = self.fraction
            amount = Count(self.count or 0) if share is None else Share(share)
        edit = Edit(
            self.name,
            by=Scorer(estimator) if isinstance(choose, Top | Bottom | Band) else None,
            choose=choose,
            amount=amount,
            label=self.label,
            match=self._match(),
            scope=self._scope,
        )
        if edit.source == RANDOM:  # random scores have no top: any selection is a random set
            edit = replace(edit, by=None, choose=Random(), amount=edit.size)
        return edit

    @property
    def by_scores(self) -> bool:
        return self.select in ("top", "bottom", "band") or "loss" in self.matched_by

    @property
    def idle(self) -> set[str]:
        mode = self.edit_mode
        idle = {name for other in self.modes.values() for name in other.reads} - {*mode.reads}
        if self.select in ("band", "ids"):
            idle |= {"fraction", "count"}
        if self.select == "ids":
            idle.add("label")
        if self.match == "none":
            idle.add("match_targeted")
        if not (mode.draws or self.select == "random" or self.match != "none"):
            idle.add("seed")
        return idle

    @property
    def matched_by(self) -> tuple[str, ...]:
        """The properties of samples that a matched set has in common with the targeted one."""
        return tuple(name for name in MATCHED_BY if name in self.match.split("+"))

    @property
    def _scope(self) -> str:
        return "" if self.scope == "all" else self.scope

    def _match(self) -> Match | None:
        if self.match == "none":
            return None
        return Match(
            "+".join(self.matched_by) or self.match, targeted=self.match_targeted == "allow"
        )

    def _choice(self) -> Top | Bottom | Band | Random | Ids:
        if self.band is not None:
            return Band(*map(float, self.band))
        if self.select == "ids":
            return Ids(tuple(sorted(self.ids)))
        return {"top": Top, "bottom": Bottom, "random": Random}[self.select]()


@dataclass
class RemoveConfig(EditConfig):
    """Takes samples, single tokens or repetitions out of the window."""

    modes: ClassVar[Mapping[str, EditMode]] = {
        "mask": EditMode("mda.intervention.changes:removal"),
        "drop": EditMode("mda.intervention.changes:removal", takes_unused=True),
        "replace": EditMode("mda.intervention.changes:removal", draws=True, takes_unused=True),
        "mask_tokens": EditMode("mda.intervention.tokens:masking", "tokens", ("within",)),
        "spans": EditMode(
            "mda.intervention.spans:replacement", "tokens", ("spans", "ngram"), draws=True
        ),
    }

    name: str = setting("remove", "kind of edit", one_of=("remove",))
    mode: str = setting(
        "mask",
        "mask: loss weight 0 in place; drop: the stream closes up; replace: by unused samples; "
        "mask_tokens: the loss of single tokens; spans: other tokens where a sample repeats itself",
        one_of=tuple(modes),
    )
    within: float | None = setting(
        None, "with mode=mask_tokens, tokens of this share of samples only, null: of all",
        above=0, high=1,
    )  # fmt: skip
    spans: str = setting(
        "fresh",
        "with mode=spans, fresh: no repetition is left; renamed: it stays, in other tokens",
        one_of=("fresh", "renamed"),
    )
    ngram: int = setting(3, "with mode=spans, tokens in a run that counts as repeated", low=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by_token and self.select not in ("top", "bottom", "random"):
            raise self._refuse("select", f"top, bottom, random with mode={self.mode}")
        if self.by_token and self.match not in ("none", "sample"):
            raise self._refuse("match", f"none{', sample' * (self.mode == 'mask_tokens')}")
        if self.within is not None and self.mode != "mask_tokens":
            raise self._refuse("within", "null, or intervention.mode=mask_tokens")

    @property
    def scores_tokens(self) -> bool:
        return self.mode == "mask_tokens" and self.select != "random"

    def edit(self, estimator: str) -> Edit:
        edit = replace(super().edit(estimator), mode=self.mode)
        if self.by_token and edit.amount is not None:
            amount = replace(edit.amount, of="tokens", within=self.within)
            spans = self.spans if self.mode == "spans" else ""
            edit = replace(edit, amount=amount, spans=spans)
        return edit


@dataclass
class AugmentConfig(EditConfig):
    """Gives samples of the window more weight, or inserts rows of your own."""

    modes: ClassVar[Mapping[str, EditMode]] = {
        "duplicate": EditMode("mda.intervention.changes:augmentation"),
        "upweight": EditMode("mda.intervention.changes:augmentation", reads=("weight",)),
        "insert": EditMode(
            "mda.intervention.changes:insertion", reads=("rows", "at_step", "per_step")
        ),
    }

    name: str = setting("augment", "kind of edit", one_of=("augment",))
    mode: str = setting(
        "duplicate",
        "duplicate: one more copy in its step; upweight: its loss; insert: rows from a file",
        one_of=tuple(modes),
    )
    weight: float = setting(2.0, "loss weight with mode=upweight", above=0)
    rows: str | None = setting(None, ".npy of token rows with mode=insert")
    at_step: int | None = setting(None, "first step of mode=insert, null: window's start", low=0)
    per_step: int = setting(1, "rows that mode=insert adds to a step", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.mode == "insert") != (self.rows is not None):
            raise self._refuse("rows", "a file of token rows with mode=insert, else null")

    @property
    def inserted(self) -> str | None:
        return self.rows

    @property
    def by_scores(self) -> bool:
        return self.inserted is None and super().by_scores

    @property
    def idle(self) -> set[str]:
        idle = super().idle
        if self.inserted is None:
            return idle
        return idle | {item.name for item in fields(EditConfig)}  # nothing is chosen

    def edit(self, estimator: str) -> Edit:
        if self.rows is not None:  # how many there are is known once the file is read
            return Edit(self.name, self.mode, by=Rows(Path(self.rows).stem), scope=self._scope)
        return replace(super().edit(estimator), mode=self.mode)


@dataclass
class ControlConfig(InterventionConfig):
    """Trains on the unedited stream through the same code."""

    edits: ClassVar[bool] = False
    maker: ClassVar[str] = "mda.intervention.changes:unedited"

    name: str = setting("control", "kind of edit", one_of=("control",))
    fraction: float | None = setting(None, "no effect: the edits' amount, which presets give")
    count: int | None = setting(None, "no effect: the edits' amount, which presets give")


INTERVENTIONS: dict[str, type[Group]] = {
    "remove": RemoveConfig, "augment": AugmentConfig, "control": ControlConfig,
}  # fmt: skip
"""The options of `intervention`."""
