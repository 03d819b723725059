"""What is imported is declared: an installation must not live on what others happen to bring."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWN = {"mda"} | {path.stem for path in (ROOT / "experiments").glob("*.py")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    lines = [
        *PROJECT["dependencies"],
        *(x for e in extras for x in PROJECT["optional-dependencies"][e]),
    ]
    return {normal(re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0]) for line in lines}


def imported(folder: str) -> dict[str, str]:
    """Top-level name -> a file that imports it."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            found |= {name.partition(".")[0]: str(path.relative_to(ROOT)) for name in names}
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names | OWN}


@pytest.mark.parametrize("folder", ["mda", "experiments"])
def test_every_import_is_of_a_declared_package(folder):
    known, distributions = declared("report", "launchers"), packages_distributions()
    undeclared = {
        name: path
        for name, path in imported(folder).items()
        if known.isdisjoint(map(normal, distributions.get(name, [name])))
    }
    assert undeclared == {}
