"""The store: one folder for one set of inputs, built once, never half there."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mda import store
from mda.store import Store, environment, fingerprint, make_key

INPUTS = {"corpus": "0123456789abcdef", "steps": [1, 2], "lr": 3e-3, "labels": None, "joint": True}


def test_fingerprint_stays_the_same_over_releases():
    assert fingerprint("base", INPUTS) == "6804dc8ed4e78818"


def test_fingerprint_ignores_key_order_and_list_or_tuple():
    reordered = {**dict(reversed(INPUTS.items())), "steps": (1, 2)}
    assert fingerprint("base", reordered) == fingerprint("base", INPUTS)


@pytest.mark.parametrize(
    "change",
    [
        {"corpus": "f"},
        {"steps": [2, 1]},
        {"lr": 3.0000000000000005e-3},
        {"labels": ""},
        {"joint": 1},
        {"joint": 1.0},
        {"new": 0},
    ],
)
def test_fingerprint_changes_with_every_input(change):
    assert fingerprint("base", INPUTS | change) != fingerprint("base", INPUTS)
    assert fingerprint("arm", INPUTS) != fingerprint("base", INPUTS)


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (Path("data"), TypeError, r"inputs\.a\.b\[1\] is .*Path"),
        (np.float64(1.0), TypeError, r"inputs\.a\.b\[1\] is .*numpy\.float64"),
        (np.int64(1), TypeError, r"numpy\.int64"),
        (torch.tensor(1), TypeError, r"torch\.Tensor"),
        ({1, 2}, TypeError, r"set"),
        ({1: 2}, TypeError, r"has the key 1"),
        (float("nan"), ValueError, r"inputs\.a\.b\[1\] is nan"),
        (float("inf"), ValueError, r"is inf"),
    ],
)
def test_fingerprint_refuses_what_differs_between_hosts(value, error, said):
    with pytest.raises(error, match=said):
        fingerprint("base", {"a": {"b": [0, value]}})


def write_one(part: Path) -> None:
    store.write_json(part / "result.json", {"answer": 42})


def test_the_second_call_finds_what_the_first_built(tmp_path):
    house = Store(tmp_path)
    assert house.find(make_key("base", INPUTS)) is None
    first = house.get_or_build(make_key("base", INPUTS), write_one)
    second = house.get_or_build(make_key("base", INPUTS), lambda part: pytest.fail("built twice"))
    assert (first.built, second.built) == (True, False)
    assert first.path == second.path == tmp_path / "base" / fingerprint("base", INPUTS)
    assert store.read_json(second.path / "result.json") == {"answer": 42}
    assert first.manifest == second.manifest
    found = house.find(make_key("base", INPUTS))
    assert found is not None
    assert [found.fingerprint] == [artifact.fingerprint for artifact in house.artifacts()]
    assert house.parts() == []


def test_manifest_says_what_entered_and_nothing_of_the_host(tmp_path):
    manifest = (
        Store(tmp_path)
        .get_or_build(make_key("base", {**INPUTS, "steps": (1, 2)}), write_one)
        .manifest
    )
    assert manifest["inputs"] == INPUTS
    assert manifest["kind"] == "base"
    assert manifest["fingerprint"] == fingerprint("base", INPUTS)
    assert manifest["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert {"sha", "dirty"} == manifest["git"].keys()
    assert manifest["wall_s"] >= 0
    text = json.dumps(manifest)
    for secret in (str(tmp_path), str(Path.home()), socket.gethostname()):
        assert secret not in text


def test_a_build_that_raises_leaves_its_part_and_no_artifact(tmp_path):
    house = Store(tmp_path)

    def fail(part: Path) -> None:
        write_one(part)
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        house.get_or_build(make_key("base", INPUTS), fail)
    assert house.find(make_key("base", INPUTS)) is None
    assert house.artifacts() == []
    (part,) = house.parts()
    assert (part / "result.json").exists()
    assert house.get_or_build(make_key("base", INPUTS), lambda part: None).manifest["resumed"]


def test_a_resumed_build_was_started_when_it_was_first_begun(tmp_path, monkeypatch):
    """A study is registered if its arms were first begun for it, whoever resumes them."""
    house = Store(tmp_path, {"name": "first", "hash": "1"})

    def stop(part: Path) -> None:
        write_one(part)
        raise KeyboardInterrupt

    for hour in (7, 8):
        monkeypatch.setattr("mda.store.artifacts._now", lambda hour=hour: f"2026-11-25T0{hour}:00")
        with pytest.raises(KeyboardInterrupt):
            house.get_or_build(make_key("base", INPUTS), stop)
    later = Store(tmp_path, {"name": "later", "hash": "2"})
    manifest = later.get_or_build(make_key("base", INPUTS), write_one).manifest
    assert (manifest["started"], manifest["created"]) == ("2026-11-25T07:00", "2026-11-25T08:00")
    assert manifest["study"] == {"name": "first", "hash": "1"}
    again = Store(tmp_path).get_or_build(make_key("base", INPUTS), write_one).manifest
    assert again["study"]["name"] == "first"


BUILDER = """
import sys, time
from pathlib import Path
from mda.store import Store, make_key, write_json

root, log, steps, pause = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])

def build(part):
    with log.open("a") as file:
        file.write(f"from {len(list(part.glob('step_*')))}\\n")
    for step in range(steps):
        if not (part / f"step_{step}.json").exists():
            time.sleep(pause)
            write_json(part / f"step_{step}.json", step)

