"""The results in sweeps/results come out of the curves beside them, and the README quotes them."""

from pathlib import Path

import pytest

from mda import store
from mda.config import compose
from mda.analysis.claims import Claim
from mda.report.compare import CompareSettings, compare
from mda.report.page import number, p_value

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "sweeps" / "results" / "causal_grid"
ARMS = (
    "remove mask ekfac top 10 %",
    "remove mask tracin top 10 %",
    "remove mask random, as ekfac top 10 % by label",
    "remove mask random 10 %",
    "augment duplicate ekfac top 10 %",
    "augment duplicate tracin top 10 %",
    "augment duplicate random 10 %",
)
SHOWN = ("unit", "onset_step", "copy_gain", "icl_score")


def readme_rows() -> list[str]:
    """The README's table of results, as effects.csv says it."""
    effects = {(row["arm"], row["reference"], row["metric"]): row
               for row in store.read_csv(RESULTS / "effects.csv")}  # fmt: skip
    lines = []
    for arm in ARMS:
        for reference in ("control", "random", "matched"):
            if (arm, reference, "unit") not in effects:
                continue  # random edits are compared with control only
            cells = [_cell(effects[arm, reference, metric]) for metric in SHOWN]
            lines.append(f"| {arm} | {reference} | {' | '.join(cells)} |")
    return lines


def claim_rows() -> list[str]:
    """The README's table of verdicts, as verdicts.csv says it."""
    return [
        f"| {row['text']} | {_mean(row, 'mean', 'low', 'high')} | "
        f"{p_value(_float(row['p_holm']))} | **{row['verdict']}** |"
        for row in store.read_csv(RESULTS / "verdicts.csv")
    ]


def _float(text: str) -> float | None:
    return float(text) if text else None


def _mean(row: dict[str, str], *names: str) -> str:
    mean, low, high = (number(_float(row[name])) for name in names)
    return f"{mean} [{low}, {high}]"


def _cell(row: dict[str, str]) -> str:
    return f"{_mean(row, 'difference', 'ci_low', 'ci_high')} p {p_value(_float(row['p_holm']))}"


@pytest.mark.parametrize("line", [*readme_rows(), *claim_rows()])
def test_the_readme_quotes_the_results(line):
    assert line in (ROOT / "README.md").read_text("utf-8").splitlines()


def test_the_results_are_recomputed_from_the_curves(tmp_path):
    report = compose().report
    settings = CompareSettings(
        claims=tuple(Claim(name, **vars(claim)) for name, claim in report.claims.items()),
        confidence=report.confidence,
        resamples=report.resamples,
        dpi=30,
    )
    compare([RESULTS / "runs"], tmp_path, settings)
    for table in ("effects.csv", "verdicts.csv", "null.csv"):
        now, then = store.read_csv(tmp_path / table), store.read_csv(RESULTS / table)
        assert len(now) == len(then)
        for a, b in zip(now, then, strict=True):
            assert a.keys() == b.keys()
            for key in a:
                assert a[key] == b[key] or float(a[key]) == pytest.approx(float(b[key])), key


if __name__ == "__main__":
    print(*readme_rows(), "", *claim_rows(), sep="\n")
