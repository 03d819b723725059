"""The finding of a comparison, in one sentence with its numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mda.analysis.arms import Arm, Run, amount, arm_as, by_arm
from mda.analysis.metrics import Measurements, control_of, references_of
from mda.schema import StudyConfig
from mda.schema.edit import Edit, Ids, Rows, Share

NAMES = {"ekfac": "EK-FAC", "tracin": "TracIn", "gradient_norm": "gradient norm"}
DONE = {"remove": ("Without", "removals"), "augment": ("With a second copy of", "augmentations")}
MODES_DONE = {
    ("mask_tokens", ""): ("Without the loss of", "removals"),
    ("spans", "fresh"): ("With fresh tokens in the place of", "replacements"),
    ("spans", "renamed"): ("With other names for", "replacements"),
    ("insert", ""): ("With", "insertions"),
}


def main_arm(measured: Measurements, study: StudyConfig) -> Arm | None:
    """Returns the arm of the sentence: of the study's first claim that was run with it.

    Else the first targeted edit, the trivial baseline last; None where there is no targeted edit.
    """
    arms = list(by_arm(measured.runs))
    for claim in study.claims.values():
        claimed = arm_as(study.arm(claim.arm))
        for arm in arms:
            if arm.fits(claimed) and not (arm.edit.is_control or arm.edit.is_random):
                return arm
    targeted = [arm for arm in arms if not (arm.edit.is_control or arm.edit.is_random
                                            or arm.edit.is_band)]  # fmt: skip
    order = sorted(targeted, key=lambda arm: (arm.edit.intervention != "remove",
                                              arm.edit.source == "repetition"))  # fmt: skip
    return order[0] if order else None


def headline(measured: Measurements, study: StudyConfig) -> str:
    """Returns one sentence: the unit's crossing and end with and without the main arm's edit.

    It adds the ends under random edits of the same size and those of the trivial baseline. Several
    seeds are averaged; a seed that never crosses counts with the window's end, marked by "or
    later".
    """
    arm = main_arm(measured, study)
    if arm is None:
        return "No targeted edit was run, so there is nothing to say about the unit yet."
    seeds = by_arm(measured.runs)[arm]
    runs = [run for same_seed in seeds.values() for run in same_seed]
    controls = [control_of(run, measured.runs) for run in runs]
    edit = arm.edit
    other = f"With the edit {edit.intervention} of", f"edits {edit.intervention}"
    usual = DONE.get(edit.intervention, other)
    done, noun = MODES_DONE.get((edit.mode, edit.spans), usual)
    if edit.mode == "upweight":
        done = f"With {runs[0].summary['intervention']['weight']:g} times the loss of"
    unit = runs[0].unit if len({run.unit for run in runs}) == 1 else "the unit"
    edited = _edited(edit, None if len(seeds) > 1 else _n(runs))
    crossing = _crossing(measured, runs, controls)
    ends = f"ends at {_mean(measured, runs, runs)} instead of {_mean(measured, controls, runs)}"
    over = "" if len(seeds) == 1 else f" (means over {len(seeds)} seeds)"
    others = []
    for reference, words in (
        ("random", f"random {noun}"),
        ("repetition", f"{noun} by repetition, the trivial baseline,"),
    ):
        end = "" if edit.source == reference else _reference(measured, runs, reference)
        if end:
            others.append(f"{words} end at {end}")
        elif edit.source != reference and not isinstance(edit.by, Rows):
            others.append(f"{words} were not run")
    said = "; ".join([f"{done} {edited}, {unit} {crossing} and {ends}{over}", *others])
    return f"{said}."


def _edited(edit: Edit, n: int | None) -> str:
    """Returns what was edited, with the number of samples if known."""
    if isinstance(edit.by, Rows):
        return f"{amount(edit.amount)} of {edit.by.name} inserted"
    size = edit.size
    how_much = amount(size, "the window's " if isinstance(size, Share) else "")
    if n is not None and size is not None and size.of == "samples":
        how_much = f"{n:,} samples"
    if isinstance(edit.choose, Ids):
        return f"the {how_much} that were named"
    return f"the {how_much} that {NAMES.get(edit.source, edit.source)} chose"


def _n(runs: Sequence[Run]) -> int:
    return round(float(np.mean([int(run.summary["intervention"]["n"]) for run in runs])))


def _crossing(measured: Measurements, runs: Sequence[Run], controls: Sequence[Run]) -> str:
    sides, never = [], []
    for side in (runs, controls):
        of_side = [measured.of(run, target) for run, target in zip(side, runs, strict=True)]
        steps = [value for of_run in of_side if (value := of_run.values["onset_step"]) is not None]
        late = any("onset_step" in of_run.censored for of_run in of_side)
        never += ["onset_step" in of_run.censored for of_run in of_side]
        after = " or later" if late else ""
        sides.append(f"{np.mean(steps):,.0f}{after}" if steps else "")
    if not sides[0]:  # no onset: the unit was there before the edit
        return f"is above {short(runs[0].threshold)} from the window's start on"
    if all(never):
        return f"does not reach {short(runs[0].threshold)} in the window, and nor does the control,"
    there = sides[1] or "being there before the window"
    return f"crosses {short(runs[0].threshold)} at step {sides[0]} instead of {there}"


def _mean(measured: Measurements, side: Sequence[Run], targets: Sequence[Run]) -> str:
    values = [measured.of(a, b).values["unit"] for a, b in zip(side, targets, strict=True)]
    numbers = [value for value in values if value is not None]
    return short(float(np.mean(numbers))) if numbers else "unknown"


def _reference(measured: Measurements, runs: Sequence[Run], reference: str) -> str:
    means, spread = [], []
    for run in runs:
        references = references_of(run, measured.runs, reference)
        values = [measured.of(other, run).values["unit"] for other in references]
        numbers = [value for value in values if value is not None]
        if numbers:
            means.append(float(np.mean(numbers)))
            spread = numbers
    if not means:
        return ""
    one_seed = len({run.seed for run in runs}) == 1
    if one_seed and len(spread) == 2:  # too few for a standard deviation
        return " and ".join(map(short, sorted(spread)))
    error = f" ± {short(float(np.std(spread, ddof=1)))}" if one_seed and len(spread) > 2 else ""
    return short(float(np.mean(means))) + error


def short(value: float) -> str:
    """Returns three decimals without a zero before the point: .240."""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text
