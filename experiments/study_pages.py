"""The page sweeps/results/README.md, made from the tables of the studies alone.

`experiments/results.py` writes it. It begins with the findings of the main README.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from mda import store
from mda.analysis.bearing import ABLE
from mda.analysis.claims import REFUTED, SMALLER
from mda.report.page import DASH, markdown, number, p_value, percent
from mda.schema import REFERENCES, StudyConfig
from mda.schema.old_words import metric_now, verdict_now

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
CONTROLS = {  # rows on the control below the arms: part of the metric's name, words
    "": "control itself",
    "/top_heads": "control without its strongest heads, change",
    "/random_heads": "control without as many others, change",
}
CENSORED = {  # of the arm, of its reference
    (True, False): "some runs of the arm never reach the threshold, the delay is a lower bound",
    (False, True): "some runs of the reference never reach it, the delay is an upper bound",
    (True, True): "some runs of either never reach it, the delay is no bound",
}  # fmt: skip
ABOUT_TABLES = """\
The first table of a study has mean differences at the window's end with their {percent} bootstrap
interval, which is too narrow with few seeds. Its p-values are two-sided, from permuting labels
within each seed, and corrected by Holm over the study's arms with the same reference and metric. A
† marks runs that are as far apart as a test of so few seeds can tell: p is then the smallest value
it can have, which may be above .05 whatever the effect.

The second table has the verdicts: a one-sided p for the claim, and one against an effect of the
claimed size, both corrected by Holm over all claims of the family, tested or not. A claim is
**supported** if the data show it, **refuted** if they show the reverse, and **ruled out at this
size** if they exclude an effect as large as the one claimed; otherwise it is **undecided**. Random
edits may move a metric too, so the difference to them stands below the difference to the control.

The last table has the model's capabilities: how much edits change them, and below that how much
they change when the control's strongest heads, or as many others, are mean-ablated; all in nats.
Real text is held-out text that was not generated. The ICL score of the first table is measured on
all held-out text. A lower ICL score means that the model learns more from the context."""
NOTES = {  # folder -> what its runs did otherwise than the same words do now
    "tokens": """\
In the two arms that replace spans of random samples, the new tokens were drawn from the same
random numbers as the scores that chose the samples, so they depend on them. They are now drawn
separately.""",
}
FINDINGS = ("## What we found\n\n", "\n## ")  # where they begin in the main README, and end
LIMITS = """\
## Limits

- **Models.** 4 layers, widths 64, 96 and 128, a vocabulary of 512, contexts of 128 tokens,
  trained from scratch for 6,000 steps or fewer. Nothing here is a result on a published model.
- **Corpus.** 32 % of the samples are generated documents, most of which repeat themselves by
  construction. EK-FAC's top 10 % for the induction head is 77 % generated repeats (24 % of the
  window). Real HTML, XML and LaTeX are 10 to 30 times rarer in it than in the window, while
  generated XML and LaTeX are about two to four times as frequent.
- **Seeds.** Every seed has its own initial weights and data order. The arms of a seed share both,
  so the tests are paired. Only the transfer column of the [leaderboard](truth/README.md) retrains
  from other initial weights.
- **Random edits are not neutral.** Removing a random 10 % weakens the induction head by
  about 3 %.
- **Motifs of random samples.** Three comparisons ask whether rows made from motifs need influence
  at all. All three are undecided: none shows an advantage, and none shows that there is none.
- **unrolled.** The scores of a single trajectory have a reliability of 0.2 to 0.45, and its top
  samples cluster in a few hundred steps. One ranking by `unrolled` is one draw.
- **The head that attends two tokens back.** Its threshold was lowered after its base runs had
  been seen, but before any of its arms.
- **Heads compared by absolute scores.** The claim "Removal lowers the other induction heads more
  than heads that are none" compares heads with high scores with heads at 0.005, so it could hardly
  fail.
