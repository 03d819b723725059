"""What is said of a unit's bearing: the planted numbers of control and of the edits, no others."""

from dataclasses import replace

from made_up_runs import STANDARD, write_runs

from mda.analysis.bearing import bearing
from mda.analysis.folders import read_runs
from mda.analysis.metrics import measure
from mda.report.arm import told
from mda.schema import ClaimConfig, StudyConfig

STUDY = StudyConfig(
    name="s",
    arms={"ekfac": {"intervention": "remove", "estimator": "ekfac"}},
    claims={"c": ClaimConfig(text="t", arm="ekfac", direction="less")},
)


def able(loss, icl, top=0.2, others=0.05):
    found = {"real_loss": loss, "icl_score": icl, "copy_gain": 1.0, "label_margin": 0.1}
    return found | {f"{k}/top_heads": top for k in found} | {
        f"{k}/random_heads": others for k in found
    }  # fmt: skip


def test_control_and_the_targeted_edits_are_told_with_their_differences(tmp_path):
    numbers = {
        ("control", ""): able(3.0, -0.2),
        ("remove", "ekfac"): able(3.1, -0.1),
        ("augment", "ekfac"): able(2.9, -0.25),
    }
    edits = [
        replace(edit, able=numbers.get((edit.intervention, edit.estimator), able(9.0, 9.0)))
        for edit in STANDARD
    ]
    write_runs(tmp_path, range(3), edits)
    control, augmentation, removal = bearing(measure(read_runs([tmp_path])), STUDY)
    assert control.startswith("Load-bearing? Mean ablation of the control's strongest heads")
    assert "loss on real text +0.200 (+0.050)" in control
    assert removal.startswith("Against control, remove mask ekfac top 10 %: unit -0.0")
    assert (
        "loss on real text +0.100, ICL score on it +0.100, gain from few-shot copies +0.000"
        in removal
    )
    assert "augment duplicate ekfac top 10 %: unit +0.0" in augmentation
    assert "loss on real text -0.100, ICL score on it -0.050" in augmentation


def test_nothing_is_said_where_nothing_was_measured(tmp_path):
    write_runs(tmp_path, [0], STANDARD)
    assert bearing(measure(read_runs([tmp_path])), STUDY) == []


def test_an_arm_tells_what_it_can_do_and_what_heads_bear_of_it():
    numbers = {f"capabilities/{name}": value for name, value in able(3.0, -0.2).items()}
    line = told(numbers)
    assert line.startswith("loss on real text 3.000 (+0.200 without the strongest heads, +0.050")
    assert told({"capabilities/real_loss": 3.0}) == "loss on real text 3.000"
