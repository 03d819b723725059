"""The wheel carries the configuration: it works away from the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_in_a_fresh_environment_has_configuration_sweeps_and_programs(tmp_path):
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=ROOT)
    (wheel,) = tmp_path.glob("mechanistic_data_attribution-*.whl")
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    # Dependencies are borrowed from here; a .pth inside a borrowed folder (the editable install
    # of the checkout) is not followed.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    run(*pip, "--quiet", wheel, cwd=tmp_path)
    code = """
from pathlib import Path
import mda
from mda.config import compose, conf_dir
config = compose(["model=pythia-14m"])
assert conf_dir() == Path(mda.__file__).parent / "conf", conf_dir()
print(mda.__file__, config.model.d_model, config.data.name)
"""
    out = run(python, "-c", code, cwd=tmp_path).split()
    assert Path(out[0]).is_relative_to(site)
    assert out[1:] == ["128", "embedded"]
    mda = tmp_path / "venv" / "bin" / "mda"
    assert "store" in run(mda, "--help", cwd=tmp_path)
    planned = run(mda, "plan", "sweeps=smoke", cwd=tmp_path)
    assert "24 jobs; to build: 1 corpus, 4 base, 20 arm, 20 capabilities, 8 scores." in planned
    trained = run(mda, "train", "experiment=smoke", "report.dpi=30", cwd=tmp_path).splitlines()
    assert (tmp_path / trained[-1] / "summary.json").is_file()
    assert Path(trained[-1]).parent == tmp_path / "outputs" / "runs" / "train"
