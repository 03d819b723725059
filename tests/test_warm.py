"""A program started by `warm` ends as one that is started afresh does."""

import subprocess
import sys

import pytest
import warm

PROGRAMS = {
    "arguments and folder": "import os, sys; print(sys.argv[1:], os.getcwd(), __name__)",
    "nothing of the project is there": "import sys; print([m for m in sys.modules if m == 'mda'])",
    "an exit code": "import sys; print('a'); print('b', file=sys.stderr); sys.exit(3)",
    "a message": "import sys; sys.exit('too bad')",
    "an empty exit": "import sys; sys.exit()",
    "what is left for the end": "import atexit; atexit.register(print, 'last'); print('first')",
    "a thread": "import threading, time; "
    "threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()",
    "a child": "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1)'])",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_ends_in_the_same_way(name, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAMS[name])
    args = [sys.executable, "program.py", "one", "a b"]
    ours = warm.run(args, tmp_path)
    theirs = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True)
    assert (ours.returncode, ours.stdout, ours.stderr) == (
        theirs.returncode, theirs.stdout, theirs.stderr
    )  # fmt: skip


def test_an_error_is_told_and_a_killed_one_is_dead(tmp_path):
    (tmp_path / "program.py").write_text("raise KeyError('x')")
    done = warm.run([sys.executable, "program.py"], tmp_path)
    assert done.returncode == 1 and done.stderr.endswith("KeyError: 'x'\n")
    (tmp_path / "program.py").write_text("import time; time.sleep(60)")
    process = warm.start([sys.executable, "program.py"], tmp_path)
    process.kill()
    process.join(10)
    assert process.exitcode == -9
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run([sys.executable, "program.py"], tmp_path, timeout=0.2)
