"""What a trace leaves for people, from scores and a corpus in memory."""

import numpy as np
import pytest
from matplotlib.image import imread

from mda import store
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
    corpus: Corpus,
    values: np.ndarray,
    folder,
    dpi: int = 30,
    before: bool = False,
    parts=lambda ids: np.zeros((len(ids), T)),
    by_loss=lambda ids: None,
    elsewhere=None,
) -> dict:
    folder.mkdir()
    losses = np.ones(N, np.float32)
    scores = Scores(np.arange(N), np.arange(N) // 4, values[:, None], ("L1N3",), losses)

    return report_trace(
        corpus, scores, "L1N3", parts, by_loss, folder, 3, dpi, before=before, elsewhere=elsewhere
    )


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


def test_a_trace_says_at_which_positions_its_influence_lies_and_warns_of_a_sink(
    corpus, tmp_path, capsys
):
    def even(ids):
        return np.tile([1.0, -1.0, 1.0, 1.0, 1.0, -1.0], (len(ids), 1))

    def sink(ids):
        return np.tile([-4.0, 1.0, 1.0, 0.0, 0.0, 0.0], (len(ids), 1)) * (ids[:, None] % 2)

    results = reported(corpus, np.arange(float(N)), tmp_path / "even", parts=even)
    assert results["positions"]["bands"] == pytest.approx({"0": 1 / 6, "1-5": 5 / 6})
    assert results["positions"]["warning"] is None and results["positions"]["samples"] == N
    said = capsys.readouterr().out
    assert "absolute influence by position, mean of 40 samples: 0: 17%, 1-5: 83%" in said
    assert "warning" not in said
    results = reported(corpus, np.arange(float(N)), tmp_path / "sink", parts=sink)
    assert results["positions"]["samples"] == N / 2  # the others have none
    assert results["positions"]["share"] == pytest.approx(2 / 3)
    told = store.read_json(tmp_path / "sink" / "top_samples.json")["positions"]
    assert told == results["positions"]
    assert "warning: position 0 has 67% of the absolute influence" in capsys.readouterr().out


def test_samples_are_shaded_by_where_the_unit_acts_and_by_the_loss(corpus, tmp_path):
    def parts(ids):
        return np.outer(ids, [1.0, 0, 0, 0, 0, 0])

    def by_loss(ids):
        return np.outer(ids, [0, 0, 0, 0, 0, 1.0])

    folder = tmp_path / "trace"
    reported(corpus, np.arange(float(N)), folder, parts=parts, by_loss=by_loss)
    page = (folder / "top_samples.html").read_text()
    highest, *_ = store.read_json(folder / "top_samples.json")["samples"]["The 3 highest"]
    assert highest["id"] == N - 1 and highest["by_loss"] == [0, 0, 0, 0, 0, N - 1]
    first, second = page.split("<pre>")[1:3]
    assert first.startswith("<span") and not second.startswith("<span")
    assert second.partition("</pre>")[0].endswith("</span>")  # the loss of predicting the last


def test_a_page_links_to_the_unit_s_page_on_neuronpedia_if_there_is_one(corpus, tmp_path):
    page = "https://www.neuronpedia.org/gpt2-small/8-res-jb/120"
    reported(corpus, np.arange(float(N)), tmp_path / "with", elsewhere=page)
    reported(corpus, np.arange(float(N)), tmp_path / "without")
    link = f'<a href="{page}">L1N3 on Neuronpedia</a>'
    assert link in (tmp_path / "with" / "top_samples.html").read_text("utf-8")
    assert "href" not in (tmp_path / "without" / "top_samples.html").read_text("utf-8")
