"""Verdicts on the claims of a study, by one rule.

A claim is data (`conf/study/`): an arm of the study, a reference, a metric and a direction.
Evidence is a p-value and nothing else: that of permuting the label "arm" within each seed
(`label_p`), corrected by Holm over all claims of the claim's family, whether or not they could be
tested. Let e be the mean paired difference arm - reference, turned so that the claimed direction is
positive:

    claim             evidence for it           evidence against it
    less, greater     H0: e <= margin           H0: e >= max(margin, expected)
    none              H0: |e| >= margin         H0: |e| <= margin

    supported               corrected p for <= alpha; the reason says if it is smaller than claimed
    refuted                 corrected p against <= alpha: the effect goes the other way, or lies
                            outside the margin of a claim of none
    ruled out at this size  corrected p against <= alpha for a claim of a size, max(margin,
                            expected) > 0: no effect is as large as that
    undecided               neither; no such arm; fewer than `min_seeds` pairs

The onset of a run that does not reach the threshold in its window counts as the window's end. That
is a bound and not a value: evidence that would need the value is not used (`allowed`).

The evidence for `none` is an equivalence test: two one-sided tests at the same level in the same
family. So the probability that any false claim of a family is called supported is at most alpha,
whatever the mixture of directions, where false claims are false in the sharp sense: the edit adds
the same in every seed. Of a mean effect that differs between seeds and is skewed a test rejects
more often (tests/report/null_simulation.py measures both). Claims that name no family are one
family, the whole study. A missing effect
is never concluded from a large p, and few seeds give `undecided`. That holds for one look at all
seeds of a study: verdicts while seeds are missing are `interim`, since whoever looks often enough
finds a small p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from mda.analysis.arms import Arm, Run, arm_as, by_arm
from mda.analysis.effects import pair
from mda.analysis.metrics import Measurements, metrics_of, references_of
from mda.analysis.statistics import (
    DRAWS,
    Effect,
    Seed,
    equivalence_p,
    holm,
    label_p,
    least_p,
    paired_effect,
)
from mda.schema import OPTIONS, REFERENCES, ClaimConfig, StudyConfig, refuse
from mda.schema.edit import Rows
from mda.schema.old_words import DATED, metric_now
from mda.schema.setting import nearest

VERDICTS = ("supported", "refuted", "ruled out at this size", "undecided")
SUPPORTED, REFUTED, SMALLER, UNDECIDED = VERDICTS


@dataclass(frozen=True)
class Verdict:
    """The verdict of the rule on one claim, and its numbers."""

    name: str
    claim: ClaimConfig
    arm: str
    effect: Effect
    p: float | None  # for the claim
    p_holm: float | None
    against_holm: float | None  # corrected p against it
    family: int  # claims of its family
    alpha: float
    verdict: str  # one of `VERDICTS`
    reason: str
    status: str  # registered, interim or exploratory; then what is wrong with the runs' code
    status_reason: str
    seeds: tuple[int, ...] = ()
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Test:
    arm: str
    seeds: tuple[int, ...]
    labelled: tuple[Seed, ...]
    dropped: tuple[str, ...]
    problem: str  # why there is nothing to test; else empty
    censored: tuple[bool, bool] = (False, False)  # onsets of the arm, of the reference


def judge(
    study: StudyConfig,
    measured: Measurements,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> list[Verdict]:
    """Returns a verdict for each claim of the study, by the rule of this module.

    Runs of seeds that the study does not list are left out. Raises ConfigError for a claim on a
    metric that no run has, and for a reference that is neither one of `REFERENCES` nor an arm of
    the study nor an estimator.
    """
    _refuse_unknown(study, measured)
    tests = {name: _gather(study, claim, measured) for name, claim in study.claims.items()}
    corrected = []
    raw = []
    for side, test_of in enumerate((evidence, counter_evidence)):
        p_values = {
            name: test_of(claim, tests[name].labelled, seed=seed)
            if len(tests[name].labelled) >= claim.min_seeds
            and allowed(claim, *tests[name].censored)[side]
            else None
            for name, claim in study.claims.items()
        }
        raw.append(p_values)
        corrected.append(_corrected(study, p_values))
    reach = _corrected(
        study,
        {name: None if p is None else least_p(tests[name].labelled) for name, p in raw[0].items()},
    )
    verdicts = []
    for name, claim in study.claims.items():
        test = tests[name]
        bootstrapped = resamples if study.hash in DATED else None
        effect = paired_effect(test.labelled, confidence, bootstrapped, seed)
        p_holm, against = corrected[0][name], corrected[1][name]
        word, why = decide(claim, effect, p_holm, against, study.alpha)
        least, family = reach[name], family_size(study, claim.family)
        if word == UNDECIDED and not all(allowed(claim, *test.censored)):
            why = f"the onset of some runs of {_whose(test.censored)} lies beyond the window"
        elif word == UNDECIDED and least is not None and least > study.alpha:
            why = (
                f"{effect.n} seeds decide nothing: of {family} claims no corrected p < {least:.2g}"
            )
        status, status_reason = registration(study, claim, measured.runs)
        if status.startswith("registered") and test.seeds:
            left = {*study.seeds} - {*test.seeds}
            if left:
                told = f"{len(test.seeds)} of the study's {len(study.seeds)} seeds; missing"
                status = status.replace("registered", "interim")
                status_reason = f"{told} {', '.join(map(str, sorted(left)))}"
            elif len({(len(pair.arm), len(pair.reference)) for pair in test.labelled}) > 1:
                status = status.replace("registered", "interim")
                status_reason = "some seeds have more runs than others"
        verdicts.append(
            Verdict(
                name=name,
                claim=claim,
                arm=test.arm,
                effect=effect,
                p=raw[0][name],
                p_holm=p_holm,
                against_holm=against,
                family=family,
                alpha=study.alpha,
                verdict=word,
                reason=test.problem or why,
                status=status,
                status_reason=status_reason,
                seeds=test.seeds,
                dropped=test.dropped,
            )
        )
    return verdicts


def family_size(study: StudyConfig, family: str) -> int:
    """Returns the number of claims of a family: those of the study, whatever was run."""
    return sum(claim.family == family for claim in study.claims.values())


def evidence(claim: ClaimConfig, seeds: Sequence[Seed], draws: int = DRAWS, seed: int = 0) -> float:
    """Returns the uncorrected p-value for a claim: of the H0 that the claim is false."""
    if claim.direction == "none":
        return equivalence_p(seeds, claim.margin, draws, seed)
    if claim.direction == "greater":
        return label_p(seeds, claim.margin, draws, seed)[1]
    return label_p(seeds, -claim.margin, draws, seed)[0]


def counter_evidence(
    claim: ClaimConfig, seeds: Sequence[Seed], draws: int = DRAWS, seed: int = 0
) -> float:
    """Returns the uncorrected p-value against a claim: of the H0 of the claimed effect size."""
    if claim.direction == "none":
        above = label_p(seeds, claim.margin, draws, seed)[1]
        below = label_p(seeds, -claim.margin, draws, seed)[0]
        return min(1.0, 2 * min(above, below))
    size = max(claim.margin, claim.expected)
    if claim.direction == "greater":
        return label_p(seeds, size, draws, seed)[0]
    return label_p(seeds, -size, draws, seed)[1]


def allowed(claim: ClaimConfig, arm_censored: bool, reference_censored: bool) -> tuple[bool, bool]:
    """Returns whether evidence for and against a claim is possible where some onsets are bounds.

    With such onsets in the arm alone the difference is a lower bound, which can show that it is
    greater and not that it is less; in the reference alone it is an upper one; in both, or for a
    claim of no effect, nothing can be shown.
    """
    greater, less = not reference_censored, not arm_censored
    if claim.direction == "none":
        return greater and less, greater and less
    return (greater, less) if claim.direction == "greater" else (less, greater)


def _whose(censored: tuple[bool, bool]) -> str:
    return " and ".join(
        name
        for name, is_censored in zip(("the arm", "its reference"), censored, strict=True)
        if is_censored
    )


def decide(
    claim: ClaimConfig,
    effect: Effect,
    p_holm: float | None,
    against: float | None,
    alpha: float,
) -> tuple[str, str]:
    """Returns the verdict of one claim from its corrected p-values, with its reason."""
    if effect.n == 0:
        return UNDECIDED, "there are no runs of this arm with its reference"
    if effect.n < claim.min_seeds:
        few = f"{effect.n} seed{'s' if effect.n > 1 else ''}"
        return UNDECIDED, f"{few}; the claim asks for {claim.min_seeds} or more"
    p_holm, against = (1.0 if p is None else p for p in (p_holm, against))
    size = max(claim.margin, claim.expected)
    if claim.direction == "none":
        inside = f"the effect lies within ±{claim.margin:g}"
        outside = f"the effect lies outside ±{claim.margin:g}"
    else:
        beyond = f"more than {claim.margin:g} " if claim.margin else ""
        inside = f"an effect {beyond}in the claimed direction"
        outside = f"no effect of {size:g} or more" if size else "an effect the other way"
    ruled_out = f"{outside}: corrected p = {against:.2g} ≤ {alpha:g}"
    if p_holm <= alpha:
        smaller = f", but {ruled_out}" if against <= alpha else ""
        return SUPPORTED, f"{inside}: corrected p = {p_holm:.2g} ≤ {alpha:g}{smaller}"
    if against <= alpha:
        return SMALLER if claim.direction != "none" and size else REFUTED, ruled_out
    return UNDECIDED, f"corrected p = {p_holm:.2g} for the claim, {against:.2g} against it"


def registration(study: StudyConfig, claim: ClaimConfig, runs: Sequence[Run]) -> tuple[str, str]:
    """Returns whether a claim was registered before the first run of its arm: (status, why).

    `registered` needs a study with a hash and a date, for which every run of the arm in the study's
    seeds was started: each keeps the hash that the study had then. Everything else is
    `exploratory`. The status names runs that were started from a changed checkout, or outside of
    one.
    """
    if study.exploratory:
        return "exploratory", "the claims were formed on runs of these seeds"
    written = study.written()
    if study.hash is None or written is None:
        return "exploratory", "the study has no hash or no date"
    arm = arm_as(study.arm(claim.arm))
    arm_runs = [run for run in runs if run.arm.fits(arm) and _listed(study, run.seed)]
    if not arm_runs:
        return "registered", "the arm has not been run yet"
    if not any("begun" in run.summary for run in arm_runs) and study.hash in DATED:
        return _registered_by_date(study, written, arm_runs)
    begun_for = [(run.summary.get("begun") or {}).get("study") or {} for run in arm_runs]
    others = [begun for begun in begun_for if begun.get("hash") != study.hash]
    if not others:
        status, why = "registered", f"its runs were started for the study, hash {study.hash}"
    else:
        whose = sorted(
            {f"{begun['name']} {begun['hash']}" if begun else "no study" for begun in others}
        )
        few = (
            f"{len(others)} of {len(arm_runs)} runs" if len(others) < len(arm_runs) else "its runs"
        )
        status, why = "exploratory", f"{few} were started for {', '.join(whose)}"
    return status + _unknown_code(arm_runs), why


def _registered_by_date(
    study: StudyConfig, written: datetime, arm_runs: Sequence[Run]
) -> tuple[str, str]:
    """Applies the rule for studies of `DATED`, whose runs do not record their study."""
    if any(run.started is None for run in arm_runs):
        return "exploratory", "it is not known when the arm was run"
    first = min(run.started for run in arm_runs if run.started is not None)
    if written < first:
        return "registered", f"written down {study.date}, first run {first:%Y-%m-%dT%H:%M}"
    return "exploratory", f"first run {first:%Y-%m-%dT%H:%M}, written down {study.date}"


def _unknown_code(runs: Sequence[Run]) -> str:
    """Returns the note on runs whose code is in no commit, or an empty text."""
    states = [(run.summary.get("begun") or run.summary).get("git") or {} for run in runs]
    no_git = any(state.get("sha") is None for state in states)
    changed = any(state.get("dirty") for state in states)
    return ", without git" * no_git + ", uncommitted code" * changed


def _refuse_unknown(study: StudyConfig, measured: Measurements) -> None:
    estimators = {*OPTIONS["estimator"], *(run.arm.edit.source for run in measured.runs)} - {""}
    vocabulary = {
        "metric": metrics_of(measured),
        "reference": list(dict.fromkeys([*REFERENCES, *study.arms, *sorted(estimators)])),
    }
    for name, claim in study.claims.items():
        said = {"metric": metric_now(claim.metric), "reference": claim.reference}
        for key, words in vocabulary.items():
            if (word := said[key]) not in words:
                accepted = ", ".join(words) + nearest(word, words)
                raise refuse(f"study.claims.{name}.{key}", word, accepted)


def _gather(study: StudyConfig, claim: ClaimConfig, measured: Measurements) -> _Test:
    claimed = arm_as(study.arm(claim.arm))
    arms = [arm for arm in by_arm(measured.runs) if arm.fits(claimed)]
    if len(arms) > 1:
        names = ", ".join(arm.name for arm in arms)
        return _Test("", (), (), (), f"{len(arms)} arms are what the claim speaks of: {names}")
    if not arms:
        return _Test("", (), (), (), f"the arm was not run: {claimed.name}")
    runs = by_arm(measured.runs)[arms[0]]
    left_out = tuple(f"seed {s}: not of the study" for s in sorted(runs) if not _listed(study, s))
    judged = {s: seed_runs for s, seed_runs in runs.items() if _listed(study, s)}
    reference = _reference(study, claim, claimed)
    metric = metric_now(claim.metric)
    row = pair(measured, arms[0], judged, reference, metric)
    missing = tuple(f"seed {s}: not run" for s in study.seeds if s not in runs)
    problem = ""
    if not row.seeds and row.dropped:
        every = [run for seed_runs in judged.values() for run in seed_runs]
        paired = any(references_of(run, measured.runs, reference) for run in every)
        problem = "the arm has no pair of runs" if paired else "there is no run of its reference"
    dropped = (*row.dropped, *missing, *left_out)
    censored = (row.censored > 0, row.reference_censored > 0)
    return _Test(arms[0].name, row.seeds, row.labelled, dropped, problem, censored)


def _reference(study: StudyConfig, claim: ClaimConfig, arm: Arm) -> str | Arm:
    """Returns the runs that a claim compares its arm with.

    Rows are not chosen among samples, so there is no random or repetitive choice beside them.
    """
    name = claim.reference
    named = name not in REFERENCES or (isinstance(arm.edit.by, Rows) and name != "control")
    return arm_as(study.arm(name)) if name in study.arms and named else name


def _listed(study: StudyConfig, seed: int) -> bool:
    return not study.seeds or seed in study.seeds


def _corrected(study: StudyConfig, p_values: dict[str, float | None]) -> dict[str, float | None]:
    adjusted: dict[str, float | None] = {}
    for family in {claim.family for claim in study.claims.values()}:
        names = [name for name, claim in study.claims.items() if claim.family == family]
        corrected = holm([p_values[name] for name in names], family_size(study, family))
        adjusted |= dict(zip(names, corrected, strict=True))
    return adjusted
