"""Locks where the file system has none: who holds one, who waits, and whose is broken."""

import errno
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mda.store import locks
from mda.store.keys import HOME

WITHOUT_FLOCK = """
import fcntl, sys, time
from pathlib import Path
if sys.argv[3] != "0":
    def refuse(*_):
        raise OSError(int(sys.argv[3]), "no locks here")
    fcntl.flock = refuse  # as the file system of the kernel answers
from mda.store import Store, locks, make_key, write_json
locks.STALE_S = 1.0

def build(part):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    time.sleep(float(sys.argv[4]))
    write_json(part / "a.json", 1)

print(Store(Path(sys.argv[1])).get_or_build(make_key("base", {"n": 1}), build).built)
"""


def start(folder: Path, error: int, seconds: float) -> subprocess.Popen[str]:
    arguments = [folder / "store", folder / "log", error, seconds]
    return subprocess.Popen(
        [sys.executable, "-c", WITHOUT_FLOCK, *map(str, arguments)],
        cwd=HOME, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for(pattern: str, folder: Path) -> Path:
    deadline = time.monotonic() + 30
    while not (found := list(folder.glob(pattern))):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found[0]


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_flock_one_builds_and_the_others_wait_after_one_sentence(tmp_path, error):
    processes = [start(tmp_path, error, 1.0) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert sorted(out.strip() for out, _ in outputs) == ["False", "False", "True"]
    assert (tmp_path / "log").read_text() == "built\n"
    for _, said in outputs:
        lines = said.splitlines()
        assert "has no locks (no locks here): files that name their owner are used" in lines[0]
        assert all("waiting for another process" in line for line in lines[1:])


def test_another_error_than_of_missing_locks_is_passed_on(tmp_path):
    _, said = start(tmp_path, errno.EIO, 0).communicate(timeout=60)
    assert "no locks here" in said and "Traceback" in said


def test_the_lock_file_of_a_killed_process_is_broken_at_once(tmp_path):
    first = start(tmp_path, errno.ENOLCK, 60)
    lock = wait_for("store/base/*.soft", tmp_path)
    wait_for("log", tmp_path)
    pid, host = lock.read_text().splitlines()[:2]
    assert (int(pid), host) == (first.pid, socket.gethostname())
    first.kill()
    first.wait()
    out, _ = start(tmp_path, errno.ENOLCK, 0).communicate(timeout=60)
    assert out == "True\n"


def test_the_lock_file_of_another_host_is_broken_when_it_is_not_renewed(tmp_path):
    first = start(tmp_path, errno.ENOLCK, 60)
    lock = wait_for("store/base/*.soft", tmp_path)
    wait_for("log", tmp_path)
    first.kill()
    first.wait()
    lock.write_text("77\nnode-of-old\n")
    out, said = start(tmp_path, errno.ENOLCK, 0).communicate(timeout=60)
    assert out == "True\n"
    assert "of process 77 on node-of-old was not renewed for 1 s: it is broken" in said


def test_a_lock_that_is_renewed_is_not_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "RENEWED_S", 0.2)
    path = tmp_path / "a.soft"
    with locks._soft(path, None):
        before = path.stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while path.stat().st_mtime_ns == before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert path.stat().st_mtime_ns > before
    assert not path.exists()


def test_who_does_not_wait_is_told_that_the_lock_is_held(tmp_path):
    for hold in (locks.hold, locks._soft):
        path = tmp_path / hold.__name__
        code = f"from mda.store import locks; from pathlib import Path; import sys, time\n"\
               f"with locks.{hold.__name__}(Path({str(path)!r}), None):\n"\
               "    print('held', flush=True); sys.stdin.read()"  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=HOME, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout.readline() == "held\n"
        with pytest.raises(locks.Busy), hold(path, None):
            pass
        process.communicate(timeout=30)
        with hold(path, None):
            assert os.path.exists(path)
