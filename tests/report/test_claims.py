"""The rule of verdicts, case by case, and that claims are data of a study."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from made_up_runs import STANDARD, Edit, write_runs

from mda import store
from mda.analysis.arms import arm_as
from mda.analysis.claims import counter_evidence, decide, evidence, judge, registration
from mda.analysis.folders import read_runs
from mda.analysis.metrics import measure
from mda.analysis.statistics import Effect, Seed, label_p, paired_effect
from mda.config import compose
from mda.report.tables import verdict_rows
from mda.schema import ClaimConfig, ConfigError, StudyConfig
from mda.schema.arm import read_arm
from mda.schema.edit import Match

ARMS = {
    "ekfac": {"intervention": "remove", "estimator": "ekfac"},
    "tracin": {"intervention": "remove", "estimator": "tracin"},
    "random": {"intervention": "remove", "estimator": "random"},
    "ball": {"intervention": "remove", "estimator": "exact"},
}


def claim(direction="less", **changes) -> ClaimConfig:
    given: dict[str, Any] = {"text": "t", "arm": "ekfac", "reference": "random", "metric": "unit"}
    return ClaimConfig(**(given | {"direction": direction} | changes))


def study(*claims: ClaimConfig, **changes) -> StudyConfig:
    named = {f"c{i}": one for i, one in enumerate(claims)}
    return StudyConfig(**({"name": "s", "arms": ARMS, "claims": named} | changes))


def effect(n=5) -> Effect:
    return Effect(n, -0.05, 0.01, -0.1, -0.01, 0.1, 0.1, 0.1, "")


RULE = {
    # claim, effect, corrected p for, corrected p against, verdict
    "for": (claim(), effect(), 0.05, 0.9, "supported"),
    "neither": (claim(), effect(), 0.06, 0.9, "undecided"),
    "against": (claim(), effect(), 0.99, 0.01, "refuted"),
    "both, a small effect": (claim(expected=0.2), effect(), 0.01, 0.01, "supported"),
    "against a size": (claim(expected=0.2), effect(), 0.99, 0.01, "ruled out at this size"),
    "none, for": (claim("none", margin=0.02), effect(), 0.04, 1, "supported"),
    "none, against": (claim("none", margin=0.02), effect(), 0.5, 0.04, "refuted"),
    "none, neither": (claim("none", margin=0.02), effect(), 0.06, 0.06, "undecided"),
    "few seeds": (claim(), effect(4), None, None, "undecided"),
    "no runs": (claim(), paired_effect([]), None, None, "undecided"),
}


@pytest.mark.parametrize("case", RULE)
def test_the_rule(case):
    one, found, p, against, verdict = RULE[case]
    word, reason = decide(one, found, p, against, 0.05)
    assert word == verdict and reason


def test_an_effect_that_is_there_but_smaller_than_claimed_is_called_so():
    _, reason = decide(claim(expected=0.2), effect(), 0.01, 0.02, 0.05)
    assert reason.endswith("0.01 ≤ 0.05, but no effect of 0.2 or more: corrected p = 0.02 ≤ 0.05")
    assert "but" not in decide(claim(expected=0.2), effect(), 0.01, 0.06, 0.05)[1]


def test_a_missing_effect_is_never_concluded_from_a_large_p():
    assert decide(claim(), effect(), 1.0, 0.9, 0.05)[0] == "undecided"


def test_an_interval_alone_is_no_evidence():
    # Five seeds, all lower: the bootstrap interval excludes 0, corrected p does not reach .05.
    seeds = [Seed((d,), (0.0,)) for d in (-0.05, -0.04, -0.06, -0.05, -0.045)]
    found = paired_effect(seeds)
    assert found.high is not None and found.high < 0
    assert decide(claim(), found, 4 * found.p_less, 1.0, 0.05)[0] == "undecided"


def test_evidence_of_a_direction_is_against_its_margin():
    seeds = [Seed((d,), (0.0,)) for d in (-0.05, -0.04, -0.06, -0.05, -0.045)]
    assert both(claim(), seeds) == (1 / 32, 1.0)
    assert evidence(claim(margin=0.03), seeds) == 1 / 32
    assert evidence(claim(margin=0.05), seeds) == label_p(seeds, -0.05)[0] > 0.2
    assert both(claim("greater"), seeds) == (1.0, 1 / 32)
    assert both(claim(expected=0.1), seeds) == (1 / 32, 1 / 32)  # there, and smaller than said


def test_no_effect_is_shown_by_equivalence_only():
    near = [Seed((d,), (0.0,)) for d in (0.01, -0.01, 0.005, -0.004, 0.008)]
    far = [Seed((d + 0.1,), (0.0,)) for d in (0.01, -0.01, 0.005, -0.004, 0.008)]
    none = claim("none", margin=0.05)
    assert both(none, near) == (1 / 32, 1.0)
    assert both(none, far) == (1.0, 2 / 32)
    # An interval inside the margin is not enough: of three seeds p is never below 1/8.
    assert evidence(claim("none", margin=9.0), near[:3]) == 1 / 8


def both(one, seeds):
    return evidence(one, seeds), counter_evidence(one, seeds)


def test_an_onset_beyond_the_window_is_a_bound(tmp_path):
    """EK-FAC's head never comes: its delay is at least what is known, and may be anything more."""
    never = (STANDARD[0], Edit("remove", "ekfac", strength=0.1), Edit("remove", "tracin"),
             Edit("remove", "random", strength=0.1))  # fmt: skip
    write_runs(tmp_path, range(6), never)
    runs = measure(read_runs([tmp_path]))

    def judged(direction, reference="control", arm="ekfac", **sizes):
        one = claim(direction, metric="onset_step", reference=reference, arm=arm, **sizes)
        (found,) = judge(study(one), runs, resamples=99)
        return found.verdict, found.reason

    for size in (0.0, 5000.0):  # more than the window has steps
        word, reason = judged("greater", expected=size)
        assert word == "supported" and "but" not in reason
    assert judged("less")[0] == "refuted"
    bound = "the onset of some runs of the arm lies beyond the window"
    assert judged("none", margin=5000.0) == ("undecided", bound)
    assert judged("less", "random", "tracin")[0] == "supported"
    assert judged("greater", "random", "tracin", expected=5000.0)[0] == "ruled out at this size"
    both = "the onset of some runs of the arm and its reference lies beyond the window"
    for direction, sizes in (("none", {"margin": 5000.0}), ("greater", {}), ("less", {})):
        assert judged(direction, "random", **sizes) == ("undecided", both)
    assert judged("greater", arm="tracin", expected=5000.0)[0] != "undecided", "all are known"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    write_runs(root, range(6))
    return measure(read_runs([root]))


