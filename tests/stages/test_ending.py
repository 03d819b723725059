"""A base run that ends with its unit's window is the beginning of the run to the last step."""

from dataclasses import replace

import pytest

from mda import pipeline, store
from mda.schema import ConfigError
from mda.stages.preview import fingerprints, preview_job, print_preview
from mda.stages.sae import SaeStage

HEAD = ("unit=previous_token_head", "unit.locate=L1H0")
AUTO = ("intervention.window=auto", "intervention.before_onset=3", "intervention.after_onset=11")
ENDS = "training.ends=window"


@pytest.fixture(scope="module")
def whole(context_of):
    """The run to the last step, 60."""
    return pipeline.train(context_of(*HEAD))[1]


@pytest.fixture(scope="module")
def asked(whole):
    """Settings with which L1H0 emerges between steps 20 and 30, and its window ends before 40."""
    curve = {row["step"]: row["emergence/previous_token/L1H0"] for row in whole.curve}
    threshold = 0.25 * curve[20] + 0.75 * curve[30]
    assert max(value for step, value in curve.items() if step <= 20) < threshold < curve[30]
    return (*HEAD, *AUTO, f"unit.threshold={threshold}")


@pytest.fixture(scope="module")
def ended(context_of, asked):
    return pipeline.train(context_of(*asked, ENDS))[1]


def lines(run) -> list[str]:
    return (run.folder / "curve.csv").read_text().splitlines()


def hashes(run, step: int) -> dict[str, str]:
    folder = run.checkpoint(step)
    return {path.name: store.hash_file(path) for path in folder.iterdir()}


def test_it_ends_at_the_first_point_of_the_curve_behind_the_window(ended):
    assert ended.curve[-1]["step"] == 40
    assert ended.checkpoints == (0, 1, 2, 4, 8, 16, 20, 32, 40)
    assert (ended.folder / "train.csv").read_text().count("\n") == 1 + 40


def test_what_it_has_is_what_the_whole_run_has_at_these_steps(whole, ended):
    assert lines(ended)[:-1] == lines(whole)[: len(lines(ended)) - 1]
    there = next(row for row in whole.curve if row["step"] == 40)
    assert all(value == there[name] for name, value in ended.curve[-1].items())
    steps = [step for step in ended.checkpoints if step in whole.checkpoints]
    assert steps[-1] == 40 and len(steps) == 9
    for step in steps:
        assert hashes(ended, step) == hashes(whole, step)


def test_held_out_text_is_measured_at_its_end_whatever_the_spacing(context_of, asked):
    _, run = pipeline.train(context_of(*asked, ENDS, "emergence.held_out_every=5"))
    measured = [row["step"] for row in run.curve if row["val/loss"] == row["val/loss"]]
    assert measured == [0, 40]


def test_the_window_is_that_of_the_whole_run(context_of, asked, whole, ended):
    for words in ((*asked, "unit.locate=auto"), asked):
        short = context_of(*words, ENDS)
        window = pipeline.unit_of(short, pipeline.train(short)[1]).window
        assert window == pipeline.unit_of(context_of(*words), whole).window
    assert (window.start, window.end) == (20, 39)


def test_an_arm_of_it_is_an_arm_of_the_whole_run(context_of, asked):
    edit = ("intervention=remove", "estimator=random")
    one, other = (pipeline.arm(context_of(*asked, *edit, *ends)) for ends in ((), (ENDS,)))
    assert one.run.fingerprint != other.run.fingerprint
    assert lines(one.run) == lines(other.run)
    assert hashes(one.run, 39) == hashes(other.run, 39)


@pytest.mark.parametrize(
    ("words", "last"),
    [
        (("unit.threshold=0.9",), 60),  # it never emerges
        (("intervention.window=[20,31]",), 40),
        (("intervention.window=[20,30]",), 30),
    ],
)
def test_without_an_onset_it_goes_on_and_a_given_window_needs_none(context_of, asked, words, last):
    _, run = pipeline.train(context_of(*asked, *words, ENDS))
    assert (run.curve[-1]["step"], run.checkpoints[-1]) == (last, last)


