"""The kept results of studies as one Markdown page, every number of it out of their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from mda import store
from mda.analysis.arms import arm_as
from mda.report.page import DASH, number, p_value, percent
from mda.schema import REFERENCES, StudyConfig

KEPT = (
    "effects.csv",
    "verdicts.csv",
    "null.csv",
    "curves.png",
    "forest.png",
    "icl.png",
    "dose.png",
)
SHOWN = {
    "unit": "score of the unit",
    "onset_step": "onset, steps",
    "copy_gain": "gain on second copy, nats",
    "icl_score": "ICL score, nats",
}
ONSET = "onset_step"
CENSORED = {  # of the arm, of its reference
    (True, False): "some runs of the arm never reach the threshold, the delay is a lower bound",
    (False, True): "some runs of the reference never reach it, the delay is an upper bound",
    (True, True): "some runs of either never reach it, the delay is no bound",
}  # fmt: skip
Row = Mapping[str, str]


def results_page(studies: Mapping[Path, tuple[StudyConfig, str]], confidence: float) -> str:
    """The page of all studies: folder -> its study and the sentence of its comparison.

    `confidence` is the level of the intervals in their tables.
    """
    lines = [
        "# Results",
        "",
        "Made by `python experiments/results.py` from the curves that lie here; do not edit. The",
        "comparison of one study alone:",
        "`python experiments/compare.py study=<name> report.runs=[sweeps/results/<name>]`.",
        "",
    ]
    for folder, (study, sentence) in studies.items():
        lines += _study(folder, study, sentence, confidence)
    return "\n".join(lines)


def study_of(folder: Path) -> str:
    """Name of the study that a kept folder is of: of `scales-nano`, one size's, it is `scales`."""
    return folder.name.partition("-")[0]


def _study(folder: Path, study: StudyConfig, sentence: str, confidence: float) -> list[str]:
    effects, verdicts, null = (store.read_csv(folder / f"{name}.csv")
                               for name in ("effects", "verdicts", "null"))  # fmt: skip
    level = percent(confidence)
    whole = [row for row in effects if " band " not in row["arm"]]
    kind = (
        "The claims were formed on these seeds: all verdicts are exploratory."
        if study.exploratory
        else "A claim is registered if it was written down before its arm was first run, and its "
        "verdict interim while seeds are missing."
    )
    lines = [
        f"## {folder.name}",
        "",
        f"Written down {study.date}, hash `{study.hash}`, seeds "
        f"{', '.join(map(str, study.seeds))}. {kind}",
        "",
        f"{sentence}",
        "",
        f"![Emergence in every arm]({folder.name}/curves.png)",
        "",
        "Every arm is compared with:",
        "",
        *(f"- **{name}**{_run(whole, name)}: {what}." for name, what in REFERENCES.items()),
        "",
        f"Mean differences at the window's end with {level} bootstrap interval (too narrow "
        "with few",
        "seeds); p is two-sided, from permuting labels within each seed, corrected by Holm over",
        "the study's arms of the same reference and metric. With † the runs are as far apart as a",
        "test of so many can tell, so that p is the least that they could have.",
        "",
        *_effect_table(whole),
        "",
        "### Verdicts",
        "",
        "One-sided p for the claim, and against an effect of the claimed size, corrected by Holm",
        "over the claims of a family, tested or not. Random edits may move a metric too: below a",
        "difference to the control stands the difference to them.",
        "",
        *_verdict_table(verdicts, effects),
        "",
    ]
    for (arm, reference), what in CENSORED.items():
        rows = [row for row in whole if row["metric"] == ONSET]
        found = [row for row in rows if (row["censored"] != "0") == arm
                 and (row["reference_censored"] != "0") == reference]  # fmt: skip
        if names := "; ".join(f"{row['arm']} against {row['reference']}" for row in found):
            lines += [f"Where {what}: {names}.", ""]
    if left_out := sorted({row["dropped"] for row in verdicts
                           if row["dropped"]}):  # fmt: skip
        lines += [f"Left out of the verdicts: {'; '.join(left_out)}.", ""]
    return [*lines, *_null(null), *_dose(folder, effects)]


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
            said = _interval(row, "difference", "ci_low", "ci_high")
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
    return lines + baseline_claims(folder, study)


