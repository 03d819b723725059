"""Groups that trace and edit: unit, estimator, intervention."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mda.schema.run import DISTRIBUTIONS
from mda.schema.setting import Group, is_range, nearest, setting

HEAD_METRICS = ("prefix_matching", "previous_token")
BLOCKS = ("qk", "v", "o")


@dataclass
class ProbeConfig(Group):
    """The differentiable probe of a unit: what it asks and on which tokens."""

    key: ClassVar[str] = "unit.probe"
    target: str = setting(
        "copy",
        "copy: log p of the token that followed the first time; previous_token: A[t, t-1]",
        one_of=("copy", "previous_token"),
    )
    n_sequences: int = setting(64, "probe sequences", low=1)
    length: int = setting(64, "tokens of a sequence before it repeats", low=2)
    repeats: int = setting(2, "how often these tokens stand in a sequence", low=1)
    distribution: str = setting(
        "unigram_sqrt", "what probe tokens are drawn from", one_of=DISTRIBUTIONS
    )
    seed: int = setting(
        1, "seed of the probe tokens; another than emergence.seed", low=0, high=2**32 - 1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target == "copy" and self.repeats < 2:
            raise self._refuse("repeats", "at least 2 with unit.probe.target=copy")


@dataclass
class UnitConfig(Group):
    """The triple of a unit: metric, own parameters, probe."""

    key: ClassVar[str] = "unit"
    name: str = setting("induction_head", "preset, for tables and figures")
    metric: str = setting("prefix_matching", "metric that finds it", one_of=HEAD_METRICS)
    threshold: float = setting(0.06, "metric from which a head counts as one", above=0, below=1)
    locate: str = setting(
        "auto",
        "auto: strongest head of the base run; mechanism: the k strongest together; all; or L3H1",
        accepts="auto, mechanism, all, or a head such as L3H1",
    )
    k: int = setting(2, "heads of the mechanism", low=1)
    blocks: list[str] = setting(
        list(BLOCKS), "its own parameters; qk is W_Q and W_K as one block", one_of=BLOCKS
    )
    biases: bool = setting(False, "count the biases of these blocks as its own")
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ("auto", "mechanism", "all")
        if self.locate not in known and self.head is None:
            raise self._refuse(
                "locate", f"{', '.join(known)}, or a head such as L3H1{nearest(self.locate, known)}"
            )
        if not self.blocks or len(set(self.blocks)) < len(self.blocks):
            raise self._refuse("blocks", f"each of {', '.join(BLOCKS)} at most once, one at least")

    @property
    def head(self) -> tuple[int, int] | None:
        """Layer and head where `locate` names one, else None."""
        match = re.fullmatch(r"L(\d+)H(\d+)", self.locate)
        return (int(match[1]), int(match[2])) if match else None


MOMENTS = ("onset", "window_middle", "window_end")


@dataclass
class EstimatorConfig(Group):
    """How samples are scored; its class is chosen by `estimator=...`."""

    key: ClassVar[str] = "estimator"
    name: str = setting("???", "kind of estimator, set by estimator=...")


@dataclass
class EkfacConfig(EstimatorConfig):
    """Influence with EK-FAC curvature at one checkpoint."""

    name: str = setting("ekfac", "kind of estimator", one_of=("ekfac",))
    checkpoint: int | str = setting(
        "window_middle",
        f"which is scored: {', '.join(MOMENTS)}, or a step",
        accepts=f"{', '.join(MOMENTS)}, or a step that has a checkpoint",
    )
    damping: float = setting(0.1, "added to the eigenvalues, as a share of their mean", above=0)
    fit_sequences: int | None = setting(
        4096, "samples the curvature is fitted on, null: the whole window", low=1
    )
    labels: str = setting(
        "sampled", "labels of the Fisher: the model's own, or the data's",
        one_of=("sampled", "empirical"),
    )  # fmt: skip
    batch_size: int = setting(32, "sequences in a pass; no effect on the result", low=1)
    seed: int = setting(0, "seed of the subset and of sampled labels", low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.checkpoint, int) and self.checkpoint >= 0:
            return
        if self.checkpoint not in MOMENTS:
            close = nearest(str(self.checkpoint), MOMENTS)
            raise self._refuse("checkpoint", f"{', '.join(MOMENTS)}, or a step{close}")


@dataclass
class TracinConfig(EstimatorConfig):
    """Gradient dot products summed over checkpoints."""

    name: str = setting("tracin", "kind of estimator", one_of=("tracin",))
    checkpoints: list[int] | None = setting(
        None, "steps that are summed over, null: estimator.n_checkpoints of the window", low=0
    )
    n_checkpoints: int | None = setting(
        3, "spread evenly over the window's steps; each is a pass, null: all there are", low=1
    )
    lr_weights: bool = setting(True, "weight each checkpoint by its learning rate")
    adam_preconditioning: bool = setting(False, "divide by the root of Adam's second moment")
    batch_size: int = setting(32, "sequences in a pass; no effect on the result", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoints is not None and not self.checkpoints:
            raise self._refuse("checkpoints", "at least one step, or null")


@dataclass
class RandomConfig(EstimatorConfig):
    """Scores drawn from a seeded generator: the baseline of equal size."""

    name: str = setting("random", "kind of estimator", one_of=("random",))
    seed: int = setting(0, "seed of the scores", low=0, high=2**32 - 1)


@dataclass
class InterventionConfig(Group):
    """Where the stream is edited; the class is chosen by `intervention=...`."""

    key: ClassVar[str] = "intervention"
    name: str = setting("???", "kind of edit, set by intervention=...")
    window: Any = setting(
        "auto",
        "steps [start,end) that are edited and retrained; auto: around the onset",
        accepts="auto, or steps [start,end] with start below end",
    )
    before_onset: int = setting(500, "auto window: starts at least so many steps before", low=0)
    after_onset: int = setting(1500, "auto window: ends so many steps after", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window != "auto" and not is_range(self.window):
            raise self._refuse("window", "auto, or steps [start,end] with 0 <= start < end")

    @property
    def steps(self) -> tuple[int, int] | None:
        """The window where it is given in steps, None for auto."""
        return None if self.window == "auto" else (self.window[0], self.window[1])


@dataclass
class EditConfig(InterventionConfig):
    """Which samples of the window are edited."""

    select: str = setting(
        "top", "samples by their score", one_of=("top", "bottom", "band", "random", "ids")
    )
    fraction: float | None = setting(0.1, "share of the window's samples", above=0, high=1)
    count: int | None = setting(None, "number of samples, in place of fraction", low=1)
    label: str | None = setting(None, "choose among samples of this class only")
    ids: list[int] = setting([], "sample ids, with select=ids", low=0)
    band: list[float] | None = setting(
        None, "quantiles [lower,upper] of the score, with select=band", low=0, high=1
    )
    seed: int = setting(0, "seed of select=random and of match", low=0, high=2**32 - 1)
    match: str = setting(
        "none", "give a random set the targeted one's distribution",
        one_of=("none", "label", "loss"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.select == "ids") != bool(self.ids):
            raise self._refuse("ids", "a list of sample ids with intervention.select=ids, else []")
        if (self.select == "band") != (self.band is not None):
            raise self._refuse("band", "[lower,upper] with intervention.select=band, else null")
        if self.band is not None and (len(self.band) != 2 or self.band[0] >= self.band[1]):
            raise self._refuse("band", "[lower,upper] with lower below upper, from 0 to 1")
        amount = self.select in ("top", "bottom", "random")
        if amount and (self.fraction is None) == (self.count is None):
            raise self._refuse("count", "either a count or intervention.fraction, the other null")


@dataclass
class RemoveConfig(EditConfig):
    """Take samples out of the window."""

    name: str = setting("remove", "kind of edit", one_of=("remove",))
    mode: str = setting(
        "mask",
        "mask: loss weight 0 in place; drop: the stream closes up; replace: by unused samples",
        one_of=("mask", "drop", "replace"),
    )


@dataclass
class AugmentConfig(EditConfig):
    """Give samples of the window more weight, or insert rows of your own."""

    name: str = setting("augment", "kind of edit", one_of=("augment",))
    mode: str = setting(
        "duplicate",
        "duplicate: one more copy in its step; upweight: its loss; insert: rows from a file",
        one_of=("duplicate", "upweight", "insert"),
    )
    weight: float = setting(2.0, "loss weight with mode=upweight", above=0)
    rows: str | None = setting(None, ".npy of token rows with mode=insert")
    at_step: int | None = setting(None, "first step of mode=insert, null: window's start", low=0)
    per_step: int = setting(1, "rows that mode=insert adds to a step", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.mode == "insert") != (self.rows is not None):
            raise self._refuse("rows", "a file of token rows with mode=insert, else null")


@dataclass
class ControlConfig(InterventionConfig):
    """The unedited stream through the same code."""

    name: str = setting("control", "kind of edit", one_of=("control",))