@pytest.mark.parametrize("step", [10, 40])
def test_a_killed_run_ends_where_it_would_have_ended(context_of, asked, ended, tmp_path, step):
    """Step 40 is in the table by then, and has no checkpoint yet."""

    def killed(row):
        if row["step"] == step and "val/loss" in row:
            raise KeyboardInterrupt

    context = context_of(*asked, ENDS, f"output_dir={tmp_path}")
    with pytest.raises(KeyboardInterrupt):
        pipeline.train(replace(context, log=killed))
    _, run = pipeline.train(context)
    assert run.artifact.manifest["resumed"]
    assert lines(run) == lines(ended) and hashes(run, 40) == hashes(ended, 40)
    assert run.checkpoints == ended.checkpoints


def test_a_run_that_was_killed_after_its_end_trains_no_further(
    context_of, asked, ended, tmp_path, monkeypatch
):
    context = context_of(*asked, ENDS, f"output_dir={tmp_path}")
    pipeline.corpus_of(context)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mda.store.artifacts.recorded_files", killed)
        pipeline.train(context)
    _, run = pipeline.train(context)
    assert run.artifact.manifest["resumed"]
    assert lines(run) == lines(ended) and run.checkpoints == ended.checkpoints


def test_the_key_of_a_whole_run_says_nothing_of_ends(whole, ended):
    keys, others = whole.artifact.manifest["inputs"], ended.artifact.manifest["inputs"]
    assert others == {**keys, "ends": others["ends"]} and "ends" not in {*keys, *keys["training"]}


@pytest.mark.parametrize(
    ("word", "enters"),
    [
        ("unit.threshold=0.2", True),
        ("unit.locate=L0H1", True),
        ("intervention.after_onset=12", True),
        ("intervention.window=[20,40]", True),
        ("intervention.before_onset=4", False),
        ("estimator=random", False),
    ],
)
def test_the_settings_of_the_end_enter_its_key_and_that_of_no_other_run(
    context_of, asked, word, enters
):
    def key(*words: str) -> str:
        return fingerprints(context_of(*asked, *words).config, pipeline.train)["base"]

    assert (key(ENDS, word) != key(ENDS)) == enters
    assert key(word) == key()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("unit=mlp_neuron", "intervention.window=auto"),
            "expected schedule with unit=mlp_neuron, whose metric is not on the base run's curve; "
            "or intervention.window=[start,end]",
        ),
        (("training.devices=2",), "expected schedule with training.devices=2"),
    ],
)
def test_an_end_that_no_process_sees_in_time_is_refused(context_of, words, says):
    with pytest.raises(ConfigError) as seen:
        context_of(*words, ENDS)
    assert str(seen.value) == f"training.ends=window is invalid; {says}"


def test_a_neuron_in_a_given_window_needs_no_curve(context_of):
    assert context_of("unit=mlp_neuron", ENDS).config.training.ends == "window"


def test_a_plan_counts_the_steps_of_the_whole_run_and_says_so(context_of, asked, tmp_path, capsys):
    config = context_of(*asked, ENDS, f"output_dir={tmp_path}").config
    assert preview_job(config, pipeline.train).refused == ""
    print_preview([config], pipeline.train)
    said = " ".join(capsys.readouterr().out.split())
    assert "training.ends=window: a base run is counted to its last step, and may end" in said


def test_an_sae_of_a_checkpoint_behind_the_end_is_refused(context_of, asked):
    context = context_of(*asked, ENDS, "sae.checkpoint=60")
    base = pipeline.train(context)[1]
    with pytest.raises(ConfigError, match=r"sae.checkpoint=60 .*end, 40"):
        _ = SaeStage(base, context.config.sae).step
