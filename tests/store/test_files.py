"""Files: what is written takes no memory of its own."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mda import store

MB = 200
SCRIPT = """
import sys
import threading
from pathlib import Path
import torch
from mda import store

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

store.write_safetensors(Path(sys.argv[1]) / "small.safetensors", {"x": torch.ones(1)})
tensors = {str(i): torch.ones(MB * 2**20 // 32) for i in range(8)}
before = peak()
store.write_safetensors(Path(sys.argv[1]) / "large.safetensors", tensors, {"a": "b"})
print(peak() - before)
""".replace("MB", str(MB))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says what a process has")
def test_tensors_are_written_without_a_copy_and_for_all_to_read(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=True
    )
    large = tmp_path / "large.safetensors"
    assert large.stat().st_size > MB * 2**20
    assert float(done.stdout) < MB / 4
    (tmp_path / "own").touch()
    assert large.stat().st_mode == (tmp_path / "own").stat().st_mode


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    path = tmp_path / "summary.json"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.open("w").close(), daemon=True)
    writer.start()  # ends a reader that waits, which then finds no JSON
    with pytest.raises(ValueError, match="is a pipe, and no file"):
        store.read_json(tmp_path / "summary.json")
