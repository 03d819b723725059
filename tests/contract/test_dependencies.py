"""What is imported is declared: an installation must not live on what others happen to bring."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

from mda import store

ROOT = Path(__file__).parents[2]
OWN = {"mda"} | {path.stem for path in (ROOT / "experiments").glob("*.py")}
COMMAND = re.compile(r"pip install ['\"]?([\w.-]*[A-Za-z][\w.-]*)\[(\w+)\]")
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


def named_in_commands() -> dict[tuple[str, str], str]:
    """Distribution and extra of every command that installs an extra, and a file with it."""
    found = {}
    for folder in ("mda", "conf", "experiments", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".yaml", ".md", ".ipynb", ".j2"):
                for name, extra in COMMAND.findall(path.read_text("utf-8")):
                    found[name, extra] = str(path.relative_to(ROOT))
    return found


def test_every_message_names_this_distribution_and_an_extra_that_it_has():
    found = named_in_commands()
    assert (PROJECT["name"], "launchers") in found
    known = {(PROJECT["name"], extra) for extra in PROJECT["optional-dependencies"]}
    assert {pair: path for pair, path in found.items() if pair not in known} == {}


def test_records_know_the_version_that_is_installed():
    assert store.versions()["mda"] == version(PROJECT["name"])


@pytest.mark.parametrize("folder", ["mda", "experiments"])
def test_every_import_is_of_a_declared_package(folder):
    known, distributions = declared("report", "launchers"), packages_distributions()
    undeclared = {
        name: path
        for name, path in imported(folder).items()
        if known.isdisjoint(map(normal, distributions.get(name, [name])))
    }
    assert undeclared == {}