artifact = Store(root).get_or_build(make_key("base", {"steps": steps}), build)
print(artifact.built, artifact.path)
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, *map(str, arguments)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_processes_that_want_the_same_artifact_build_it_once(tmp_path):
    processes = [start(tmp_path / "store", tmp_path / "log", 5, 0.2) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert (tmp_path / "log").read_text() == "from 0\n"
    assert sorted(out.split()[0] for out, _ in outputs) == ["False", "False", "True"]
    assert len({out.split()[1] for out, _ in outputs}) == 1
    said = [err for _, err in outputs if err]
    assert said
    for err in said:
        assert err.startswith("waiting for another process that builds base/")
        assert err.count("\n") == 1


def test_after_kill_9_nothing_has_the_final_name_and_the_next_call_resumes(tmp_path):
    root, log = tmp_path / "store", tmp_path / "log"
    process = start(root, log, 3, 0.5)
    deadline = time.monotonic() + 60
    while not list(root.glob("base/*.part/step_0.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    house = Store(root)
    assert house.find(make_key("base", {"steps": 3})) is None
    assert house.artifacts() == []
    (part,) = house.parts()
    (part / ".step_1.json.99.tmp").write_text("torn")
    out, _ = start(root, log, 3, 0).communicate(timeout=60)
    assert out.startswith("True")
    lines = log.read_text().split("\n")
    assert lines[0] == "from 0"
    assert lines[1] in ("from 1", "from 2")
    (artifact,) = house.artifacts()
    assert artifact.manifest["resumed"]
    names = sorted(path.name for path in artifact.path.iterdir())
    assert names == ["manifest.json", "step_0.json", "step_1.json", "step_2.json"]
    assert house.parts() == []


def test_remove_leaves_what_a_process_works_on(tmp_path):
    house = Store(tmp_path)

    def build(part: Path) -> None:
        write_one(part)
        assert not Store(tmp_path).remove(part)
        assert (part / "result.json").exists()

    artifact = house.get_or_build(make_key("base", INPUTS), build)
    assert house.remove(artifact.path)
    assert house.artifacts() == []
    assert house.parts() == []


def test_an_interrupted_removal_is_no_artifact_and_is_removed_later(tmp_path):
    house = Store(tmp_path)
    artifact = house.get_or_build(make_key("base", INPUTS), write_one)
    trash = artifact.path.rename(artifact.path.with_suffix(".trash"))
    assert house.find(make_key("base", INPUTS)) is None
    assert house.artifacts() == []
    assert house.parts() == [trash]
    assert house.remove(trash)
    assert house.parts() == []


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    store.write_json(tmp_path / "a.json", {"loss": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json(tmp_path / "a.json", {"loss": float("nan")})
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        store.write_csv(tmp_path / "a.csv", [{"step": 1}, {"step": 2, "loss": 3}])
    assert store.read_json(tmp_path / "a.json") == {"loss": 1.5}
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_is_written_reads_back_equal(tmp_path):
    rows = [{"step": 1, "loss": 0.1 + 0.2, "name": 'a, "b"\nc'}, {"step": 2, "loss": None}]
    store.write_csv(tmp_path / "deep" / "a.csv", rows)
    back = store.read_csv(tmp_path / "deep" / "a.csv")
    assert float(back[0]["loss"]) == 0.1 + 0.2
    assert back[0]["name"] == rows[0]["name"]
    assert back[1]["loss"] == ""
    store.write_csv(tmp_path / "none.csv", [], ["step"])
    assert (tmp_path / "none.csv").read_text() == "step\n"

    array = np.arange(6, dtype=np.uint16).reshape(2, 3)
    store.write_npy(tmp_path / "a.npy", array)
    for mmap in (False, True):
        assert np.array_equal(store.read_npy(tmp_path / "a.npy", mmap=mmap), array)
    assert isinstance(store.read_npy(tmp_path / "a.npy", mmap=True), np.memmap)

    tensors = {"w": torch.arange(6.0).reshape(2, 3).T, "step": torch.tensor(3)}
    store.write_safetensors(tmp_path / "a.safetensors", tensors, {"kind": "test"})
    back = store.read_safetensors(tmp_path / "a.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_pickles_are_neither_written_nor_read(tmp_path):
    array = np.array([{"a": 1}], dtype=object)
    with pytest.raises(ValueError, match="allow_pickle"):
        store.write_npy(tmp_path / "a.npy", array)
    np.save(tmp_path / "b.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        store.read_npy(tmp_path / "b.npy")


def test_array_hash_sees_values_dtype_shape_and_borders():
    a = np.arange(6, dtype=np.int32)
    variants = [
        (a,),
        (a + 1,),
        (a.astype(np.int64),),
        (a.reshape(2, 3),),
        (a.reshape(2, 3).T,),
        (a[:3], a[3:]),
        (a[:2], a[2:]),
    ]
    assert len({store.hash_arrays(*arrays) for arrays in variants}) == len(variants)
    assert store.hash_arrays(a[::2]) == store.hash_arrays(a[::2].copy())


def test_file_hash_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert store.hash_file(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_git_state_of_an_installed_copy_inside_a_foreign_checkout_is_unknown(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "environment.py").write_text("")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    store.git_state.cache_clear()
    assert store.git_state() == {"sha": None, "dirty": None}
    store.git_state.cache_clear()
