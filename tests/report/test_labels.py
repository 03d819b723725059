"""Labels may be any text: shown as it is, never read as markup or passed on as a command."""

import numpy as np
import pytest
from made_up_runs import STANDARD, write_runs
from test_arms import change

from mda.report.compare import compare
from mda.report.trace import decile_enrichment, print_enrichment
from mda.schema import ConfigError, ReportConfig, StudyConfig

WILD, SEEN = "[/red] $x^$ \x1b[31m", "[/red] $x^$ ?[31m"


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_a_finished_trace_prints_them(capsys):
    scores = np.random.default_rng(0).normal(size=100)
    print_enrichment(decile_enrichment(scores, [WILD, "code"] * 50))
    out = capsys.readouterr().out
    assert SEEN in out and "\x1b" not in out


def test_a_comparison_draws_and_prints_arms_that_are_named_after_them(tmp_path, capsys):
    for folder in write_runs(tmp_path / "runs", [0, 1], STANDARD[:2]):
        if "control" not in folder.name:
            change(folder, edit={"label": WILD})
    compare(
        [tmp_path / "runs"], tmp_path / "out", StudyConfig(), ReportConfig(resamples=99, dpi=30)
    )
    out = capsys.readouterr().out
    assert SEEN in out and "\x1b" not in out
    assert (tmp_path / "out" / "curves.png").exists()


def test_an_error_that_names_them_speaks_to_no_terminal():
    assert str(ConfigError(f"there are {WILD}")) == f"there are {SEEN}"
