"""The wheel gives the library, the command and the configuration, away from the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIGURATION = """
from pathlib import Path
import mda
from mda.config import compose, conf_dir
config = compose(["model=pythia-14m"])
assert conf_dir() == Path(mda.__file__).parent / "conf", conf_dir()
print(mda.__file__, config.model.d_model, config.data.name)
"""
LIBRARY = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
import mda
sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 64}
model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=2))
rows = torch.randint(64, (12, 17), generator=torch.Generator().manual_seed(0))
heads = mda.locate(model, "induction_head")
found = mda.influence(model, rows, heads.strongest, estimator="tracin")
print(len(found.scores), len(mda.remove(found.top(3))))
"""


def run(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def borrowed(python: Path, wheel: Path) -> None:
    """Installs the wheel alone; what it depends on is taken from here."""
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    # A .pth inside a borrowed folder (the editable install of the checkout) is not followed.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    run(*pip, "--quiet", wheel, cwd=wheel.parent)


def declared(python: Path, wheel: Path) -> None:
    """Installs the wheel with all that it declares, and nothing else."""
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    run(*pip, "-c", ROOT / "constraints.txt", wheel, cwd=wheel.parent)


@pytest.mark.parametrize(
    "install, program",
    [(borrowed, "train"), pytest.param(declared, "run", marks=pytest.mark.long)],
)
def test_a_wheel_in_an_empty_environment_gives_library_command_and_the_smoke_run(
    install, program, tmp_path
):
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=ROOT)
    (wheel,) = tmp_path.glob("mechanistic_data_attribution-*.whl")
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    install(python, wheel)
    out = run(python, "-c", CONFIGURATION, cwd=tmp_path).split()
    assert Path(out[0]).is_relative_to(tmp_path / "venv")
    assert out[1:] == ["128", "embedded"]
    assert run(python, "-c", LIBRARY, cwd=tmp_path).split() == ["12", "3"]
    mda = tmp_path / "venv" / "bin" / "mda"
    assert "store" in run(mda, "--help", cwd=tmp_path)
    planned = run(mda, "plan", "sweeps=smoke", cwd=tmp_path)
    assert "24 jobs; to build: 1 corpus, 4 base, 20 arm, 20 capabilities, 8 scores." in planned
    folder = run(mda, program, "experiment=smoke", "report.dpi=30", cwd=tmp_path).splitlines()[-1]
    assert (tmp_path / folder / "summary.json").is_file()
    assert Path(folder).parent == tmp_path / "outputs" / "runs" / program
