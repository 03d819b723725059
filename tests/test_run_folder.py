"""The folder of a run or sweep belongs to one process; jobs in one process are not mistaken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mda.cli import main

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
from pathlib import Path
from mda.config import main

def program(config, folder):
    from mda.store import Store, make_key, write_json
    store = Store(Path(config.output_dir) / "store")
    corpus = store.get_or_build(make_key("corpus", {}), lambda part: write_json(part / "a.json", 1))
    store.get_or_build(make_key("base", {"corpus": corpus.fingerprint}), lambda part: None)
    (folder / "result").write_text(str(config.training.total_steps))
    if config.seed == 0:
        print("working", file=sys.__stdout__, flush=True)
        sys.stdin.read()

if __name__ == "__main__":
    main(program, ("training",))
"""


@pytest.fixture
def start(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)

    def start(*overrides: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, path, f"output_dir={tmp_path}", "name=same", *overrides],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


SWEEP = ("-m", "seed=0,1")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param((), (), id="run-run"),
        pytest.param((), SWEEP, id="run-sweep", marks=pytest.mark.long),
        pytest.param(SWEEP, (), id="sweep-run", marks=pytest.mark.long),
        pytest.param(SWEEP, SWEEP, id="sweep-sweep", marks=pytest.mark.long),
    ],
)
def test_a_second_run_or_sweep_of_one_name_is_refused(start, tmp_path, first, second):
    one = start(*first, "training.total_steps=1000")
    while "working" not in (line := one.stdout.readline()):
        assert line, "the program ended early"
    folder = tmp_path / "runs" / "program" / "same"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    two = start(*second, "training.total_steps=2000")
    out, said = two.communicate(timeout=60)
    assert (two.returncode, out) == (2, ""), said
    assert said.count("\n") == 1
    assert said.startswith(f"error: name=same: another process works in {folder}; expected ")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    one.communicate(timeout=60)
    assert one.returncode == 0
    assert {path.read_text() for path in folder.rglob("result")} == {"1000"}
    three = start(*second, "training.total_steps=2000")
    three.communicate(timeout=60)
    assert three.returncode == 0


def test_a_running_job_says_what_it_uses_and_gc_keeps_it(start, tmp_path):
    job = start()
    while "working" not in (line := job.stdout.readline()):
        assert line, "the program ended early"
    used = json.loads((tmp_path / "runs/program/same/job.json").read_text())["uses"]
    kept = {path.parent.name for path in tmp_path.glob("store/*/*/manifest.json")}
    assert {name for names in used.values() for name in names} == kept and len(kept) == 2
    gc = ["store", "gc", "--unreferenced", "--outputs", str(tmp_path)]
    assert main(gc) == 0
    assert {path.parent.name for path in tmp_path.glob("store/*/*/manifest.json")} == kept
    job.communicate(timeout=60)
    assert main(gc) == 0  # it has ended, and left no summary that names them
    assert list(tmp_path.glob("store/*/*/manifest.json")) == []


def test_parallel_jobs_with_one_worker_run_to_the_end(start, tmp_path):
    """With one worker they run in the launching process, whose parent is the shell."""
    sweep = start("-m", "seed=1,2,3", "hydra/launcher=parallel", "hydra.launcher.n_jobs=1")
    out, said = sweep.communicate(timeout=120)
    assert sweep.returncode == 0, said
    assert "3 jobs: 3 done" in out
    jobs = sorted(tmp_path.glob("runs/program/same/*/job.json"))
    assert [json.loads(path.read_text())["status"] for path in jobs] == ["done"] * 3


FULL = {  # what a writer meets, and the words of the system; tensors have a writer of their own
    "file": ("open('/dev/full', 'wb', buffering=0).write(b'x')", "No space left on device"),
    "tensors": (
        "import numpy, resource; from safetensors.numpy import save_file; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999)); "
        "save_file({'w': numpy.ones(9999)}, folder / 'w')",
        "File too large",
    ),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(("writer", "sweep"), [("file", ()), ("file", SWEEP), ("tensors", ())])
def test_a_full_disk_is_one_sentence_and_no_traceback(tmp_path, writer, sweep):
    path, (line, why) = tmp_path / "program.py", FULL[writer]
    body = f"def program(config, folder):\n    {line}\n"
    path.write_text(f"from mda.config import main\n{body}main(program, ('training',))\n")
    done = subprocess.run(
        [sys.executable, path, f"output_dir={tmp_path / 'out'}", *sweep],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, capture_output=True,
    )  # fmt: skip
    said = f"error: output_dir={tmp_path / 'out'}: no more can be written ({why}); nothing"
    assert "Traceback" not in done.stderr
    if not sweep:
        assert done.stderr.startswith(said) and done.stderr.count("\n") == 1
        assert done.returncode == 75
    else:
        assert said in done.stderr + done.stdout and done.returncode != 0
