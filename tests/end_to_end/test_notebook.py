"""The notebook's cells run as they stand, in order."""

import json
from pathlib import Path

import numpy as np
import pytest

NOTEBOOK = Path(__file__).parents[2] / "experiments" / "notebooks" / "trace_a_head.ipynb"


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the cells have left in their names, and how many figures they have shown."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    left: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("notebook"))
        for cell in code:
            exec(compile(cell, str(NOTEBOOK), "exec"), left)
    left["figures"] = len(plt.get_fignums())
    plt.close("all")
    return left


def test_it_scores_the_window_and_draws_one_picture(names):
    assert names["figures"] == 1
    left, right = names["figure"].axes
    assert len(left.lines[0].get_xdata()) == 7  # steps 0, 10, ..., 60
    counted = sum(bar.get_height() for bar in right.patches)
    assert counted == len(names["scores"].sample_ids) == 20 * 4


def test_a_sample_s_token_influences_add_up_to_its_score(names):
    scores = names["scores"].of(names["unit"])
    highest = np.sort(scores)[::-1][:3]
    np.testing.assert_allclose(names["influence"].sum(1), highest, rtol=1e-4)


def test_its_control_repeats_the_base_run_and_its_edit_does_not(names):
    (base,) = [row for row in names["found"].unit.curve if row["step"] == 40]
    assert names["ends"]["control"] == base[names["name"]]
    assert names["ends"]["remove"] != base[names["name"]]