def test_planted_claims_come_out(measured):
    claims = [
        claim(),
        claim("greater", metric="icl_score"),
        claim("greater"),
        claim("none", arm="random", reference="control", margin=0.03),
        claim(arm="ball"),
    ]
    verdicts = judge(study(*claims), measured, resamples=499)
    assert [v.verdict for v in verdicts] == [
        "supported", "supported", "refuted", "supported", "undecided"
    ]  # fmt: skip
    assert {v.family for v in verdicts} == {5}
    down = verdicts[0]
    assert down.p == 4.0**-6 and down.seeds == (0, 1, 2, 3, 4, 5)
    assert down.arm == "remove mask ekfac top 10 %"
    assert verdicts[-1].reason == "the arm was not run: remove mask exact top 10 %"


def test_the_family_is_the_studys_whatever_was_run(measured, tmp_path):
    claims = [claim(), *[claim(arm="ball")] * 4]
    full = judge(study(*claims), measured, resamples=99)[0]
    write_runs(tmp_path, range(6), STANDARD[:4])
    fewer = judge(study(*claims), measure(read_runs([tmp_path])), resamples=99)[0]
    assert full.p_holm == fewer.p_holm == 5 * full.p
    alone = judge(study(claim(), *[claim(arm="ball", family="more")] * 4), measured, resamples=99)
    assert alone[0].p_holm == full.p and alone[1].family == 4