- **Tests.** Permutation p-values test the sharp null hypothesis that the edit changes no seed's
  outcome. For the weaker hypothesis of a zero mean effect they can be too small where effects are
  skewed."""
Row = Mapping[str, str]
OLD_BAND = re.compile(r" band ([\d.]+)-([\d.]+)")


def effects_of(folder: Path) -> list[dict[str, str]]:
    """Returns the rows of a folder's effects.csv, in today's words.

    Older tables call the largest value over all heads `mechanism`, and have the band of scores in
    the arm's name alone.
    """
    rows = store.read_csv(folder / "effects.csv")
    for row in rows:
        old, name = row["metric"], metric_now(row["metric"])
        row |= {"metric": name, "dropped": row["dropped"].replace(f"{old} is", f"{name} is")}
        if "line" not in row:
            band = OLD_BAND.search(row["arm"])
            row["line"] = OLD_BAND.sub("", row["arm"]) if band else ""
            row["band_low"], row["band_high"] = band.groups() if band else ("", "")
    return rows


def verdicts_of(folder: Path) -> list[dict[str, str]]:
    """Returns the rows of a folder's verdicts.csv, in today's words."""
    rows = store.read_csv(folder / "verdicts.csv")
    return [
        row | {"verdict": verdict_now(row), "metric": metric_now(row["metric"])} for row in rows
    ]


def findings(readme: str) -> list[str]:
    """Returns the findings of the main README, with links relative to sweeps/results."""
    text = readme.partition(FINDINGS[0])[2].partition(FINDINGS[1])[0]
    if not text:
        raise ValueError("README.md has no section 'What we found'")
    text = text.replace("(sweeps/results/README.md#", "(#").replace("(sweeps/results/", "(")
    body, _, _about_this_page = text.strip().rpartition("\n\n")
    return ["## What we found", "", *body.split("\n")]


def results_page(
    studies: Mapping[Path, tuple[StudyConfig, str]], confidence: float, readme: str
) -> str:
    """Returns the page of all studies, from each folder's study and headline.

    `confidence` is the level of the intervals in their tables, `readme` the main README's text.
    """
    lines = [
        "# Results",
        "",
        *findings(readme),
        "",
        *LIMITS.split("\n"),
        "",
        "## How to read the tables",
        "",
        "`python experiments/results.py` makes this page from the curves beside it; do not edit.",
        "To compare the arms of one study:",
        "`mda compare study=<name> 'report.runs=[sweeps/results/<name>]'`.",
        "",
        "Every arm is compared with:",
        "",
        *(f"- **{name}**: {what}." for name, what in REFERENCES.items()),
        "",
        *ABOUT_TABLES.format(percent=percent(confidence)).split("\n"),
        "",
    ]
    for folder, (study, sentence) in studies.items():
        sizes = {one.name.partition("-")[2]: one for one in studies if study_of(one) == study.name}
        if "" not in sizes and folder == next(iter(sizes.values())):
            lines += [f"## {study.name}, all sizes", "", *sizes_table(sizes), ""]
            lines += [*claims_by_size(sizes), ""]
        lines += _study(folder, study, sentence)
    return "\n".join(lines)


def study_of(folder: Path) -> str:
    """Returns the study of a kept folder: of `scales-nano`, one size's, it is `scales`."""
    return folder.name.partition("-")[0]


def sizes_table(sizes: Mapping[str, Path]) -> list[str]:
    """Returns the unit's score without and with each edit, for each size's folder of kept tables.

    The last column is the edit's delay of the onset in steps.
    """
    heads = ("arm", "model", "seeds", "without", "with", "difference", "corrected p",
             "delay, steps")  # fmt: skip
    lines = []
    effects = {size: effects_of(folder) for size, folder in sizes.items()}
    found = {(row["arm"], size, row["metric"]): row for size, rows in effects.items()
             for row in rows if row["reference"] == "control"}  # fmt: skip
    for arm in dict.fromkeys(arm for arm, _, metric in found if metric == "unit"):
        for size in (size for size in sizes if (arm, size, "unit") in found):
            row = found[arm, size, "unit"]
            means = (number(_float(row[name])) for name in ("reference_mean", "arm_mean"))
            delay = change(found.get((arm, size, ONSET)))
            lines.append((arm, size, row["n"], *means, change(row), p_of(row["p_holm"]), delay))
    return markdown(heads, lines)


