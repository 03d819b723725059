"""One finished experiment at smoke size, whose stages are looked into."""

import pytest

from mda import pipeline
from mda.config import compose
from mda.stages.context import Context

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
        return Context(config, Context.of(config).store, progress=False)

    return make


@pytest.fixture(scope="session")
def traced(context_of):
    """Overrides -> a traced unit, and the context it was traced in."""

    def trace(*overrides: str) -> tuple[pipeline.Trace, Context]:
        context = context_of(*overrides)
        return pipeline.trace(context), context

    return trace
