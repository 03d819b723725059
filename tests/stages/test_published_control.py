"""The control of a published run: measured where that was, and told how far apart the two are."""

import pytest
from matplotlib.image import imread

from mda import pipeline, store
from mda.model.build import saved_config, scratch
from mda.report.arm import apart_in_words, from_published, report_arm
from mda.stages.runs import origin_of

STEPS = (0, 20, 44, 60)


@pytest.fixture(scope="module")
def words(context_of, tmp_path_factory):
    """Overrides that read revisions which are no one training: each has weights of its own."""
    root = tmp_path_factory.mktemp("published")
    for step in STEPS:
        model = scratch(context_of().config.model, step)
        store.write_json(root / f"step{step}/config.json", saved_config(model))
        weights = dict(model.named_parameters())
        store.write_safetensors(root / f"step{step}/model.safetensors", weights, {"format": "pt"})
    return "base=published", f"base.folder={root}", f"base.steps={list(STEPS)}".replace(" ", "")


@pytest.fixture(scope="module")
def control(words, context_of):
    """(context, arm) of an unedited window."""
    settings = "intervention=control", "unit.locate=L1H0", "emergence.every=50", "report.dpi=30"
    context = context_of(*words, *settings)
    return context, pipeline.arm(context)


def test_an_arm_is_measured_at_the_steps_that_were_published_too(control, context_of):
    _, arm = control
    assert [row["step"] for row in arm.run.curve] == [20, 44, 50, 60]
    held_out = [row["step"] for row in arm.run.curve if row["val/loss"] == row["val/loss"]]
    assert held_out == [20, 44, 60]
    words = "emergence.every=50", "intervention=control"
    trained = pipeline.arm(context_of(*words, "intervention.window=[20,60]"))
    assert [row["step"] for row in trained.run.curve] == [20, 50, 60]


def test_a_control_says_how_far_it_is_from_the_published_run(control, tmp_path, capsys):
    context, arm = control
    found = report_arm(
        context.config, "L1H0", arm.unit.window, arm.edited.changes, arm.unit.curve, arm.run.curve,
        arm.run.folder, tmp_path, arm.capabilities.values,
    )  # fmt: skip
    ours, theirs = (
        {row["step"]: (row["emergence/prefix_matching/L1H0"], row["val/loss"]) for row in curve}
        for curve in (arm.run.curve, arm.base.curve)
    )
    wanted = {
        str(step): pytest.approx([a - b for a, b in zip(ours[step], theirs[step], strict=True)])
        for step in (44, 60)
    }
    assert {step: list(apart.values()) for step, apart in found["from_published"].items()} == wanted
    assert abs(ours[60][1] - theirs[60][1]) > 0.01
    loss = f"val/loss {ours[60][1] - theirs[60][1]:+.4f} at step 60"
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("control minus")]
    assert line.endswith(loss) and "at step 44; emergence/prefix_matching/L1H0 " in line
    sizes = [imread(tmp_path / name).shape[:2] for name in ("curves.png", "heads.png")]
    assert sizes == [(102, 270), (96, 324)]  # of 9 x 3.4 and 10.8 x 3.2 inches, at 30 dpi


def test_seeds_of_one_published_run_share_their_origin_unless_the_order_is_another(
    words, control, context_of
):
    window = control[1].unit.window

    def origin(*settings: str) -> str:
        context = context_of(*settings)
        return origin_of(pipeline.train(context)[1], window, context.store.hash_file)

    fixed = [origin(*words, "data.shuffle=false", f"seed={seed}") for seed in (0, 1)]
    drawn = [origin(*words, "data.shuffle=true", f"seed={seed}") for seed in (0, 1)]
    trained = origin("data.shuffle=false", "seed=1")  # whose first weights are no revision's
    assert fixed[0] == fixed[1] and len({*fixed, *drawn, trained}) == 4
    assert control[1].origin == drawn[0], "the order of the smoke experiment"


def test_where_no_published_step_is_in_the_window_it_says_so():
    curve = [{"step": 20, "x": 1.0}, {"step": 30, "x": 2.0}]
    assert from_published(curve, [{"step": 20, "x": 1.0}, {"step": 40, "x": 1.0}], ("x",)) == {}
    assert "none of base.steps is in the window" in apart_in_words({})