def test_a_claim_of_two_arms_is_undecided(tmp_path):
    from test_arms import change

    write_runs(tmp_path / "a", range(5), (STANDARD[0], STANDARD[1], STANDARD[3]))
    for folder in write_runs(tmp_path / "b", range(5), STANDARD[1:2]):
        change(folder, estimator={"damping": 1.0}, fingerprints={"arm": str(folder)})
    verdict = judge(study(claim()), measure(read_runs([tmp_path])), resamples=99)[0]
    assert verdict.verdict == "undecided" and verdict.p is None
    assert "2 arms are what the claim speaks of" in verdict.reason


def test_only_the_studys_seeds_are_judged_and_others_are_told(measured):
    verdict = judge(study(claim(), seeds=[0, 1, 2, 3, 4, 9]), measured, resamples=99)[0]
    assert verdict.seeds == (0, 1, 2, 3, 4)
    assert set(verdict.dropped) == {"seed 9: not run", "seed 5: not of the study"}


def test_matched_random_sets_are_no_targeted_arms():
    targeted = arm_as(read_arm(ARMS["ekfac"]))
    matched = replace(targeted, edit=replace(targeted.edit, match=Match("label")))
    allowed = replace(targeted, edit=replace(targeted.edit, match=Match("label", targeted=True)))
    assert not matched.fits(targeted) and matched.edit.is_random
    assert not matched.fits(allowed)
    assert targeted.fits(replace(targeted, extra=("damping=1",)))


def test_a_claim_can_compare_two_arms_of_another_size_or_kind(tmp_path):
    """Masking 1 % of the tokens does what masking 10 % of the samples does, as planted."""
    ekfac = {"strength": 0.6, "delay": 300.0}
    tokens = Edit("remove", "ekfac", fraction=0.01, mode="mask_tokens", **ekfac)
    drawn = Edit("remove", "random", fraction=0.01, mode="mask_tokens", select="random")
    write_runs(tmp_path, range(8), (*STANDARD, tokens, drawn), noise=0.0005)
    arms = ARMS | {
        "tokens": ARMS["ekfac"]
        | {"intervention.mode": "mask_tokens", "intervention.fraction": 0.01},
        "samples": ARMS["ekfac"],
    }
    of_tokens = {"arm": "tokens", "metric": "unit"}
    claims = {
        "same": claim("none", margin=0.01, reference="samples", **of_tokens),
        "less": claim("less", reference="random", **of_tokens),
        "more": claim("greater", arm="random", reference="samples"),
        "unrun": claim("none", margin=0.01, reference="ball", **of_tokens),
    }
    one = StudyConfig(name="s", arms=arms, claims=claims)
    found = {v.name: v for v in judge(one, measure(read_runs([tmp_path])))}
    words = {name: v.verdict for name, v in found.items()}
    assert words == {"same": "supported", "less": "supported", "more": "supported",
                     "unrun": "undecided"}  # fmt: skip
    assert found["same"].effect.n == found["more"].effect.n == 8
    assert "no remove mask exact top 10 % run" in " ".join(found["unrun"].dropped)


def test_few_seeds_are_undecided(tmp_path):
    write_runs(tmp_path, [0, 1], STANDARD)
    verdict = judge(study(claim()), measure(read_runs([tmp_path])), resamples=99)[0]
    assert (verdict.verdict, verdict.p) == ("undecided", None)
    assert verdict.reason == "2 seeds; the claim asks for 5 or more"


