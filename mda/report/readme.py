"""What the main README says of results, every number of it out of the tables that are kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mda import store
from mda.analysis.arms import arm_as
from mda.report.page import DASH, percent
from mda.report.results import interval
from mda.schema import StudyConfig


def study_table(folder: Path, study: StudyConfig, confidence: float) -> list[str]:
    """A study in short, for the README: each choice of samples, and the claims on the baseline."""
    effects, level = store.read_csv(folder / "effects.csv"), percent(confidence)
    edits = {"remove": "removed", "augment": "trained on twice"}
    against_control = {row["arm"]: row for row in effects
                       if (row["reference"], row["metric"]) == ("control", "unit")}  # fmt: skip
    n_seeds = len({seed for row in effects for seed in row["seeds"].split()})
    cells: dict[str, dict[str, str]] = {}  # choice of samples -> edit -> what it did
    for arm in map(arm_as, study.arms.values()):
        if arm.intervention in edits and (row := against_control.get(arm.name)):
            choice = replace(arm, intervention="", mode="").name
            said = interval(row, "difference", "ci_low", "ci_high")
            fewer = "" if int(row["n"]) == n_seeds else f", {row['n']} seeds"
            cells.setdefault(choice, {})[arm.intervention] = said + fewer
    lines = [
        f"`{study.name}`, {n_seeds} of {len(study.seeds)} seeds: what an edit adds to the score "
        f"of the unit at the window's end, with a {level} bootstrap interval (narrow for few "
        "seeds).",
        "",
        f"| samples | {' | '.join(edits.values())} |",
        "|---" * (1 + len(edits)) + "|",
        *(
            f"| {choice} | {' | '.join(found.get(edit, DASH) for edit in edits)} |"
            for choice, found in cells.items()
        ),
        "",
    ]
    claims = baseline_claims(folder, study)
    about = ["Its claims on the baseline; all others are on the page of results:", ""]
    return lines + (about + claims if claims else [])


def baseline_claims(folder: Path, study: StudyConfig, about: str = "") -> list[str]:
    """The claims of a study on the baseline that influence must beat, and what became of them."""
    names = [name for name, claim in study.claims.items() if claim.reference == "repetition"]
    return verdict_lines(folder, study, names, about)


def verdict_lines(
    folder: Path, study: StudyConfig, names: Collection[str], about: str = ""
) -> list[str]:
    """Claims of a study by their names, and what became of each."""
    texts = {study.claims[name].text for name in names}
    return [
        f"- {about}{row['text'].removesuffix('.')}: **{row['verdict']}** ({row['status']}; "
        f"{row['reason']})."
        for row in store.read_csv(folder / "verdicts.csv")
        if row["text"] in texts
    ]


def arms_table(folder: Path, confidence: float) -> list[str]:
    """What each edit of a study adds to the unit, against control and against random edits."""
    against = ("control", "random")
    rows = {(row["arm"], row["reference"]): row for row in store.read_csv(folder / "effects.csv")
            if row["metric"] == "unit" and row["reference"] in against}  # fmt: skip
    heads = (f"against {one}, {percent(confidence)} interval" for one in against)
    lines = [f"| edit | seeds | {' | '.join(heads)} |", "|---" * 4 + "|"]
    for arm in dict.fromkeys(arm for arm, _ in rows):
        found = [rows.get((arm, one)) for one in against]
        cells = (interval(row, "difference", "ci_low", "ci_high") for row in found)
        lines.append(f"| {arm} | {rows[arm, 'control']['n']} | {' | '.join(cells)} |")
    return lines


def claims_by_size(sizes: Mapping[str, Path]) -> list[str]:
    """What became of every claim of a study at each size, with the p-value that decided it."""
    lines = [f"| claim | {' | '.join(sizes)} |", "|---" * (1 + len(sizes)) + "|"]
    found = {(row["text"], size): row for size, folder in sizes.items()
             for row in store.read_csv(folder / "verdicts.csv")}  # fmt: skip
    for text in dict.fromkeys(text for text, _ in found):
        cells = (_verdict(found.get((text, size))) for size in sizes)
        lines.append(f"| {text.removesuffix('.')} | {' | '.join(cells)} |")
    return lines


def _verdict(row: Mapping[str, str] | None) -> str:
    if row is None:
        return DASH
    against = row["verdict"] == "not replicated"
    p = row["against_holm" if against else "p_holm"]
    said = f", p = {float(p):.2g}{' against it' if against else ''}" if p else ""
    return f"{row['verdict']}{said} ({row['status']})"


def fill(text: str, place: str, lines: Sequence[str]) -> str:
    """A page with these lines in a place of it. Raises ValueError for a page without the place.

    The place stands between the comments `<!-- place -->` and `<!-- end of place -->`.
    """
    start, end = f"<!-- {place} -->", f"<!-- end of {place} -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"no place for this in the page: it has to have {start} and {end}")
    return "\n".join([before + start, *lines, end + after])
