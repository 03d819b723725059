"""Two processes, one model: equal to one process, and neither outlives the other."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest
import train_small
from safetensors.torch import load_file

from mda.training.devices import _death
from mda.training.table import read_rows

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("train_small.py")
UPDATES = 150
COMPARED = 40  # later ones drift apart: Adam makes much of the last bits of small gradients


def command(folder, updates=UPDATES, **settings):
    return [sys.executable, str(PROGRAM), str(folder), json.dumps(settings), str(updates)]


def start(*args, **kwargs):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    return subprocess.Popen(command(*args, **kwargs), **pipes)


def finished(*args, **kwargs):
    process = start(*args, **kwargs)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and out == "finished\n", err
    assert err == ""
    return args[0] / "run"


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    train_small.run(folder, {}, UPDATES)
    return folder / "run"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("two"), devices=2)


def gradient(run, step):
    """The first moment after one update is a tenth of the clipped gradient."""
    moments = load_file(run / "checkpoints" / f"step_{step}" / "optimizer.safetensors")
    return {key: value for key, value in moments.items() if key.endswith("exp_avg")}


def assert_close(run, reference):
    """Gradients to 1e-5 of their largest entry, the first losses to 1e-4 of themselves."""
    for step in (1, 2):  # a sample for one process alone; then five for two
        ours, theirs = gradient(run, step), gradient(reference, step)
        scale = max(value.abs().max() for value in theirs.values())
        for key, value in theirs.items():
            assert (ours[key] - value).abs().max() <= 1e-5 * scale, key
    ours, theirs = read_rows(run / "train.csv"), read_rows(reference / "train.csv")
    assert [row["step"] for row in ours] == list(range(1, UPDATES + 1))
    for row, expected in zip(ours[:COMPARED], theirs[:COMPARED], strict=True):
        assert row == pytest.approx(expected, rel=1e-4)


def test_two_processes_train_as_one(one, two):
    assert_close(two, one)
    assert sorted(p.name for p in two.iterdir()) == ["checkpoints", "train.csv"]
    names = sorted(p.name for p in (two / "checkpoints").iterdir())
    assert names == sorted(p.name for p in (one / "checkpoints").iterdir())


@pytest.mark.long
def test_micro_batches_on_two_processes_train_as_one(one, tmp_path):
    assert_close(finished(tmp_path, devices=2, micro_batch_size=1), one)


def follower_of(process):
    """The process that a training process has started, once it is there."""
    for _ in range(1200):
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"spawn_main" in words:
                return int(child)
        time.sleep(0.05)
    raise AssertionError("no second process")


def until_trained(folder, updates):
    table = folder / "run" / "train.csv"
    for _ in range(1200):
        if table.exists() and table.read_text().count("\n") > updates:
            return
        time.sleep(0.05)
    raise AssertionError("nothing was trained")


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_two_threads_that_ask_are_both_told_how_a_process_ended():
    """The first process notices by an error and by its watcher, often at the same moment."""
    told, context = [], multiprocessing.get_context("fork")
    for _ in range(20):
        other = context.Process(target=time.sleep, args=(60,))
        other.start()
        asking = [Thread(target=lambda one=other: told.append(_death([one]))) for _ in range(2)]
        os.kill(other.pid, signal.SIGKILL)
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
    assert told == [told[0]] * 40 and "was killed by signal 9" in told[0]


@pytest.mark.parametrize("victim", [pytest.param("first", marks=pytest.mark.long), "second"])
def test_when_one_is_killed_the_other_ends_and_the_next_start_goes_on(victim, two, tmp_path):
    process = start(tmp_path, devices=2)
    second = follower_of(process)
    until_trained(tmp_path, 20)
    os.kill(process.pid if victim == "first" else second, signal.SIGKILL)
    _, err = process.communicate(timeout=40)
    assert process.returncode == (-9 if victim == "first" else 1)
    if victim == "second":
        assert "process 1 of training.devices=2 was killed by signal 9; the same command" in err
    for _ in range(200):
        if not alive(second):
            break
        time.sleep(0.05)
    assert not alive(second)
    done = read_rows(tmp_path / "run" / "train.csv")[-1]["step"]
    assert done < UPDATES, "it was killed in the middle"
    resumed = finished(tmp_path, devices=2)
    for name in ("train.csv", f"checkpoints/step_{UPDATES}/model.safetensors"):
        assert (resumed / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.long
def test_a_second_process_that_fails_at_its_start_is_noticed(tmp_path):
    """Killed before the two have met, when the first waits for it without a time limit."""
    process = start(tmp_path, devices=2)
    os.kill(follower_of(process), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "process 1 of training.devices=2 was killed by signal 9" in err
