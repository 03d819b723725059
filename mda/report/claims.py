"""Verdicts on claims that were written down, with their rule, before the runs.

A claim is data (`conf/report/`): which arm is compared with what, on which metric, in which
direction, and what counts as evidence. The rule, the same for every claim:

Let d_s be the paired differences arm - reference, e their mean turned so that the claimed
direction is positive, [lo, hi] its confidence interval turned likewise, p the one-sided sign-flip
p-value in the claimed direction, Holm-corrected over all tested claims of the report.

    undecided         no such arm, fewer than `min_seeds` pairs, or neither of the following
    replicated        e > margin, and the evidence the claim asks for: `p` (p <= alpha),
                      `interval` (lo > margin), `either` or `both`
    not replicated    hi <= margin: the interval rules out an effect of the claimed size

For direction `none` (the edit does nothing), which needs a margin above 0: replicated where the
interval lies inside [-margin, margin], not replicated where it lies wholly outside.

`p` keeps its level with any number of seeds; the interval is too narrow with few (see
`paired_effect`), so `interval` and `either` are for many. A missing effect is never concluded
from a large p, and few seeds give `undecided`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from mda.report.arms import Arm, by_arm
from mda.report.effects import Comparison, pair
from mda.report.metrics import REFERENCES, Measurements, metrics_of
from mda.report.statistics import Effect, holm, paired_effect

DIRECTIONS = ("less", "greater", "none")
EVIDENCE = ("p", "interval", "either", "both")
VERDICTS = ("replicated", "not replicated", "undecided")
ARM_KEYS = tuple(item.name for item in fields(Arm) if item.name != "extra")


@dataclass(frozen=True)
class Claim:
    """One claim. `arm` gives the fields of `Arm` that must agree; several arms may match."""

    name: str
    text: str
    metric: str
    arm: Mapping[str, str]
    reference: str
    direction: str
    alpha: float = 0.05
    min_seeds: int = 5
    evidence: str = "p"
    margin: float = 0.0

    def __post_init__(self) -> None:
        for key, value, accepted in (
            ("reference", self.reference, REFERENCES),
            ("direction", self.direction, DIRECTIONS),
            ("evidence", self.evidence, EVIDENCE),
            *(("arm", key, ARM_KEYS) for key in self.arm),
        ):
            if value not in accepted:
                raise self._refuse(key, value, f"one of {', '.join(accepted)}")
        if not 0 < self.alpha < 1:
            raise self._refuse("alpha", self.alpha, "a number between 0 and 1")
        if self.min_seeds < 2:
            raise self._refuse("min_seeds", self.min_seeds, "at least 2, for one is no test")
        if self.margin < 0 or (self.direction == "none" and self.margin == 0):
            raise self._refuse("margin", self.margin, "0 or more; above 0 with direction=none")

    def _refuse(self, key: str, value: object, accepted: str) -> ValueError:
        return ValueError(f"claims.{self.name}.{key}={value} is refused; accepted: {accepted}")

    def matches(self, arm: Arm) -> bool:
        """Whether every field the claim names agrees; `match` and `label` must, named or not."""
        wanted = {"match": "", "label": "", **self.arm}
        return all(getattr(arm, key) == value for key, value in wanted.items())


@dataclass(frozen=True)
class Verdict:
    """What the rule says of one claim about one arm, and on which numbers."""

    claim: Claim
    arm: str
    effect: Effect
    p: float | None  # one-sided in the claimed direction; two-sided for `none`
    p_holm: float | None
    family: int
    verdict: str
    reason: str
    seeds: tuple[int, ...] = field(default=())


def judge(
    claims: Sequence[Claim],
    measured: Measurements,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> list[Verdict]:
    """A verdict for each claim and each arm that it speaks of, by the rule of this module.

    Raises ValueError for a claim on a metric that no run has.
    """
    known = metrics_of(measured)
    tests: list[tuple[Claim, Comparison | None, Effect]] = []
    for claim in claims:
        if claim.metric not in known:
            raise ValueError(
                f"claims.{claim.name}.metric={claim.metric} is refused; accepted: "
                f"{', '.join(known)}"
            )
        arms = [(arm, runs) for arm, runs in by_arm(measured.runs).items() if claim.matches(arm)]
        if not arms:
            tests.append((claim, None, paired_effect([])))
        for arm, runs in arms:
            row = pair(measured, arm, runs, claim.reference, claim.metric)
            effect = paired_effect(row.differences, confidence, resamples, seed)
            tests.append((claim, row, effect))
    raw = [_p(claim, effect) for claim, _, effect in tests]
    adjusted = holm(raw)
    family = sum(p is not None for p in raw)
    verdicts = []
    for (claim, row, effect), p, p_holm in zip(tests, raw, adjusted, strict=True):
        word, why = decide(claim, effect, p_holm)
        name, seeds = (row.arm.name, row.seeds) if row else ("", ())
        verdicts.append(Verdict(claim, name, effect, p, p_holm, family, word, why, seeds))
    return verdicts


def decide(claim: Claim, effect: Effect, p_holm: float | None) -> tuple[str, str]:
    """The verdict of one test and its reason in a sentence."""
    if effect.n == 0:
        return "undecided", "there are no runs of this arm with its reference"
    if effect.n < claim.min_seeds:
        few = f"{effect.n} seed{'s' if effect.n > 1 else ''}"
        return "undecided", f"{few}; the claim asks for {claim.min_seeds} or more"
    if effect.mean is None or effect.low is None or effect.high is None:
        return "undecided", effect.note
    if claim.direction == "none":
        return _decide_none(claim.margin, effect.low, effect.high)
    turned = (effect.mean, effect.low, effect.high)
    if claim.direction == "less":
        turned = (-effect.mean, -effect.high, -effect.low)
    mean, low, high = turned
    by_p, by_interval = p_holm is not None and p_holm <= claim.alpha, low > claim.margin
    enough = {
        "p": by_p,
        "interval": by_interval,
        "either": by_p or by_interval,
        "both": by_p and by_interval,
    }[claim.evidence]
    beyond = f"beyond {claim.margin:g}" if claim.margin else "in the claimed direction"
    if mean > claim.margin and enough:
        why = [f"corrected p = {p_holm:.2g} <= {claim.alpha:g}"] if by_p else []
        why += [f"the interval lies {beyond}"] if by_interval else []
        return "replicated", " and ".join(why)
    if high <= claim.margin:
        return "not replicated", f"the interval rules out an effect {beyond}"
    p_said = "no p" if p_holm is None else f"corrected p = {p_holm:.2g}"
    inside = "excludes" if by_interval else "does not exclude"
    return "undecided", f"{p_said}; the interval {inside} {claim.margin:g}"


def _decide_none(margin: float, low: float, high: float) -> tuple[str, str]:
    if -margin <= low and high <= margin:
        return "replicated", f"the interval lies within +-{margin:g}"
    if low > margin or high < -margin:
        return "not replicated", f"the interval lies outside +-{margin:g}"
    return "undecided", f"the interval reaches beyond +-{margin:g}"


def _p(claim: Claim, effect: Effect) -> float | None:
    if effect.n < claim.min_seeds:
        return None
    return {"less": effect.p_less, "greater": effect.p_greater, "none": None}[claim.direction]