def _study(folder: Path, study: StudyConfig, sentence: str) -> list[str]:
    verdicts, null = verdicts_of(folder), store.read_csv(folder / "null.csv")
    effects = effects_of(folder)
    whole = [row for row in effects if not row["line"]]
    kind = (
        "The claims were formed on these seeds: all verdicts are exploratory."
        if study.exploratory
        else "A claim is registered if it was written down before its arm was first run; its "
        "verdict is interim while seeds are missing."
    )
    compared = dict.fromkeys(row["reference"] for row in whole)
    lines = [
        f"## {folder.name}",
        "",
        f"Written down {study.date}, hash `{study.hash}`, seeds "
        f"{', '.join(map(str, study.seeds))}. {kind}",
        "",
        f"{sentence}",
        "",
        *([*NOTES[folder.name].split("\n"), ""] if folder.name in NOTES else []),
        f"![Emergence in every arm]({folder.name}/curves.png)",
        "",
        *([f"Compared with: {', '.join(compared)}.", ""] if compared else []),
        *_effect_table(whole),
        "",
        "### Verdicts",
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
    return [*lines, *_capabilities(whole), *_null(null), *_dose(folder, effects)]


def _effect_table(rows: Sequence[Row]) -> list[str]:
    known = {(row["arm"], row["reference"], row["metric"]): row for row in rows}
    lines = []
    for arm, reference in dict.fromkeys((row["arm"], row["reference"]) for row in rows):
        own = [known[arm, reference, metric] for metric in SHOWN]
        cells = (
            f"{change(row)} p {p_of(row['p_holm'])}" + "†" * (row["at_least_p"] == "True")
            for row in own
        )
        lines.append((arm, reference, own[0]["n"], *cells))
    return markdown(("arm", "against", "seeds", *SHOWN.values()), lines)


def _verdict_table(rows: Sequence[Row], effects: Sequence[Row]) -> list[str]:
    lines = []
    against_random = {
        (row["arm"], row["metric"]): row for row in effects if row["reference"] == "random"
    }
    for row in rows:
        size = max(float(row["expected"]), float(row["margin"]))
        claimed = f"{'within ±' if row['direction'] == 'none' else ''}{size:g}" if size else DASH
        effect = interval(row, "mean", "low", "high")
        other = against_random.get((row["arm"], row["metric"]))
        if row["reference"] == "control" and other and other["ci_low"]:
            effect += f"<br>against random {change(other)}"
        both = (p_of(row["p_holm"]), p_of(row["against_holm"]))
        family, verdict = f"{row['family']} ({row['family_size']})", f"**{row['verdict']}**"
        lines.append((row["text"], effect, claimed, *both, family, verdict, row["status"]))
    heads = ("claim", "effect", "claimed", "p for", "p against", "family", "verdict", "")
    return markdown(heads, lines)


def capabilities_table(effects: Sequence[Row], chosen: Collection[str] = ()) -> list[str]:
    """Returns the changes of a model's capabilities by edits and ablation; [] if not measured.

    `chosen` are the arms to show, or all.
    """
    names = [f"capabilities/{name}" for name in ABLE]
    rows = {(row["arm"], row["metric"]): row for row in effects
            if row["reference"] == "control" and row["reference_mean"]}  # fmt: skip
    arms = dict.fromkeys(arm for arm, metric in rows if metric in names)
    if not arms:
        return []
    fullest = max(arms, key=lambda arm: int(rows[arm, names[0]]["n"]))  # the most controls
    cells = {
        arm: [change(rows.get((arm, name))) for name in names]
        for arm in arms
        if not chosen or arm in chosen
    }
    for which, words in CONTROLS.items():
        found = (rows.get((fullest, name + which)) for name in names)
        cells[f"*{words}*"] = [
            DASH if row is None else number(float(row["reference_mean"])) for row in found
        ]
    return markdown(("arm", *ABLE.values()), ((arm, *found) for arm, found in cells.items()))


def _capabilities(effects: Sequence[Row]) -> list[str]:
    table = capabilities_table(effects)
    return ["### Capabilities", "", *table, ""] if table else []


def _null(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    differ = [row for row in rows if row["differs"] == "True"]
    said = "none differs" if not differ else f"{len(differ)} differ"
    lowest = min(rows, key=lambda row: float(row["p_holm"]))
    return [
        "### Random against random",
        "",
        f"Each random edit against the others of its seed: of {len(rows)} comparisons {said}; the "
        f"smallest corrected p is {p_of(lowest['p_holm'])} (replicate {lowest['replicate']} of "
        f"{lowest['arm']}, {lowest['metric']}).",
        "",
    ]


def _dose(folder: Path, effects: Sequence[Row]) -> list[str]:
    lines: dict[str, list[Row]] = {}  # the arm without its band -> its bands
    for row in effects:
        if row["line"] and (row["reference"], row["metric"]) == ("control", "unit"):
            lines.setdefault(row["line"], []).append(row)
    said = [_dose_sentence(arm, bands) for arm, bands in lines.items() if len(bands) > 1]
    if not said:
        return []
    title, picture = "### Dose-response", f"![Effect of each band]({folder.name}/dose.png)"
    return [title, "", *(line for one in said for line in (one, "")), picture, ""]


def _dose_sentence(arm: str, bands: Sequence[Row]) -> str:
    bands = sorted(bands, key=lambda row: float(row["band_low"]))
    values = [float(row["difference"]) for row in bands]
    falls = sum(b < a for a, b in pairwise(values))
    return (
        f"{arm}, each band of scores alone, mean over {bands[0]['n']} seeds, against control: from "
        f"{number(values[0])} for the lowest scores to {number(values[-1])} for the highest; from "
        f"one band to the next the mean falls {falls} of {len(values) - 1} times."
    )


def _float(text: str) -> float | None:
    return float(text) if text else None


def p_of(text: str) -> str:
    """Returns a p-value of a table; a dash where there is none."""
    return p_value(_float(text))


def interval(row: Row | None, *names: str) -> str:
    """Returns a number of a table with its interval: the three columns of these names."""
    if row is None:
        return DASH
    mean, low, high = (number(_float(row[name])) for name in names)
    return f"{mean} [{low}, {high}]"


def change(row: Row | None) -> str:
    """Returns the difference of an edit with its interval; a dash for no row of effects."""
    return interval(row, "difference", "ci_low", "ci_high")


def claims_by_size(sizes: Mapping[str, Path]) -> list[str]:
    """Returns the verdict on every claim of a study at each size, with the deciding p-value."""
    found = {(row["text"], size): row for size, folder in sizes.items()
             for row in verdicts_of(folder)}  # fmt: skip
    lines = [
        (text.removesuffix("."), *(_verdict(found.get((text, size))) for size in sizes))
        for text in dict.fromkeys(text for text, _ in found)
    ]
    return markdown(("claim", *sizes), lines)


def _verdict(row: Row | None) -> str:
    if row is None:
        return DASH
    against = row["verdict"] in (REFUTED, SMALLER)
    p = row["against_holm" if against else "p_holm"]
    said = f", p = {float(p):.2g}{' against it' if against else ''}" if p else ""
    return f"{row['verdict']}{said} ({row['status']})"
