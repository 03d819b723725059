"""What lies in a store is not believed: each damage is named, set aside, and built again."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mda.store import Store, artifacts, make_key, write_json
from mda.store.files import hash_file
from mda.store.keys import HOME
from mda.store.memory import HashMemory

PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from mda.store import Store, make_key, read_json, read_npy, write_json, write_npy

def build(part):
    write_npy(part / "tokens.npy", np.arange(1, 7))
    (part / "steps" / "step_1").mkdir(parents=True)
    write_json(part / "steps" / "step_1" / "state.json", {"step": 1})

found = Store(Path(sys.argv[1])).get_or_build(make_key("corpus", {"seed": 0}), build)
state = read_json(found.path / "steps" / "step_1" / "state.json")
print(found.built, read_npy(found.path / "tokens.npy").sum() + state["step"])
"""


def run_elsewhere(root: Path) -> tuple[str, str]:
    """(whether it was built and its value, what was said), by a process that knows nothing yet."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, root], cwd=HOME, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


Run = Callable[[Path], tuple[str, str]]


@pytest.fixture
def run_here(monkeypatch, capsys) -> Run:
    """`run_elsewhere` in this process, after it has forgotten what it found sound."""

    def run(root: Path) -> tuple[str, str]:
        monkeypatch.setattr(artifacts, "_sound", set())
        monkeypatch.setattr(sys, "argv", ["", str(root)])
        exec(PROGRAM, {})
        said = capsys.readouterr()
        return said.out.strip(), said.err

    return run


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


def flip_and_hide(path: Path) -> None:
    """A flipped bit under the old time."""
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_text(old: str, new: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("tokens.npy", Path.unlink, "tokens.npy is missing"),
        ("tokens.npy", lambda path: os.truncate(path, 100), "tokens.npy has 100 bytes instead of"),
        ("tokens.npy", flip, "tokens.npy has changed since it was built"),
        ("tokens.npy", flip_and_hide, "tokens.npy has changed since it was built"),
        ("steps", shutil.rmtree, "steps/step_1/state.json is missing"),
        ("manifest.json", Path.unlink, "manifest.json is missing"),
        ("manifest.json", lambda path: os.truncate(path, 0), "manifest.json is empty"),
        ("manifest.json", lambda path: os.truncate(path, 99), "manifest.json cannot be read"),
        ("manifest.json", lambda path: path.write_text("[]"), "manifest.json does not hold kind"),
        ("manifest.json", replace_text(': 0', ': 1'), "manifest.json belongs to corpus"),
        ("manifest.json", replace_text('"files"', '"flies"'), "manifest.json does not hold files"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)  # fmt: skip
def test_damage_is_named_set_aside_and_built_again(tmp_path, run_here, name, damage, said):
    """A flipped bit is found by who has not read the file yet: by another process."""
    run = run_elsewhere if damage in (flip, flip_and_hide) else run_here
    assert run(tmp_path) == ("True 22", "")
    assert run(tmp_path) == ("False 22", "")
    (folder,) = (path for path in (tmp_path / "corpus").iterdir() if path.is_dir())
    damage(folder / name)
    value, sentence = run(tmp_path)
    assert value == "True 22"
    assert sentence.count("\n") == 1
    assert sentence.startswith(f"corpus {folder.name}: {said}")
    assert f"set aside as {folder.name}.broken-1" in sentence
    assert folder.with_name(f"{folder.name}.broken-1").is_dir()
    assert run(tmp_path) == ("False 22", "")


def test_damage_twice_leaves_both_aside(tmp_path, run_here):
    for n in (1, 2):
        run_here(tmp_path)
        (path,) = (tmp_path / "corpus").glob("*[0-9a-f]/tokens.npy")
        path.unlink()
        assert f"broken-{n}" in run_here(tmp_path)[1]


def test_a_file_that_the_manifest_does_not_name_is_told_and_nothing_is_set_aside(
    tmp_path, run_here
):
    run_here(tmp_path)
    (folder,) = (path for path in (tmp_path / "corpus").iterdir() if path.is_dir())
    assert list(Store(tmp_path).verify()) == [(folder, None)]
    (folder / "steps" / "step_2").mkdir()
    (folder / "steps" / "step_2" / "state.json").write_text("{}")
    (found,) = Store(tmp_path).verify()
    said = "steps/step_2/state.json: in the folder, but not in its manifest.json"
    assert found == (folder, said) and folder.is_dir()
    assert run_here(tmp_path) == ("False 22", "")


@pytest.mark.skipif(os.getuid() != 0, reason="root alone can give a file away")
def test_artifacts_of_another_user_are_used_and_said_once(tmp_path, run_here, monkeypatch):
    monkeypatch.setattr(artifacts, "_said", set())
    run_here(tmp_path)
    assert run_here(tmp_path) == ("False 22", "")
    (folder,) = (path for path in (tmp_path / "corpus").iterdir() if path.is_dir())
    os.chown(folder, 65533, -1)
    said = f"warning: {tmp_path} has artifacts of another user, 65533: their hashes say that"
    value, sentence = run_here(tmp_path)
    assert value == "False 22" and sentence.startswith(said) and sentence.count("\n") == 1
    assert run_here(tmp_path) == ("False 22", "")


def test_sizes_are_compared_at_every_use_in_one_process(tmp_path):
    store = Store(tmp_path)
    built = store.get_or_build(
        make_key("base", {}), lambda part: write_json(part / "a.json", [1, 2])
    )
    assert store.find(make_key("base", {})) is not None
    os.truncate(built.path / "a.json", 1)
    assert store.find(make_key("base", {})) is None
    assert built.path.is_dir()  # only who builds sets aside
    assert store.get_or_build(
        make_key("base", {}), lambda p: write_json(p / "a.json", [1, 2])
    ).built


HEADER = json.dumps({"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
WHOLE = len(HEADER).to_bytes(8, "little") + HEADER + bytes(4)  # a safetensors file


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("shard.safetensors", b""),
        ("shard.safetensors", WHOLE[:-1]),
        ("shard.safetensors", WHOLE + b"\x00"),
        ("shard.safetensors", b"\x09\x00\x00\x00\x00\x00\x00\x00{}"),
        ("deep/state.json", b'{"step": '),
        ("deep/state.json", b""),
        ("rows.npy", b"\x93NUMPY"),
        ("rows.npy", b""),
    ],
)
def test_a_torn_file_of_an_unfinished_build_is_named_and_the_build_starts_over(
    tmp_path, capsys, name, content
):
    store = Store(tmp_path)
    seen = []

    def stopped(part: Path) -> None:
        write_json(part / "done.json", 1)
        (part / "whole.safetensors").write_bytes(WHOLE)
        raise KeyboardInterrupt

    def build(part: Path) -> None:
        seen.append(sorted(path.name for path in part.iterdir()))
        (part / "shard.safetensors").write_bytes(WHOLE)

    with pytest.raises(KeyboardInterrupt):
        store.get_or_build(make_key("scores", {"n": 1}), stopped)
    (part,) = store.parts()
    path = part / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    artifact = store.get_or_build(make_key("scores", {"n": 1}), build)
    assert seen == [["manifest.json"]]
    assert artifact.manifest["resumed"] is False
    said = capsys.readouterr().err
    assert f"unfinished scores {artifact.fingerprint}: {name} is torn; it is set aside as" in said


def test_whole_files_of_an_unfinished_build_are_resumed(tmp_path, capsys):
    store, seen = Store(tmp_path), []

    def stopped(part: Path) -> None:
        (part / "whole.safetensors").write_bytes(WHOLE)
        write_json(part / "done.json", 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get_or_build(make_key("scores", {}), stopped)
    store.get_or_build(
        make_key("scores", {}), lambda part: seen.extend(path.name for path in part.iterdir())
    )
    assert sorted(seen) == ["done.json", "manifest.json", "whole.safetensors"]
    assert capsys.readouterr().err == ""


def test_a_file_that_a_resumed_build_misses_starts_it_over_and_a_fresh_build_fails(
    tmp_path, capsys
):
    store, missing = Store(tmp_path), []

    def stopped(part: Path) -> None:
        write_json(part / "done.json", 1)
        raise KeyboardInterrupt

    def build(part: Path) -> None:
        if (part / "done.json").exists():
            missing.append(1)
            (part / "weights").read_bytes()

    with pytest.raises(KeyboardInterrupt):
        store.get_or_build(make_key("base", {}), stopped)
    assert not store.get_or_build(make_key("base", {}), build).manifest["resumed"]
    assert missing == [1]
    assert "weights" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        store.get_or_build(make_key("base", {"b": 1}), lambda part: open(part / "never").close())


def test_a_remembered_hash_counts_only_while_the_file_is_as_it_was(tmp_path):
    memory, path = HashMemory(tmp_path / "hashes.json"), tmp_path / "rows.bin"
    path.write_bytes(b"abc")
    first = memory.hash_file(path)
    assert first == hash_file(path)
    assert not memory.path.exists()  # too fresh: a change within the clock's tick is not seen
    time.sleep(2.2)
    assert memory.hash_file(path) == first
    # A false memory is believed: what is remembered is not read again ...
    memory.path.write_text(memory.path.read_text().replace(first, "f" * 64))
    assert memory.hash_file(path) == "f" * 64
    assert memory.hash_files([path], again=True) == [first]
    # ... but not of a file that has changed, even under its old size and time.
    memory.path.write_text(memory.path.read_text().replace(first, "f" * 64))
    before = path.stat()
    path.write_bytes(b"abd")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert memory.hash_file(path) == hash_file(path) != first
    path.write_bytes(b"abcd")
    assert memory.hash_file(path) == hash_file(path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 3}'])
def test_a_broken_memory_is_no_loss(tmp_path, content):
    memory, path = HashMemory(tmp_path / "hashes.json"), tmp_path / "rows.bin"
    memory.path.write_text(content.replace('"x"', json.dumps(str(path))))
    path.write_bytes(b"abc")
    assert memory.hash_file(path) == hash_file(path)
