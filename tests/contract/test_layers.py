"""The rules of the house: who may import what, and no drawer for odds and ends."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = (  # each may import those before it
    "data", "model", "training", "sae", "unit", "estimator", "intervention", "emergence",
    "cost", "analysis", "report",
)  # fmt: skip
FREE = {"types", "store", "schema", "benchmark"}  # every package may import these
FORBIDDEN = {  # beyond the order of the layers
    "sae": {"training"},
    "unit": {"training"},
    "intervention": {"estimator"},
}
OWNERS = {  # third parties, and where they may be imported
    "hydra": ("experiments/", "mda/config/"),
    "omegaconf": ("experiments/", "mda/config/"),
    "wandb": ("mda/report/",),
    "wandb_workspaces": ("mda/report/",),
    "matplotlib": ("mda/report/", "experiments/"),
    "plotly": ("mda/report/",),
    "pytorch_lightning": ("mda/training/", "mda/emergence/"),
    "lightning": (),
}
DRAWERS = {"utils", "util", "helpers", "common", "misc"}
SOURCES = sorted([*ROOT.glob("mda/**/*.py"), *ROOT.glob("experiments/**/*.py")])


def imported(source: str, package: str) -> Iterator[str]:
    """Full names of all modules that a source imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: -node.level + 1 or None] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(path: str, source: str) -> list[str]:
    """What a file, given by its path from the root, imports against the rules."""
    parts = Path(path).with_suffix("").parts
    found = []
    for name in imported(source, ".".join(parts[:-1])):
        top, *below = name.split(".")
        if top in OWNERS and not path.startswith(OWNERS[top]):
            found.append(f"{path} imports {name}")
        if top == "mda" and below and parts[0] == "mda" and not _allowed(parts[1], below[0]):
            found.append(f"{path} imports {name}")
    return found


def _allowed(here: str, there: str) -> bool:
    if here == there:
        return True
    if here in FREE or there in FREE:  # these stand alone
        return here not in FREE
    if here in LAYERS:
        earlier = there in LAYERS and LAYERS.index(there) < LAYERS.index(here)
        return earlier and there not in FORBIDDEN.get(here, set())
    # stages and pipeline stand above all packages, the programs above these
    stages = {*LAYERS, "stages"}
    above = {
        "stages": set(LAYERS),
        "pipeline": stages,
        "programs": {*stages, "pipeline", "config"},
        "cli": {"programs"},
    }
    return there in above.get(here, set())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_layers(path):
    assert violations(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) == []


def test_every_package_has_its_place_in_the_order():
    packages = {path.parent.name for path in ROOT.glob("mda/*/__init__.py")}
    assert packages - FREE - {"stages", "config", "programs"} == set(LAYERS)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("mda/training/loop.py", "from mda.unit import metrics"),
        ("mda/training/loop.py", "from mda.intervention.plan import apply"),
        ("mda/intervention/plan.py", "import mda.estimator.ekfac"),
        ("mda/data/stream.py", "from mda.model.pythia import scratch"),
        ("mda/data/stream.py", "from mda import model"),
        ("mda/data/stream.py", "from ..model import pythia"),
        ("mda/unit/probe.py", "from mda.training import optimizer"),
        ("mda/unit/probe.py", "def f():\n    from mda.report import figures"),
        ("mda/report/page.py", "from mda.stages import runs"),
        ("mda/analysis/effects.py", "from mda.report import figures"),
        ("mda/analysis/series.py", "from matplotlib import colormaps"),
        ("mda/analysis/series.py", "from plotly.offline import get_plotlyjs"),
        ("mda/analysis/claims.py", "import wandb"),
        ("mda/emergence/measure.py", "from mda.analysis import statistics"),
        ("mda/report/page.py", "from mda.config import compose"),
        ("mda/data/stream.py", "import omegaconf"),
        ("mda/pipeline.py", "from hydra import compose"),
        ("mda/training/loop.py", "from wandb import init"),
        ("mda/model/pythia.py", "import pytorch_lightning as pl"),
        ("mda/training/loop.py", "import lightning"),
        ("mda/store.py", "from mda.schema import Config"),
        ("mda/stages/runs.py", "from mda.programs.train import train"),
        ("mda/pipeline.py", "from mda.cli import main"),
        ("mda/programs/train.py", "import hydra"),
        ("mda/types.py", "from mda.store import Store"),
    ],
)
def test_a_planted_violation_is_found(path, source):
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "mda/training/loop.py",
            "from mda.data.stream import Corpus\nfrom mda import store, types",
        ),
        ("mda/training/loop.py", "import pytorch_lightning as pl\nfrom . import checkpoint"),
        ("mda/report/page.py", "import wandb\nfrom mda.intervention.plan import EditPlan"),
        ("mda/emergence/callback.py", "from pytorch_lightning import Callback"),
        ("mda/report/page.py", "from mda.analysis.claims import Verdict"),
        ("mda/analysis/claims.py", "from mda.schema import StudyConfig\nimport scipy"),
        ("mda/pipeline.py", "from mda.stages.runs import base_run"),
        ("mda/programs/train.py", "from mda import pipeline\nfrom mda.config import main"),
        ("mda/cli.py", "from mda.programs import store"),
        ("experiments/train.py", "import hydra\nfrom mda import pipeline, report"),
    ],
)
def test_what_the_rules_allow_is_allowed(path, source):
    assert violations(path, source) == []


def test_no_module_is_a_drawer_for_odds_and_ends():
    assert [path for path in SOURCES if DRAWERS & {path.stem, path.parent.name}] == []
