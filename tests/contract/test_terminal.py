"""Where a program's output goes cannot fail it: pipes, encodings, keys, another's settings."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mda.config.composer import compose

PLAN = ("plan", "experiment=smoke", "plan.hardware=h100")
MISSING = (
    "plan",
    "data=hf",
    'data.dataset="né.jsonl"',
    "data.tokenizer=no.json",
    "plan.hardware=h100",
)


def mda(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mda.cli", *words]
    env = os.environ | environment
    return subprocess.run(command, env=env, capture_output=True, encoding="latin-1", check=False)


@pytest.mark.parametrize("words", [("run", "--help"), ("--help",), ("store", "--help")])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_ends_a_program_without_a_traceback(words, unbuffered):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        command = [sys.executable, "-m", "mda.cli", *words]
        env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, env=env, check=False)
    assert done.stderr == b""
    assert done.returncode == (0 if words[0] == "store" and unbuffered else 141)  # argparse's own


@pytest.mark.parametrize(("encoding", "shown"), [("latin-1", "né.jsonl"), ("ascii", "n?.jsonl")])
def test_what_an_encoding_lacks_is_printed_as_a_question_mark(tmp_path, encoding, shown):
    done = mda(*MISSING, f"output_dir={tmp_path}", PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and shown in "".join(done.stdout.split()), done.stderr


def test_the_backend_of_a_notebook_elsewhere_does_not_count(tmp_path):
    done = mda(*PLAN, f"output_dir={tmp_path}", MPLBACKEND="module://elsewhere.inline")
    assert done.returncode == 0 and "estimate:" in done.stdout, done.stderr


def test_ctrl_c_while_jobs_are_composed_leaves_no_traceback(tmp_path):
    """A sweep of a thousand jobs takes minutes to compose."""
    command = [sys.executable, "-m", "mda.cli", *PLAN, "-m", "seed=range(1000)"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, f"output_dir={tmp_path}"], **pipes) as program:
        time.sleep(5)
        program.send_signal(signal.SIGINT)
        assert program.communicate() == ("", "stopped\n")
    assert program.returncode == 130


def test_ctrl_c_inside_hydra_is_not_taken_for_a_mistake():
    """Hydra closes a file in a `finally` block that was not opened yet: another exception."""

    def press(frame, event, _):
        caller = frame.f_back.f_code.co_name if frame.f_back else ""
        if event == "call" and frame.f_code.co_name == "open" and caller == "_read_config":
            sys.setprofile(None)
            os.kill(os.getpid(), signal.SIGINT)

    compose(["experiment=smoke"])  # signals are delivered as the main thread goes on
    sys.setprofile(press)
    try:
        with pytest.raises(KeyboardInterrupt):
            compose(["experiment=smoke"])
    finally:
        sys.setprofile(None)


def test_slurm_is_refused_where_it_is_not_and_planned_for_all_the_same(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    words = ("experiment=smoke", "hydra/launcher=slurm", "-m", "seed=0,1", f"output_dir={tmp_path}")
    done = mda("train", *words, PATH="/nowhere")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "hydra/launcher=slurm needs the command srun" in done.stderr
    planned = mda("plan", *words, "plan.hardware=h100", PATH="/nowhere")
    assert planned.returncode == 0 and "2 jobs" in planned.stdout
