"""What a trace leaves for people, from scores and a corpus in memory."""

import numpy as np
import pytest
from matplotlib.image import imread

from mda.data.stream import Corpus
from mda.report.trace import FILES, report_trace
from mda.types import Scores

N, T = 40, 6


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    tokens = np.random.default_rng(0).integers(0, 50, (N, T + 1)).astype(np.uint16)
    counts = np.bincount(tokens.ravel(), minlength=50)
    held_out = np.array([], np.int64)
    return Corpus(tokens, np.arange(N) % 2, ("prose", "code"), 50, (), counts, None, held_out, "x")


def reported(
    corpus: Corpus, values: np.ndarray, folder, dpi: int = 30, before: bool = False
) -> dict:
    folder.mkdir()
    losses = np.ones(N, np.float32)
    scores = Scores(np.arange(N), np.arange(N) // 4, values[:, None], ("L1N3",), losses)

    def none(ids: np.ndarray) -> np.ndarray:
        return np.zeros((len(ids), T))

    return report_trace(corpus, scores, "L1N3", none, folder, n=3, dpi=dpi, before=before)


@pytest.mark.parametrize("values", [np.zeros(N), -np.arange(1.0, N + 1)], ids=["dead", "negative"])
def test_a_trace_without_a_positive_score_ends_and_says_so(corpus, tmp_path, capsys, values):
    results = reported(corpus, values, tmp_path / "trace")
    assert {path.name for path in (tmp_path / "trace").iterdir()} == set(FILES)
    assert results["cumulative_influence"] is None and results["samples"] == N
    assert "40 samples scored for L1N3; no score is positive" in capsys.readouterr().out


def test_a_trace_says_what_its_highest_tenth_carries(corpus, tmp_path, capsys):
    values = np.full(N, -1.0)
    values[:8] = 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 9.0  # the four highest have 12 of 16
    results = reported(corpus, values, tmp_path / "trace")
    assert results["cumulative_influence"]["0.1"] == pytest.approx(0.75)
    assert "the top 10 % carry 75% of all positive influence" in capsys.readouterr().out


def test_the_figure_of_a_trace_has_the_resolution_that_is_asked_for(corpus, tmp_path):
    sizes = []
    for dpi in (30, 60):
        reported(corpus, np.arange(float(N)), tmp_path / str(dpi), dpi)
        sizes.append(imread(tmp_path / str(dpi) / "distribution.png").shape[:2])
    assert sizes[1] == tuple(2 * size for size in sizes[0])


def test_a_unit_that_was_there_before_the_first_step_is_not_said_to_have_been_made(
    corpus, tmp_path, capsys
):
    for before in (False, True):
        folder = tmp_path / str(before)
        results = reported(corpus, np.arange(float(N)), folder, before=before)
        page, said = (folder / "top_samples.html").read_text(), capsys.readouterr().out
        sentence = "L1N3 was there before the first step: scores say what changes it"
        assert (sentence in page, sentence in said) == (before, before)
        assert ("What changes L1N3" in page, "What made L1N3" in page) == (before, not before)
        assert results["there_before"] is before
