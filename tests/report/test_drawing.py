"""Figures: what a stranger wrote into a label reaches no terminal."""

import warnings

import pytest

from mda.report.drawing import plt, save_figure


@pytest.mark.parametrize("layout", [None, "constrained"])
def test_no_command_to_the_terminal_is_in_what_matplotlib_warns_of(tmp_path, layout):
    figure, ax = plt.subplots(layout=layout)
    ax.plot([0, 1], label="kind \x1b[31m\x07")
    ax.legend()
    ax.set(xlabel="\x1b]0;title\x07", title="plain")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        save_figure(figure, tmp_path / "figure.png", 30)
    assert not any("\x1b" in str(one.message) or "\x07" in str(one.message) for one in warned)
    assert ax.get_xlabel() == "?]0;title?" and ax.get_title() == "plain"
    assert (tmp_path / "figure.png").exists()
