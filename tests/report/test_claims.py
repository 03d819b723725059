"""The rule of verdicts, case by case, and that claims are data."""

from dataclasses import replace
from typing import Any

import pytest
from made_up_runs import STANDARD, Edit, write_runs

from mda.analysis.arms import Arm
from mda.analysis.claims import Claim, decide, judge
from mda.analysis.folders import read_runs
from mda.analysis.metrics import measure
from mda.analysis.statistics import Effect, paired_effect

EKFAC = {"intervention": "remove", "estimator": "ekfac"}
RANDOM = {"intervention": "remove", "estimator": "random"}


def claim(direction="less", **changes) -> Claim:
    given: dict[str, Any] = {
        "name": "c",
        "text": "t",
        "metric": "unit",
        "arm": EKFAC,
        "reference": "random",
        "evidence": "either",
    }
    given |= {"direction": direction} | changes
    return Claim(**given)


def effect(mean, low, high, n=5) -> Effect:
    return Effect(n, mean, 0.01, low, high, 0.1, 0.1, 0.1, "")


RULE = {
    # claim, effect, corrected p, verdict
    "down, by p": (claim(), effect(-0.05, -0.1, 0.01), 0.04, "replicated"),
    "down, by interval": (claim(), effect(-0.05, -0.1, -0.01), 0.5, "replicated"),
    "down, neither": (claim(), effect(-0.05, -0.1, 0.01), 0.06, "undecided"),
    "wrong way": (claim(), effect(0.05, 0.01, 0.1), 0.99, "not replicated"),
    "wrong way, unsure": (claim(), effect(0.05, -0.01, 0.1), 0.9, "undecided"),
    "up": (claim("greater"), effect(0.05, 0.01, 0.1), 0.5, "replicated"),
    "up, but down": (claim("greater"), effect(-0.05, -0.1, -0.01), 0.99, "not replicated"),
    "p asked, interval only": (
        claim(evidence="p"), effect(-0.05, -0.1, -0.01), 0.06, "undecided"),
    "p asked and given": (claim(evidence="p"), effect(-0.05, -0.1, 0.01), 0.05, "replicated"),
    "interval asked, p only": (
        claim(evidence="interval"), effect(-0.05, -0.1, 0.01), 0.01, "undecided"),
    "both asked, one": (claim(evidence="both"), effect(-0.05, -0.1, -0.01), 0.06, "undecided"),
    "both": (claim(evidence="both"), effect(-0.05, -0.1, -0.01), 0.05, "replicated"),
    "smaller than the margin": (
        claim(margin=0.2), effect(-0.05, -0.1, -0.01), 0.01, "not replicated"),
    "within the margin": (
        claim("none", margin=0.02), effect(0.01, -0.01, 0.019), None, "replicated"),
    "outside": (claim("none", margin=0.02), effect(0.1, 0.03, 0.2), None, "not replicated"),
    "across": (claim("none", margin=0.02), effect(0.01, -0.01, 0.03), None, "undecided"),
    "few seeds": (claim(), effect(-0.05, -0.1, -0.01, n=4), 0.01, "undecided"),
    "no runs": (claim(), paired_effect([]), None, "undecided"),
}  # fmt: skip


@pytest.mark.parametrize("case", RULE)
def test_the_rule(case):
    one, found, p, verdict = RULE[case]
    word, reason = decide(one, found, p)
    assert word == verdict and reason


def test_a_missing_effect_is_never_concluded_from_a_large_p():
    assert decide(claim(), effect(-0.001, -0.1, 0.1), 1.0)[0] == "undecided"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    write_runs(root, range(6))
    return measure(read_runs([root]))


def test_planted_claims_come_out(measured):
    claims = [
        claim(name="down"),
        claim("greater", name="icl", metric="icl_score"),
        claim("greater", name="upside down"),
        claim("none", name="random does nothing", arm=RANDOM, reference="control", margin=0.03),
        claim(name="no such arm", arm={"estimator": "crystal ball"}),
    ]
    verdicts = judge(claims, measured, resamples=499)
    assert [v.verdict for v in verdicts] == [
        "replicated", "replicated", "not replicated", "replicated", "undecided"
    ]  # fmt: skip
    assert {v.family for v in verdicts} == {3}
    down = verdicts[0]
    assert down.p == 1 / 64 and down.p_holm == 3 / 64 and down.seeds == (0, 1, 2, 3, 4, 5)
    assert down.arm == "remove mask ekfac top 10 %"


def test_a_claim_speaks_of_every_arm_that_matches(measured):
    verdicts = judge([claim(arm={"intervention": "remove", "select": "top"},
                            reference="control")], measured, resamples=99)  # fmt: skip
    assert [v.arm.split()[2] for v in verdicts] == ["ekfac", "tracin", "random"]


def test_matched_random_sets_are_no_targeted_arms():
    targeted = Arm("remove", "mask", "ekfac", "top", "10 %")
    assert claim().matches(targeted)
    assert not claim().matches(replace(targeted, match="loss"))
    assert not claim().matches(replace(targeted, label="latex"))
    assert claim(arm=EKFAC | {"match": "loss"}).matches(replace(targeted, match="loss"))


def test_few_seeds_are_undecided_and_not_in_the_family(tmp_path):
    write_runs(tmp_path, [0, 1], STANDARD)
    verdict = judge([claim()], measure(read_runs([tmp_path])), resamples=99)[0]
    assert (verdict.verdict, verdict.p, verdict.family) == ("undecided", None, 0)
    assert verdict.reason == "2 seeds; the claim asks for 5 or more"


def test_the_verdict_changes_with_the_claims_data_alone(measured):
    strict = judge([claim(min_seeds=7)], measured, resamples=99)[0]
    loose = judge([claim(min_seeds=6)], measured, resamples=99)[0]
    assert (strict.verdict, loose.verdict) == ("undecided", "replicated")


def test_no_effect_is_not_replicated(tmp_path):
    write_runs(
        tmp_path, range(8), (STANDARD[0], Edit("remove", "ekfac", replicates=1)), noise=0.002
    )
    verdict = judge(
        [claim(reference="control", margin=0.02)], measure(read_runs([tmp_path])), resamples=499
    )[0]
    assert verdict.verdict == "not replicated"


BAD = {
    "direction": ({"direction": "down"}, "claims.c.direction=down is refused"),
    "reference": ({"reference": "base"}, "one of control, random, matched"),
    "evidence": ({"evidence": "faith"}, "p, interval, either, both"),
    "arm": ({"arm": {"colour": "red"}}, "claims.c.arm=colour"),
    "alpha": ({"alpha": 0}, "claims.c.alpha=0"),
    "min_seeds": ({"min_seeds": 1}, "one is no test"),
    "margin": ({"direction": "none"}, "above 0 with direction=none"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_claims_are_refused_with_their_key(case):
    changes, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        claim(**changes)


def test_a_metric_that_no_run_has_is_refused(measured):
    with pytest.raises(ValueError, match=r"claims\.c\.metric=beauty is refused; accepted: unit"):
        judge([claim(metric="beauty")], measured)
