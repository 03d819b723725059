"""The tests of every folder can import `families` and others, which are no tests themselves.

They can also import the modules of experiments/ that write this repository's pages.
"""

import os
import sys
from pathlib import Path

import pytest

# Before torch is imported: each of the processes that run tests side by side keeps to one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "experiments"))


@pytest.fixture(scope="session")
def smollm2_file():
    """The file of a real pretrained model; the test is skipped where it cannot be had."""
    import smollm2

    for package in ("gguf", "accelerate"):
        pytest.importorskip(package, reason=f"{package} is not installed (pip install --no-deps)")
    try:
        return smollm2.gguf_file()
    except OSError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2(smollm2_file):
    """A real pretrained model of 135 million parameters, and its tokenizer."""
    import smollm2
    import torch

    torch.set_num_threads(1)
    return smollm2.load()


def pytest_configure(config):
    """Files start in their order: by default the slow ones, of few tests, are all started last."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False
