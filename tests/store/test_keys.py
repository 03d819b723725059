"""What an artifact's key is made of: a change that can change a value changes it, others do not."""

import ast
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mda.store.keys import HOME, KEEPERS, Key, device_kind, difference, make_key, sources

ROOTS = ("mda.estimator.ekfac",)


def copy_of_the_package(folder: Path) -> Path:
    shutil.copytree(HOME / "mda", folder / "mda", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def path_of(home: Path, module: str) -> Path:
    below = home.joinpath(*module.split("."))
    package = below / "__init__.py"
    return package if package.exists() else below.with_suffix(".py")


def flip_a_sign(path: Path) -> None:
    """Change the first + or - or * of a module's source into another one."""
    tree = ast.parse(path.read_text("utf-8"))
    found = next(node for node in ast.walk(tree) if isinstance(node, ast.BinOp))
    found.op = ast.Sub() if not isinstance(found.op, ast.Sub) else ast.Add()
    path.write_text(ast.unparse(tree), "utf-8")


def test_a_copy_elsewhere_has_the_same_hashes(tmp_path):
    assert sources(ROOTS, copy_of_the_package(tmp_path)) == sources(ROOTS)


@pytest.mark.parametrize(
    "name",  # the root, what it imports, what that imports, and what is imported as mda.store
    ["mda.estimator.ekfac", "mda.estimator.score", "mda.model.loss", "mda.store.files"],
)
def test_a_flipped_sign_changes_the_hash_of_its_module_alone(tmp_path, name):
    home = copy_of_the_package(tmp_path)
    flip_a_sign(path_of(home, name))
    before, after = sources(ROOTS), sources(ROOTS, home)
    assert after.keys() == before.keys()
    assert {one for one in after if after[one] != before[one]} == {name}


def toy(folder: Path, **files: str) -> Path:
    """A package of the same name with few modules: `a` imports `b`, which imports `sub.c`."""
    modules = {
        "__init__": "",
        "a": "from mda import b\n\ndef f(x):\n    return b.g(x) + 1\n",
        "b": "def g(x):\n    from .sub import c\n    return c.h(x)\n",
        "sub/__init__": "",
        "sub/c": 'def h(x):\n    """Text."""\n    return x - 1\n',
        "other": "value = 1\n",
    }
    for name, text in (modules | {k.replace("__", "/"): v for k, v in files.items()}).items():
        path = folder / "mda" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_imports_are_followed_into_functions_packages_and_relative_names(tmp_path):
    found = sources(("mda.a",), toy(tmp_path))
    assert list(found) == ["mda", "mda.a", "mda.b", "mda.sub", "mda.sub.c"]


@pytest.mark.parametrize(
    "text",
    [
        'def h(x):\n    """Another text."""\n    return x - 1\n',
        "def h(x):\n    return x - 1\n",
        "# why\ndef h( x ):  # because\n\n    return (x\n      - 1)\n",
        '"""A module."""\n\ndef h(x):\n    """Text."""\n    return x - 1\n    "no statement"\n',
    ],
)
def test_docstrings_comments_and_formatting_do_not_count(tmp_path, text):
    before = sources(("mda.a",), toy(tmp_path / "before"))
    assert sources(("mda.a",), toy(tmp_path / "after", sub__c=text)) == before


@pytest.mark.parametrize(
    "text",
    [
        "def h(x):\n    return x + 1\n",
        "def h(x):\n    return x - 1.0\n",
        "def h(x):\n    return x - True\n",
        'def h(x):\n    return x - 1 + len("Text.")\n',
        "def h(x, y=0):\n    return x - 1\n",
        "def h(x):\n    return x - None\n",
        "def h(x):\n    return\n",
    ],
)
def test_what_is_executed_counts_in_a_module_imported_indirectly(tmp_path, text):
    before = sources(("mda.a",), toy(tmp_path / "before"))
    after = sources(("mda.a",), toy(tmp_path / "after", sub__c=text))
    assert {name for name in before if before[name] != after[name]} == {"mda.sub.c"}


def test_a_module_nobody_imports_and_one_for_type_checkers_do_not_count(tmp_path):
    home = toy(
        tmp_path,
        a="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mda import other\n",
    )
    assert list(sources(("mda.a",), home)) == ["mda", "mda.a"]
    eager = toy(tmp_path / "x", a="if True:\n    from mda import other\n")
    assert "mda.other" in sources(("mda.a",), eager)


def test_a_root_that_does_not_exist_is_an_error():
    with pytest.raises(ModuleNotFoundError, match=r"no module mda\.estimator\.nothing"):
        sources(("mda.estimator.nothing",))


def test_modules_of_another_package_count_too(tmp_path, monkeypatch):
    (tmp_path / "plugged").mkdir()
    (tmp_path / "plugged" / "mine.py").write_text("import plugged.help\nimport mda.types\n")
    (tmp_path / "plugged" / "help.py").write_text("import numpy\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert set(sources(("plugged.mine",))) >= {"plugged.mine", "plugged.help", "mda.types"}


def test_nothing_that_draws_or_keeps_enters_a_key():
    packages = ("data", "model", "unit", "estimator", "intervention", "training", "emergence")
    roots = [
        ".".join(path.relative_to(HOME).with_suffix("").parts)
        for package in (*packages, "stages")
        for path in (HOME / "mda" / package).rglob("*.py")
        if path.name not in ("__init__.py", "preview.py")  # which prints, and keeps nothing
    ]
    found = sources(tuple(sorted(roots)))
    assert "mda.store.files" in found and "mda.estimator.ekfac" in found
    assert [name for name in found if name.startswith("mda.report")] == []
    assert "mda.stages.preview" not in found
    assert KEEPERS.isdisjoint(found)
    kept = {f"mda.store.{path.stem}" for path in (HOME / "mda" / "store").glob("*.py")}
    assert kept - {"mda.store.__init__"} == KEEPERS - {"mda.store"} | {"mda.store.files"}


KEY = Key("scores", {"step": 1}, {"mda.a": "1"}, {"torch": "2.13.0"}, "cpu")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(KEY, code={"mda.a": "2"}), "mda.a changed"),
        (replace(KEY, code={"mda.a": "1", "mda.b": "1"}), "mda.b changed"),
        (replace(KEY, versions={"torch": "2.12.0"}), "torch 2.12.0 instead of 2.13.0"),
        (replace(KEY, device="NVIDIA H100 80GB HBM3"), "on NVIDIA H100 80GB HBM3 instead of cpu"),
    ],
)
def test_other_code_versions_or_device_are_another_key_and_are_named(other, said):
    assert other.fingerprint != KEY.fingerprint
    assert difference(KEY.computed(), other.computed()) == said


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_the_key_holds_the_installed_versions_of_what_computes(tmp_path, package):
    fake = tmp_path / f"{package}-9.9.9.dist-info"
    fake.mkdir()
    (fake / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 9.9.9\n")
    code = "from mda.store import make_key as f; print(f('a', {}, ('mda.types',), 'cpu').versions)"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{HOME}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, text=True, capture_output=True, check=True
    )
    assert f"'{package}': '9.9.9'" in done.stdout


def test_the_device_is_that_of_the_stage():
    import torch

    assert make_key("base", {}, ("mda.types",), "cpu").device == "cpu"
    assert make_key("base", {}, ("mda.types",), torch.device("cpu")).device == "cpu"
    if torch.cuda.is_available():
        assert device_kind("cuda") == device_kind() == torch.cuda.get_device_name(0) != "cpu"
    else:
        assert device_kind() == "cpu"


def test_data_has_the_key_of_its_inputs_alone():
    key = make_key("corpus", {"seed": 0})
    assert (key.code, key.versions, key.device, key.computed()) == ({}, {}, "", {})
