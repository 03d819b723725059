"""Which GPU each of several processes takes: what torch is asked is watched, no GPU is touched."""

import pytest
import torch

from mda.config import compose
from mda.schema import ConfigError
from mda.stages.context import process_group
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


@pytest.mark.parametrize(("words", "gpu"), [({"LOCAL_RANK": "1"}, 1), ({"RANK": "2"}, 0)])
def test_each_process_takes_a_gpu_of_its_own_in_turn(machine, words, gpu):
    machine.delenv("LOCAL_RANK", raising=False)
    machine.setenv("RANK", "3")
    for name, value in words.items():
        machine.setenv(name, value)
    with pytest.raises(Chosen) as chosen, process_group(compose(["training.accelerator=auto"])):
        pass
    assert chosen.value.args == (gpu,)


def test_gpus_of_several_kinds_are_refused(machine):
    machine.setattr(torch.cuda, "device_count", lambda: 4)
    config = compose(["training.accelerator=gpu"])
    wanted = "card 0 and card 1 together; accepted: GPUs of one kind"
    with pytest.raises(ConfigError, match=wanted), process_group(config):
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