def test_seeds_that_could_not_decide_a_family_of_claims_are_told_apart(tmp_path):
    """Six signs: 1/64 times six claims is above 0.05, whatever was measured."""
    write_runs(tmp_path, range(6), STANDARD[:2])
    measured, one = measure(read_runs([tmp_path])), claim(reference="control")
    many = judge(study(*[one] * 6), measured, resamples=99)
    assert {v.verdict for v in many} == {"undecided"}
    assert {v.reason for v in many} == {
        "6 seeds decide nothing: of 6 claims no corrected p < 0.094"
    }
    few = judge(study(*[one] * 3), measured, resamples=99)
    assert {v.verdict for v in few} == {"supported"}


def test_an_effect_of_the_claimed_size_is_ruled_out(tmp_path):
    write_runs(
        tmp_path, range(8), (STANDARD[0], Edit("remove", "ekfac", replicates=1)), noise=0.002
    )
    one = claim(reference="control", expected=0.05)
    verdict = judge(study(one), measure(read_runs([tmp_path])), resamples=499)[0]
    assert verdict.verdict == "ruled out at this size"
    assert verdict.reason.startswith("no effect of 0.05 or more")


def started_for(one: StudyConfig, runs, sha="0" * 40, dirty: bool | None = False):
    """The runs as they are when they were started for a study, or for none."""
    begun = {"study": one.stamp, "git": {"sha": sha, "dirty": dirty}}
    return [replace(run, summary=run.summary | {"begun": begun}) for run in runs]


def sealed(**changes) -> StudyConfig:
    one = study(claim(), **({"date": "2026-02-28"} | changes))
    return replace(one, hash=one.content_hash())


REGISTERED = {
    "of the study": (sealed(), sealed(), "registered", "started for the study, hash"),
    "dated back": (sealed(date="2020-01-01"), study(), "exploratory", "were started for no study"),
    "changed later": (sealed(alpha=0.1), sealed(), "exploratory", f"s {sealed().hash}"),
    "no hash": (study(claim(), date="2026-02-28"), study(), "exploratory", "no hash"),
    "no date": (sealed(date=""), study(), "exploratory", "no hash or no date"),
    "these seeds": (sealed(exploratory=True), study(), "exploratory", "formed on runs"),
    "other seeds": (sealed(seeds=[7]), study(), "registered", "not been run yet"),
}


@pytest.mark.parametrize("case", REGISTERED)
def test_a_claim_is_registered_of_runs_that_were_started_for_its_study(measured, case):
    one, then, status, why = REGISTERED[case]
    found = registration(one, claim(), started_for(then, measured.runs))
    assert found[0] == status and why in found[1]


def test_runs_that_kept_no_study_register_nothing_whatever_date_the_study_has(measured):
    assert registration(sealed(date="2020-01-01"), claim(), measured.runs) == (
        "exploratory", "its runs were started for no study"
    )  # fmt: skip


def test_one_run_that_was_started_for_no_study_leaves_a_claim_exploratory(measured):
    own = [run for run in measured.runs if run.arm.edit.source == "ekfac"
           and run.arm.edit.intervention == "remove"]  # fmt: skip
    runs = [*started_for(study(), own[:1]), *started_for(sealed(), own[1:])]
    few = f"1 of {len(own)} runs were started for no study"
    assert registration(sealed(), claim(), runs) == ("exploratory", few)


@pytest.mark.parametrize(
    ("git", "told"),
    [
        ({}, ""),
        ({"dirty": True}, ", uncommitted code"),
        ({"sha": None, "dirty": None}, ", without git"),
    ],
)
def test_a_status_says_which_code_cannot_be_found_again(measured, git, told):
    there = sorted({run.seed for run in measured.runs})
    one, more = sealed(seeds=there), sealed(seeds=[*there, 98])
    for asked, word in ((one, "registered"), (more, "interim"), (sealed(alpha=0.1), "exploratory")):
        runs = started_for(one if word != "interim" else more, measured.runs, **git)
        (verdict,) = judge(asked, measure(runs), resamples=99)
        assert verdict.status == word + told


