"""The rules of the house in pyproject.toml: who may import what, held by import-linter."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = Path(sys.executable).with_name("lint-imports")
DRAWERS = {"utils", "util", "helpers", "common", "misc"}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """What import-linter says of the package `mda` in a folder, by that folder's rules."""
    return subprocess.run([LINT, "--no-cache"], cwd=folder, capture_output=True, text=True)


def test_imports_follow_the_layers():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


FLOW = "Data flows one way"
CONFIGURATION = "The configuration knows the settings and nothing that computes"
UNITS = "Units and autoencoders do not know how models are trained"
SCORES = "Interventions take scores, never an estimator"
HYDRA = "Only the configuration knows Hydra"
DRAWING = "Only reports draw and log"
LIGHTNING = "Only training and the curve know Lightning"
OLD_NAME = "Lightning is imported by its old name alone"
PLANTED = [  # module, its line, what it imports, the rule that this breaks
    ("training.loop", "from mda.unit import metrics", "mda.unit.metrics", FLOW),
    (
        "training.loop",
        "from mda.intervention.changes import remove",
        "mda.intervention.changes",
        FLOW,
    ),
    ("training.loop", "from wandb import init", "wandb", DRAWING),
    ("training.loop", "import lightning", "lightning", OLD_NAME),
    ("intervention.changes", "import mda.estimator.ekfac", "mda.estimator.ekfac", SCORES),
    ("data.stream", "from mda.model import build", "mda.model.build", FLOW),
    ("data.packing", "from ..model import build", "mda.model.build", FLOW),
    ("data.stream", "import omegaconf", "omegaconf", HYDRA),
    ("unit.capture", "from mda.training import fit", "mda.training.fit", UNITS),
    ("sae.train", "from mda.training import loop", "mda.training.loop", UNITS),
    ("unit.capture", "def f():\n    from mda.report import figures", "mda.report.figures", FLOW),
    ("analysis.effects", "from mda.report import figures", "mda.report.figures", FLOW),
    ("analysis.effects", "from matplotlib import colormaps", "matplotlib", DRAWING),
    ("analysis.effects", "from plotly.offline import get_plotlyjs", "plotly", DRAWING),
    ("emergence.measure", "from mda.analysis import statistics", "mda.analysis.statistics", FLOW),
    ("report.page", "from mda.stages import runs", "mda.stages.runs", FLOW),
    ("report.page", "from mda.config import compose", "mda.config", FLOW),
    ("config.files", "from mda.model import build", "mda.model.build", CONFIGURATION),
    ("pipeline", "from hydra import compose", "hydra", HYDRA),
    ("programs.train", "import hydra", "hydra", HYDRA),
    ("model.build", "import pytorch_lightning as pl", "pytorch_lightning", LIGHTNING),
    ("store.files", "from mda.schema import Config", "mda.schema", FLOW),
    ("types", "from mda.store import Store", "mda.store", FLOW),
    ("stages.runs", "from mda.programs.train import train", "mda.programs.train", FLOW),
    ("pipeline", "from mda.cli import main", "mda.cli", FLOW),
]


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A copy of the package with every line planted in it: rule -> what is said of its breaches."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copyfile(ROOT / "pyproject.toml", folder / "pyproject.toml")
    shutil.copytree(ROOT / "mda", folder / "mda", ignore=shutil.ignore_patterns("__pycache__"))
    assert lint(folder).returncode == 0
    for module, line, _, _ in PLANTED:
        file = folder / "mda" / f"{module.replace('.', '/')}.py"
        file.write_text(f"{file.read_text('utf-8')}\n{line}\n", "utf-8")
    (folder / "mda" / "drawer").mkdir()
    (folder / "mda" / "drawer" / "__init__.py").touch()
    done = lint(folder)
    assert done.returncode == 1
    _, _, said = done.stdout.partition("\nBroken contracts\n")
    parts = re.split(r"\n(.+)\n-+\n\n", said)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(
    ("module", "line", "imported", "rule"),
    PLANTED,
    ids=[f"{module}: {line}" for module, line, *_ in PLANTED],
)
def test_a_planted_violation_is_found(broken, module, line, imported, rule):
    """The import alone breaks the rule: no way over further modules is told."""
    alone = rf"^- +mda\.{re.escape(module)} -> {re.escape(imported)} \(l\.\d+\)\n(?! )"
    assert re.search(alone, broken[rule], re.MULTILINE), broken[rule]


def test_a_package_without_a_layer_is_found(broken):
    assert "not listed as layers:\n\n- mda.drawer\n" in broken[FLOW]


def test_every_rule_has_a_planted_violation():
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    assert {rule["name"] for rule in rules["contracts"]} == {rule for *_, rule in PLANTED}


def owned(source: str) -> list[str]:
    """Packages that a program of experiments/ imports although parts of mda own them."""
    names = "wandb|wandb_workspaces|plotly|pytorch_lightning|lightning"
    return re.findall(rf"^\s*(?:import|from) ({names})\b", source, re.MULTILINE)


def test_programs_of_clones_leave_logging_and_training_to_the_package():
    programs = sorted(ROOT.glob("experiments/**/*.py"))
    assert programs
    assert [path for path in programs if owned(path.read_text("utf-8"))] == []
    assert owned("import os\nimport wandb\n    from lightning.x import y\n") == [
        "wandb",
        "lightning",
    ]


def test_no_module_is_a_drawer_for_odds_and_ends():
    sources = [*ROOT.glob("mda/**/*.py"), *ROOT.glob("experiments/**/*.py")]
    assert [path for path in sources if DRAWERS & {path.stem, path.parent.name}] == []
