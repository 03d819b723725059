"""The README's first command at smoke size: killed, called again, called once more."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import warm
from hydra._internal.utils import get_args_parser
from programs import ROOT, command, kill_parent_alone, kill_when

from mda.config import check, compose
from mda.programs.quickstart import AFTER_ONSET, end_of_base, progress, shorter, steps_under_way

ARMS = 8
JOBS = 72  # of the sweep that the last lines propose


def quickstart(out: Path) -> list[str]:
    return [sys.executable, "experiments/quickstart.py", "experiment=smoke", f"output_dir={out}",
            "report.resamples=99", "report.dpi=30"]  # fmt: skip


def finish(out: Path) -> Path:
    done = warm.run(quickstart(out), ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = Path(done.stdout.strip().splitlines()[-1])
    assert f"page: {folder / 'report.html'}" in done.stdout
    assert "remove mask ekfac top 10 %" in done.stdout
    assert done.stdout.count("with one seed none of") == 1
    *_, sentence, figure, page, follows, _ = done.stdout.strip().splitlines()
    assert sentence == json.loads((folder / "summary.json").read_text())["results"]["headline"]
    assert "removals by repetition, the trivial baseline, end at" in sentence
    assert figure == f"figure: {folder / 'curves.png'}" and (folder / "curves.png").is_file()
    assert page == f"page: {folder / 'report.html'}"
    words = shlex.split(follows.partition(": ")[2])
    assert words[:2] == ["mda", "plan"]
    assert check(get_args_parser().parse_args(words[2:]), None, every=False).jobs == JOBS
    return folder


def tables(folder: Path) -> dict[str, str]:
    names = ("effects.csv", "verdicts.csv")
    return {name: (folder / name).read_text() for name in names}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, finish(out)


def test_it_ends_with_every_arm_a_trace_and_a_page(whole):
    _, folder = whole
    assert len(list(folder.glob("arms/*/summary.json"))) == ARMS
    assert (folder / "trace" / "top_samples.html").exists()
    assert (folder / "report.html").stat().st_size > 1e6


def test_a_setting_that_some_arm_cannot_take_is_refused_before_any_work(tmp_path):
    command = [*quickstart(tmp_path), "intervention.select=bottom"]
    done = warm.run(command, ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("error: intervention.select is a setting of intervention=")
    assert not (tmp_path / "store").exists()


def test_the_base_run_ends_with_the_window(whole):
    out, folder = whole
    (base,) = (out / "store" / "base").glob("*/train.csv")
    assert base.read_text().count("\n") == 1 + 40  # the end of the preset's window; all are 60
    log = (folder / "base" / "output.log").read_text()
    assert str(base.parent / "checkpoints") in log


def test_the_steps_of_a_run_are_seen_while_it_trains(tmp_path):
    own = ["intervention=control", "intervention.window=[0,400]", "training.total_steps=400"]
    config = compose(["experiment=smoke", f"output_dir={tmp_path}", *own])
    assert steps_under_way(config) == {}
    kill_when(command("run", tmp_path, *own), lambda: sum(steps_under_way(config).values()) > 20)


def test_a_line_says_what_is_done_and_how_long_is_left(tmp_path):
    words = ["training.ends=window", "intervention.after_onset=1000", f"output_dir={tmp_path}"]
    config = compose(words)
    assert progress(["base"], 0, 0.0, config) == "corpus and base run"
    line = progress(["base"], 1000, 20.0, config)  # 5000 + 9 x 1500 / 2 steps, 20 of them a second
    assert line == "base run, step 1,000 of at most 6,000; at most 10 min left"
    part = tmp_path / "store" / "base" / "x.part"
    part.mkdir(parents=True)
    table = "step,emergence/prefix_matching/L0H0\n1000,0.01\n1125,0.11\n"  # .06 is half way
    (part / "curve.csv").write_text(table)
    assert end_of_base(config) == (2125, True)
    line = progress(["base"], 1000, 20.0, config)
    assert line == "base run, step 1,000 of 2,125; about 7 min left"
    line = progress(["control", "remove-ekfac", "augment-ekfac"], 1500, 25.0, config)
    assert line == "control and remove-ekfac; 3 of 9 have not ended; about 2 min left"
    assert progress(["trace"], 0, 0.0, config) == "trace; 1 of 9 have not ended"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", ["training.ends=window", f"intervention.after_onset={AFTER_ONSET}"]),
        ("unit=mlp_neuron", [f"intervention.after_onset={AFTER_ONSET}"]),
        ("training.ends=schedule intervention.after_onset=700", []),
        ("training.devices=2 intervention.after_onset=700", []),
    ],
)
def test_it_is_short_where_nothing_else_was_chosen(words, found):
    assert shorter(compose(words.split()), words.split()) == found


@pytest.mark.long
@pytest.mark.slow
def test_killed_at_a_random_moment_it_goes_on(whole, tmp_path):
    """Parent and workers are killed when a random number of artifacts is there."""
    wanted = random.randint(0, 2 + ARMS)  # corpus, base run, and the rest
    process = subprocess.Popen(
        quickstart(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    manifests = "store/*/*/manifest.json"
    while sum(not path.parent.suffix for path in tmp_path.glob(manifests)) < wanted:  # not .part
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _, folder = whole
    assert tables(finish(tmp_path)) == tables(folder), f"killed at {wanted} artifacts"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_workers_end_with_a_parent_that_is_killed_alone(tmp_path):
    kill_parent_alone(quickstart(tmp_path), tmp_path, "runs/quickstart/*/arms/*/output.log")
