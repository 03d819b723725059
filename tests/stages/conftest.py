"""One finished experiment at smoke size, whose stages are looked into."""

from pathlib import Path

import pytest
import torch

from mda import pipeline
from mda.config import compose
from mda.stages.context import Context
from mda.store import Store

SMOKE = ("experiment=smoke", "intervention.window=[20,60]", "training.threads=1")


@pytest.fixture(scope="session")
def outputs(tmp_path_factory):
    """The store that the tests of this folder share."""
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="session")
def context_of(outputs):
    """Overrides -> a quiet context."""

    def make(*overrides: str) -> Context:
        config = compose([*SMOKE, f"output_dir={outputs}", *overrides])
        torch.set_num_threads(1)  # as SMOKE says; a GPU that is only reckoned with need not be here
        return Context(config, Store(Path(config.output_dir) / "store"), progress=False)

    return make


@pytest.fixture(scope="session")
def traced(context_of):
    """Overrides -> a traced unit, and the context it was traced in."""

    def trace(*overrides: str) -> tuple[pipeline.Trace, Context]:
        context = context_of(*overrides)
        return pipeline.trace(context), context

    return trace