def test_a_study_of_before_runs_kept_theirs_is_registered_by_its_date(tmp_path):
    """Its file is committed, and its hash stands in the code; runs that kept a study are asked."""
    write_runs(tmp_path, range(8, 11), STANDARD[:2])
    runs, old = read_runs([tmp_path]), compose(["study=fresh_seeds"]).study
    one = old.claims["ekfac_removal_lowers"]
    written = old.written()
    assert written is not None
    for started, status, why in (
        (written + timedelta(hours=1), "registered", "written down 2026-11-25T07:30, first run"),
        (written - timedelta(hours=1), "exploratory", "first run 2026-11-25T06:30, written down"),
        (None, "exploratory", "it is not known when the arm was run"),
    ):
        found = registration(old, one, [replace(run, started=started) for run in runs])
        assert found[0] == status and why in found[1]
    assert registration(old, one, started_for(study(), runs))[0] == "exploratory"


def test_a_look_before_all_seeds_are_there_is_interim(measured):
    def status(*seeds: int) -> tuple[str, str]:
        one = sealed(seeds=list(seeds))
        runs = measure(started_for(one, measured.runs))
        (verdict,) = judge(one, runs, resamples=99)
        return verdict.status, verdict.status_reason

    there = sorted({run.seed for run in measured.runs})
    assert status(*there)[0] == "registered"
    missing = f"{len(there)} of the study's {len(there) + 2} seeds; missing 98, 99"
    assert status(*there, 98, 99) == ("interim", missing)
    assert status(98)[0] == "registered"  # nothing was looked at


def test_more_runs_in_some_seeds_than_in_others_are_interim(measured):
    """Random edits may be added while one looks: the study is over when all seeds have as many."""
    one = sealed(seeds=sorted({run.seed for run in measured.runs}))
    runs = started_for(one, measured.runs)
    more = next(run for run in runs if run.arm.edit.is_random and run.replicate == 2)
    fewer = measure([run for run in runs if run is not more])
    (verdict,) = judge(one, fewer, resamples=99)
    assert (verdict.status, verdict.status_reason) == (
        "interim", "some seeds have more runs than others"
    )  # fmt: skip


def test_a_study_may_call_the_strongest_head_by_its_old_name(measured):
    asked = [claim(metric=f"{word}_onset_step") for word in ("mechanism", "strongest")]
    old, now = judge(study(*asked), measured, resamples=99)
    assert old.effect == now.effect and old.effect.mean is not None
    assert {row["metric"] for row in verdict_rows([old, now])} == {"strongest_onset_step"}


def test_a_changed_study_needs_another_hash():
    one = study(claim(), date="2026-01-01")
    sealed = replace(one, hash=one.content_hash())
    for change in ({"alpha": 0.1}, {"seeds": [1]}, {"claims": {"c0": claim("greater")}}):
        with pytest.raises(ConfigError, match=r"study\.hash=.* is invalid; expected [0-9a-f]{16}"):
            replace(sealed, **change)


