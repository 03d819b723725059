"""What explains influence: against correlations of residuals, and on causes that were planted."""

import numpy as np
import pytest
from made_up_traces import write_trace
from scipy import stats

from mda import store
from mda.analysis.catalysts import catalysts
from mda.report.catalysts import catalyst_rows
from mda.report.samples import read_samples

N = 800
LABELS = [("code", "xml", "prose")[i % 3] for i in range(N)]


def made_up(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, repetition, losses that all hang together, and with the labels."""
    rng = np.random.default_rng(seed)
    label = np.array([{"code": 0.0, "xml": 1.0, "prose": -1.0}[name] for name in LABELS])
    repetition = rng.gamma(2, size=N) + label
    losses = 4 - 0.5 * repetition + rng.normal(size=N)
    scores = repetition - 0.4 * losses + 0.5 * label + rng.standard_t(3, size=N)
    return scores, repetition, losses


def from_correlations(matrix: np.ndarray, i: int, j: int) -> float:
    """Partial correlation of two variables, all others held, by the inverse correlation matrix."""
    inverse = np.linalg.inv(matrix)
    return float(-inverse[i, j] / np.sqrt(inverse[i, i] * inverse[j, j]))


def test_partial_correlations_are_those_of_the_inverse_correlation_matrix():
    scores, repetition, losses = made_up()
    found = catalysts(scores, repetition, losses, LABELS)
    ranks = [stats.rankdata(x) for x in (scores, repetition, losses)]
    ones = [[name == one for name in LABELS] for one in ("code", "xml")]
    matrix = np.corrcoef(np.array([*ranks, *ones], dtype=float))
    causes = {one.name: one.partial for one in found.causes}
    assert causes["repetition"] == pytest.approx(from_correlations(matrix, 0, 1), abs=1e-10)
    assert causes["loss"] == pytest.approx(from_correlations(matrix, 0, 2), abs=1e-10)
    inverse, fewer = np.linalg.inv(matrix), np.linalg.inv(matrix[:3, :3])
    assert found.together == pytest.approx(1 - 1 / inverse[0, 0], abs=1e-10)
    label = np.sqrt(1 - fewer[0, 0] / inverse[0, 0])
    assert causes["label"] == pytest.approx(label, abs=1e-10)


def test_without_labels_it_is_the_textbook_formula_of_three_rank_correlations():
    scores, repetition, losses = made_up(1)
    found = catalysts(scores, repetition, losses, ["one"] * N)
    r = stats.spearmanr(np.array([scores, repetition, losses]).T).statistic
    partial = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    assert [one.name for one in found.causes] == ["repetition", "loss"]
    assert found.causes[0].partial == pytest.approx(partial, abs=1e-10)
    assert found.causes[0].alone == pytest.approx(r[0, 1] ** 2, abs=1e-10)


def test_a_cause_that_works_through_another_one_has_no_partial_correlation():
    rng = np.random.default_rng(0)
    repetition = rng.normal(size=20_000)
    losses = -repetition + 0.5 * rng.normal(size=20_000)
    scores = repetition + 0.5 * rng.normal(size=20_000)
    found = {one.name: one for one in catalysts(scores, repetition, losses, ["a"] * 20_000).causes}
    loss, repeats = found["loss"], found["repetition"]
    assert loss.partial is not None and repeats.partial is not None
    assert loss.alone > 0.5 and abs(loss.partial) < 0.05 and repeats.partial > 0.6


def test_what_is_unknown_or_the_same_for_all_is_left_out():
    scores, repetition, losses = made_up()
    unknown = catalysts(scores, repetition, np.full(N, np.nan), ["one"] * N)
    assert [one.name for one in unknown.causes] == ["repetition"]
    assert all(one.loss is None for one in unknown.deciles)
    nothing = catalysts(scores, np.zeros(N), np.full(N, np.nan), ["one"] * N)
    assert (nothing.causes, nothing.together) == ((), 0.0)
    itself = catalysts(repetition, repetition, losses, LABELS)
    assert itself.together == pytest.approx(1) and itself.causes[1].partial is None


def test_deciles_go_from_the_lowest_scores_to_the_highest():
    scores, repetition, losses = made_up()
    found = catalysts(scores, repetition, losses, LABELS).deciles
    means = [part.mean() for part in np.array_split(np.sort(scores), 10)]
    assert [one.score for one in found] == pytest.approx(means)
    assert found[-1].label == "xml" and found[-1].share > found[-1].share_all > 0.3
    assert found[-1].repetition > found[0].repetition
    with pytest.raises(ValueError, match="3 samples"):
        catalysts(scores[:3], repetition[:3], losses[:3], LABELS[:3])


def test_a_class_of_one_sample_never_stands_for_a_decile():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=1000)
    labels = np.where(rng.random(1000) < 0.3, "code", "prose").astype(object)
    labels[np.argsort(scores)[-100:]] = "code"
    labels[rng.choice(1000, 20, replace=False)] = [f"rare {i}" for i in range(20)]
    found = catalysts(scores, scores, np.full(1000, np.nan), labels.tolist()).deciles
    assert found[-1].label == "code"
    assert not any(one.label.startswith("rare") for one in found)


def test_the_page_has_the_numbers_of_each_trace_that_knows_them(tmp_path):
    with_them, without = write_trace(tmp_path / "a", n=2), write_trace(tmp_path / "b", n=2, seed=1)
    (without / "catalysts.json").unlink()
    (row,) = catalyst_rows([read_samples(with_them), read_samples(without)], tmp_path / "report")
    kept = store.read_json(with_them / "catalysts.json")
    assert row["together"] == f"{kept['together']:.2f}" and row["name"] == "L2H0, ekfac, seed 0"
    assert row["file"] == "../a/catalysts.json"
    assert max(one["repetition_bar"] for one in row["deciles"]) == 92
    assert [one["score"] for one in row["deciles"]] == [one["score"] for one in kept["deciles"]]