def baseline_claims(folder: Path, study: StudyConfig, about: str = "") -> list[str]:
    """The claims of a study on the baseline that influence must beat, and what became of them."""
    baseline = {claim.text for claim in study.claims.values() if claim.reference == "repetition"}
    return [
        f"- {about}{row['text'].removesuffix('.')}: **{row['verdict']}** ({row['status']}; "
        f"{row['reason']})."
        for row in store.read_csv(folder / "verdicts.csv")
        if row["text"] in baseline
    ]


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


def _run(rows: Sequence[Row], reference: str) -> str:
    return "" if any(row["reference"] == reference for row in rows) else " (not run)"


def _effect_table(rows: Sequence[Row]) -> list[str]:
    known = {(row["arm"], row["reference"], row["metric"]): row for row in rows}
    lines = [f"| arm | against | seeds | {' | '.join(SHOWN.values())} |", "|---" * 7 + "|"]
    for arm, reference in dict.fromkeys((row["arm"], row["reference"]) for row in rows):
        own = [known[arm, reference, metric] for metric in SHOWN]
        cells = [
            f"{_interval(row, 'difference', 'ci_low', 'ci_high')} p {_p(row['p_holm'])}"
            + "†" * (row["at_least_p"] == "True")
            for row in own
        ]
        lines.append(f"| {arm} | {reference} | {own[0]['n']} | {' | '.join(cells)} |")
    return lines


def _verdict_table(rows: Sequence[Row], effects: Sequence[Row]) -> list[str]:
    lines = [
        "| claim | effect | claimed | p for | p against | family | verdict | |",
        "|---" * 8 + "|",
    ]
    against_random = {
        (row["arm"], row["metric"]): row for row in effects if row["reference"] == "random"
    }
    for row in rows:
        size = max(float(row["expected"]), float(row["margin"]))
        claimed = f"{'within ±' if row['direction'] == 'none' else ''}{size:g}" if size else DASH
        effect = _interval(row, "mean", "low", "high")
        other = against_random.get((row["arm"], row["metric"]))
        if row["reference"] == "control" and other and other["ci_low"]:
            effect += f"<br>against random {_interval(other, 'difference', 'ci_low', 'ci_high')}"
        lines.append(
            f"| {row['text']} | {effect} | {claimed} | {_p(row['p_holm'])} | "
            f"{_p(row['against_holm'])} | {row['family']} ({row['family_size']}) | "
            f"**{row['verdict']}** | {row['status']} |"
        )
    return lines


def _null(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    differ = [row for row in rows if row["differs"] == "True"]
    said = "none is said to differ" if not differ else f"{len(differ)} are said to differ"
    lowest = min(rows, key=lambda row: float(row["p_holm"]))
    return [
        "### Random against random",
        "",
        f"Each random edit against the others of its seed: of {len(rows)} comparisons {said}; the "
        f"smallest corrected p is {_p(lowest['p_holm'])} (replicate {lowest['replicate']} of "
        f"{lowest['arm']}, {lowest['metric']}).",
        "",
    ]


def _dose(folder: Path, effects: Sequence[Row]) -> list[str]:
    bands = [
        row
        for row in effects
        if " band " in row["arm"] and (row["reference"], row["metric"]) == ("control", "unit")
    ]
    if len(bands) < 2:
        return []
    bands.sort(key=lambda row: float(row["arm"].split(" band ")[1].partition("-")[0]))
    values = [float(row["difference"]) for row in bands]
    falls = sum(b < a for a, b in pairwise(values))
    return [
        "### Dose-response",
        "",
        f"Each band of scores edited alone, mean over {bands[0]['n']} seeds, against control: from "
        f"{number(values[0])} for the lowest scores to {number(values[-1])} for the highest; from "
        f"one band to the next the mean falls {falls} times of {len(values) - 1}.",
        "",
        f"![Effect of each band]({folder.name}/dose.png)",
        "",
    ]


def _float(text: str) -> float | None:
    return float(text) if text else None


def _p(text: str) -> str:
    return p_value(_float(text))


def _interval(row: Row, *names: str) -> str:
    mean, low, high = (number(_float(row[name])) for name in names)
    return f"{mean} [{low}, {high}]"