BAD = {
    "direction": (lambda: claim("down"), r"study\.claims\.\*\.direction=down is invalid"),
    "min_seeds": (lambda: claim(min_seeds=1), "min_seeds=1 is invalid; expected an integer at"),
    "margin": (lambda: claim("none"), "margin=0.0 is invalid; expected above 0 with"),
    "arm": (lambda: study(claim(arm="ekfak")), r"c0\.arm=ekfak is invalid.*did you mean ekfac"),
    "date": (lambda: study(date="soon"), "study.date=soon is invalid; expected a date such as"),
    "a margin beside the effects": (
        lambda: study(claim(expected=0.06), claim("none", arm="random", margin=0.021)),
        r"study\.claims\.c1\.margin=0\.021 is invalid; expected at most 0\.02, a third of",
    ),
    "an old word without its other": (
        lambda: study(arms={"a": {"intervention": "remove", "match": "label"}}),
        r"study\.arms\.a: \{'intervention': 'remove', 'match': 'label'\} means no edit",
    ),
    "an amount": (
        lambda: study(arms={"a": {"intervention": "remove", "intervention.fraction": 2,
                                  "estimator": "ekfac"}}),
        r"study\.arms\.a: intervention\.fraction=2 is invalid; expected a number above 0 and at",
    ),
    "a type": (
        lambda: study(arms={"a": {"intervention": "remove", "intervention.fraction": "ten"}}),
        r"study\.arms\.a: .*means no edit; an arm is written as \{intervention: remove, ",
    ),
    "a setting": (
        lambda: study(arms={"a": {"intervention": "remove", "intervention.fracton": 0.1}}),
        r"a: intervention\.fracton=0\.1 is invalid; expected .*did you mean fraction",
    ),
    "no estimator": (
        lambda: study(arms={"a": {"intervention": "remove"}}),
        r"study\.arms\.a: estimator=null is invalid; expected one of ekfac, tracin",
    ),
    "an estimator": (
        lambda: study(arms={"a": {"intervention": "remove", "estimator": "ekfak"}}),
        r"a: estimator=ekfak is invalid; expected one of .*did you mean ekfac",
    ),
    "what replicates differ in": (
        lambda: study(arms={"a": {"intervention": "remove", "estimator": "random",
                                  "estimator.seed": 1}}),
        r"study\.arms\.a: estimator\.seed=1 is invalid; expected other settings of",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_studies_are_refused_with_their_key(case):
    make, message = BAD[case]
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_metric_that_no_run_has_is_refused(measured):
    with pytest.raises(ConfigError, match=r"claims\.c0\.metric=beauty is invalid; expected unit"):
        judge(study(claim(metric="beauty")), measured)


def test_a_reference_that_is_none_is_refused(measured):
    wrong = r"claims\.c0\.reference=repetitoin is invalid; expected control, .*mean repetition\?"
    with pytest.raises(ConfigError, match=wrong):
        judge(study(claim(reference="repetitoin")), measured)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reference": "loss"}, "there is no run of its reference"),  # an estimator, not run
        ({"reference": "ball"}, "there is no run of its reference"),  # an arm, not run
        ({"metric": "heads/rest"}, "the arm has no pair of runs"),  # run, and not measured
    ],
)
def test_what_is_missing_is_named(tmp_path, changes, reason):
    for folder in write_runs(tmp_path, range(5), STANDARD[:4]):
        content = store.read_json(folder / "summary.json")
        content["results"]["base_heads"] = None
        store.write_json(folder / "summary.json", content)
    (verdict,) = judge(study(claim(**changes)), measure(read_runs([tmp_path])), resamples=99)
    assert (verdict.verdict, verdict.reason) == ("undecided", reason)


def test_evidence_against_a_claim_is_against_the_larger_of_margin_and_expected():
    """An effect of 0.2 is more than the 0.1 that is expected and less than the margin of 0.3."""
    seeds = [Seed((0.2 + 0.01 * i,), (0.0,)) for i in range(6)]
    for direction, sign in (("greater", 1), ("less", -1)):
        turned = [Seed((sign * one.arm[0],), (0.0,)) for one in seeds]
        for margin, expected in ((0.3, 0.1), (0.1, 0.3)):
            one = claim(direction, margin=margin, expected=expected)
            assert counter_evidence(one, turned) == 1 / 64
        small = claim(direction, margin=0.1, expected=0.1)
        assert counter_evidence(small, turned) == 1


def test_a_claim_is_registered_of_arms_that_settings_tell_apart(measured):
    """What tells arms of one comparison apart is no part of the arm that the study names."""
    runs = [replace(run, arm=replace(run.arm, extra=("window=0-9",))) for run in measured.runs]
    assert registration(sealed(), claim(), started_for(sealed(), runs))[0] == "registered"
    assert registration(sealed(), claim(), started_for(study(), runs))[0] == "exploratory"
