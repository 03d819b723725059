"""Artifacts of other code: named and computed again, or used with a warning on request."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mda.store.keys import HOME

PROGRAM = """
import sys
from pathlib import Path
from mda.store import Store, make_key, read_json, write_json

root = Path(sys.argv[1])
store = Store(root)
def build(part):
    found = len(list(part.glob("*.json")))
    write_json(part / "value.json", int(sys.argv[2]))
    if "fail" in sys.argv:
        raise RuntimeError("killed")
scores = store.get_or_build(make_key("scores", {"base": "b"}, ("mda.study",), "cpu"), build)
made_from = {"scores": scores.fingerprint, "n": int(sys.argv[2])}
arm = store.get_or_build(make_key("arm", made_from, ("mda.types",), "cpu"), lambda part: None)
print(scores.built, read_json(scores.path / "value.json"), scores.manifest["resumed"])
print(arm.built, len(arm.manifest["warnings"]), arm.warning)
print(scores.warning)
"""
SOURCE = "def score(x):\n    return -x\n"


@pytest.fixture
def home(tmp_path):
    """A copy of the package with one more module, which a scoring is computed by."""
    shutil.copytree(HOME / "mda", tmp_path / "mda", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mda" / "study.py").write_text(SOURCE)
    return tmp_path


def run(home: Path, value: int, *more: str, reuse: bool = False) -> tuple[list[str], str]:
    environment = os.environ | {"PYTHONPATH": str(home)} | ({"MDA_REUSE": "1"} if reuse else {})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, home / "store", str(value), *more],
        cwd=home, env=environment, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == (1 if more else 0), done.stderr
    return done.stdout.splitlines(), done.stderr


def test_a_flipped_sign_is_named_and_computed_again(home):
    assert run(home, 1)[0][0] == "True 1 False"
    assert run(home, 2) == (["False 1 False", "True 0 ", ""], "")
    (home / "mda" / "study.py").write_text(SOURCE.replace("-x", "+x"))
    out, said = run(home, 2)
    assert out[0] == "True 2 False"
    assert said.count("\n") == 1
    assert "was computed by other code (mda/study.py changed) and is computed again" in said
    (home / "mda" / "study.py").write_text(f'"""Words."""\n{SOURCE}  # the old one\n')
    assert run(home, 2) == (["False 1 False", "False 0 ", ""], "")


def test_on_request_it_is_used_with_a_warning_that_what_is_made_from_it_keeps(home):
    run(home, 1)
    (home / "mda" / "study.py").write_text(SOURCE.replace("-x", "+x"))
    out, said = run(home, 2, reuse=True)
    assert out[0] == "False 1 False"
    warning = "was computed by other code (mda/study.py changed) and is used"
    assert warning in said and said.startswith("warning: ") and said.count("\n") == 1
    assert out[1].startswith("True 1 scores") and warning in out[1] and warning in out[2]
    for value, start in ((2, "False 1 scores"), (1, "False 0 scores")):  # what was made before, too
        out, _ = run(home, value, reuse=True)
        assert out[1].startswith(start) and warning in out[1]
    out, said = run(home, 2)  # without the request it is computed, and so is what follows from it
    assert (out, "and is computed again" in said) == (["True 2 False", "True 0 ", ""], True)


def test_an_unfinished_build_of_other_code_is_not_resumed(home):
    run(home, 1, "fail")
    assert run(home, 2)[0][0] == "True 2 True"  # of the same code it is
    shutil.rmtree(home / "store")
    run(home, 1, "fail")
    (home / "mda" / "study.py").write_text(SOURCE.replace("-x", "+x"))
    assert run(home, 3)[0][0] == "True 3 False"
