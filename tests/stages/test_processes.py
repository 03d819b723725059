"""What each of several processes takes: a GPU (no GPU is touched), and its share of the rows."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from servers import serving
from torch.testing._internal.distributed.fake_pg import FakeStore

from mda import pipeline
from mda.config import compose
from mda.config.jobs import own_gpu
from mda.schema import ConfigError
from mda.stages.context import process_group
from mda.stages.corpus import fetch
from mda.stages.recipe import Recipe
from mda.store import Store, gpu_of
from mda.store.keys import HOME
from mda.training import fit


class Chosen(Exception):
    """Ends the start of a group where the GPU has been chosen."""


def choose(device):
    raise Chosen(device)


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"card {i // 2}")
    monkeypatch.setattr(torch.cuda, "set_device", choose)
    return monkeypatch


@pytest.mark.parametrize(
    ("n_gpus", "expected"),
    [(0, [None] * 4), (1, [0, 0, 0, 0]), (2, [0, 1, 0, 1]), (3, [0, 1, 2, 0])],
)
def test_processes_are_dealt_out_over_the_gpus_in_turn(n_gpus, expected):
    assert [gpu_of(number, ["card"] * n_gpus) for number in range(4)] == expected


@pytest.mark.parametrize(("words", "gpu"), [({"LOCAL_RANK": "1"}, 1), ({"RANK": "2"}, 0)])
def test_each_process_takes_a_gpu_of_its_own_in_turn(machine, words, gpu):
    machine.delenv("LOCAL_RANK", raising=False)
    machine.setenv("RANK", "3")
    for name, value in words.items():
        machine.setenv(name, value)
    with pytest.raises(Chosen) as chosen, process_group(compose(["training.accelerator=auto"])):
        pass
    assert chosen.value.args == (gpu,)


def test_a_job_of_a_sweep_takes_the_gpu_of_the_first_place_that_is_free(machine, tmp_path):
    taken = []
    machine.setattr(torch.cuda, "set_device", taken.append)
    with own_gpu(tmp_path, 3):
        with own_gpu(tmp_path, 3), own_gpu(tmp_path, 3):
            assert taken == [0, 1, 0]  # three jobs on two GPUs
        with own_gpu(tmp_path, 3):
            pass
    with own_gpu(tmp_path, 3):
        pass
    assert taken == [0, 1, 0, 1, 0]
    with own_gpu(tmp_path, 1):
        assert len(taken) == 5, "a job alone stays where it is"


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_bring_every_second_block_each(rank, context_of, tmp_path):
    """torch's stand-in for a group: it answers rank and size, and waits for nobody."""
    np.ones((96, 33), "<u2").tofile(tmp_path / "rows-0.bin")
    with serving(tmp_path) as server:
        given = {"source": server.url, "files": "'rows-{shard}.bin'", "shard_bytes": 10**6}
        given |= {"total_rows": 96, "n_sequences": 96, "rows_per_request": 8, "held_out": 16}
        words = [f"data.{name}={value}" for name, value in given.items()]
        context = context_of("data=pile", *words, f"output_dir={tmp_path}", "emergence.held_out=8",
                             "training.total_steps=20", "intervention.window=[0,20]")  # fmt: skip
        corpus = pipeline.corpus_of(context)
        assert len(server.requests) == 2, "the held-out rows, which are in blocks 10 and 11"
        dist.init_process_group("fake", rank=rank, world_size=2, store=FakeStore())
        try:
            fetch(context.at, corpus, np.arange(96), together=True)
        finally:
            dist.destroy_process_group()
        assert corpus.tokens.missing(np.arange(96)) == [*range(1 - rank, 10, 2)]
        fetch(context.at, corpus, np.arange(96))
        assert corpus.tokens.missing(np.arange(96)) == []
        assert len(server.requests) == 12


def test_gpus_of_several_kinds_are_refused(machine, tmp_path):
    machine.setattr(torch.cuda, "device_count", lambda: 4)
    machine.setenv("RANK", "0")
    config = compose(["training.accelerator=gpu"])
    for start, who in ((process_group(config), "torchrun"), (own_gpu(tmp_path, 2), "side by side")):
        wanted = f"{who} on card 0 and card 1 together; expected GPUs of one kind"
        with pytest.raises(ConfigError, match=wanted), start:
            pass


@pytest.mark.parametrize(
    ("words", "world", "expected"),
    [
        ([], 1, [1]),
        (["training.accelerator=cpu"], 1, 1),
        (["training.devices=2"], 2, 2),
    ],
)
def test_training_stays_on_the_gpu_of_its_process(monkeypatch, words, world, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    settings = compose(["training.accelerator=auto", *words]).training
    assert fit._devices(settings, fit.Process(0, world)) == expected


@pytest.mark.parametrize(
    ("words", "n_gpus", "said"),
    [
        (["training.devices=4"], 2, "training.devices=4 is invalid; expected at most 2, the"),
        (
            ["training.precision=16-mixed"],
            0,
            "training.precision=16-mixed is invalid; expected 32",
        ),
    ],
)
def test_what_this_machine_cannot_train_with_is_refused_before_any_work(
    context_of, monkeypatch, tmp_path, words, n_gpus, said
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    context = context_of("training.accelerator=auto", *words,
                         f"output_dir={tmp_path / 'out'}")  # fmt: skip
    with pytest.raises(ConfigError, match=re.escape(said)):
        pipeline.arm(context)
    assert not list(tmp_path.rglob("corpus*")), "not even a corpus was built"


def test_on_a_gpu_the_threads_of_the_processor_do_not_tell_trainings_apart(monkeypatch):
    """Nodes have other numbers of cores, and jobs side by side take fewer."""
    one, other = (compose([f"training.threads={n}"]) for n in (1, 8))
    for device, same in (("cpu", False), ("cuda", True)):
        monkeypatch.setattr(
            "mda.stages.recipe.device_of", lambda _, name=device: torch.device(name)
        )
        found = [Recipe(config.training, config.emergence).inputs for config in (one, other)]
        assert (found[0] == found[1]) is same
        assert found[0]["total_steps"] == 6000 and "accelerator" not in found[0]


TOGETHER = """
import sys, time
from pathlib import Path
from mda.config import compose
from mda.stages.context import build_together, process_group, rank
from mda.store import Store, make_key, write_json

def build(part):
    time.sleep(rank())  # the second process is a second behind
    write_json(part / f"{rank()}.json", rank())

with process_group(compose(["training.accelerator=cpu"])):
    build_together(Store(Path(sys.argv[1])), make_key("ranking", {"n": 1}), build)
"""


def test_a_folder_is_closed_when_the_slower_of_two_processes_has_written_its_part(tmp_path):
    torchrun = [Path(sys.executable).parent / "torchrun", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "--no-python", sys.executable, "-c", TOGETHER, tmp_path]
    done = subprocess.run([*map(str, command)], cwd=HOME, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (artifact,) = Store(tmp_path).artifacts()
    assert sorted(artifact.manifest["files"]) == ["0.json", "1.json"]
    assert Store(tmp_path).parts() == []
