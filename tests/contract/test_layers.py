"""The rules of the house in pyproject.toml: who may import what, held by import-linter."""

import re
import shutil
import subprocess
import sys
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


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the package and of its rules, to be spoilt."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copyfile(ROOT / "pyproject.toml", folder / "pyproject.toml")
    shutil.copytree(ROOT / "mda", folder / "mda", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("training/loop.py", "from mda.unit import metrics"),
        ("training/loop.py", "from mda.intervention.plan import remove"),
        ("training/loop.py", "from wandb import init"),
        ("training/loop.py", "import lightning"),
        ("intervention/plan.py", "import mda.estimator.ekfac"),
        ("data/stream.py", "from mda.model import build"),
        ("data/stream.py", "from ..model import build"),
        ("data/stream.py", "import omegaconf"),
        ("unit/capture.py", "from mda.training import fit"),
        ("unit/capture.py", "def f():\n    from mda.report import figures"),
        ("analysis/effects.py", "from mda.report import figures"),
        ("analysis/effects.py", "from matplotlib import colormaps"),
        ("analysis/effects.py", "from plotly.offline import get_plotlyjs"),
        ("emergence/measure.py", "from mda.analysis import statistics"),
        ("report/page.py", "from mda.stages import runs"),
        ("report/page.py", "from mda.config import compose"),
        ("config/files.py", "from mda.model import build"),
        ("pipeline.py", "from hydra import compose"),
        ("programs/train.py", "import hydra"),
        ("model/build.py", "import pytorch_lightning as pl"),
        ("store/files.py", "from mda.schema import Config"),
        ("types.py", "from mda.store import Store"),
        ("stages/runs.py", "from mda.programs.train import train"),
        ("pipeline.py", "from mda.cli import main"),
        ("drawer/__init__.py", ""),
    ],
)
def test_a_planted_violation_is_found(house, path, line):
    file = house / "mda" / path
    before = file.read_text("utf-8") if file.exists() else None
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{before or ''}\n{line}\n", "utf-8")
    try:
        assert lint(house).returncode == 1
    finally:
        if before is None:
            shutil.rmtree(file.parent)
        else:
            file.write_text(before, "utf-8")


def test_the_copy_without_a_violation_is_kept(house):
    assert lint(house).returncode == 0


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
