"""Colours and line styles of arms, the same in every figure of the project."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from zlib import crc32

from matplotlib import colormaps
from matplotlib.colors import to_hex, to_rgb

from mda.analysis.arms import Arm, band_of, chooser

COLOURS = {
    "ekfac": "#0072B2",
    "tracin": "#D55E00",
    "repetition": "#009E73",
    "loss": "#CC79A7",
    "gradient_norm": "#E69F00",
}
"""Okabe and Ito's palette, for any colour vision; other estimators take from `MORE`."""
MORE = ("#56B4E9", "#882255", "#44AA99", "#332288", "#999933")
CONTROL_COLOUR, RANDOM_COLOUR, MATCHED_COLOUR = "#000000", "#7F7F7F", "#8C6D46"
PALEST = 0.8  # share of white in the last of many arms that look alike
DASHES = {"remove": "solid", "augment": "dashed"}
TOKEN_DASHES = {
    ("mask_tokens", ""): "dotted", ("spans", "fresh"): "dashdot", ("spans", "renamed"): "dotted",
}  # fmt: skip


@dataclass(frozen=True)
class Style:
    """The look of an arm in every figure."""

    colour: str
    dash: str  # matplotlib's: solid, dashed, dotted, dashdot


def style(arm: Arm) -> Style:
    """Returns the look of an arm: colour by the choice of samples, dash by the edit.

    Control is black, random edits are grey, random sets matched to a targeted one brown, score
    bands on a scale from dark (lowest) to light. The look depends on the arm alone, so it is the
    same in every figure; `styles` distinguishes arms that differ by another setting only.
    """
    edit = arm.edit
    usual = DASHES.get(edit.intervention, "dashdot")
    dash = TOKEN_DASHES.get((edit.mode, edit.spans), usual)
    if edit.is_control:
        return Style(CONTROL_COLOUR, "solid")
    if edit.match:
        return Style(MATCHED_COLOUR, "dotted" if edit.match.targeted else dash)
    if edit.is_random:
        return Style(RANDOM_COLOUR, dash)
    if edit.is_band:
        band = band_of(arm)
        return Style(to_hex(colormaps["cividis"](0.5 * (band.low + band.high))), dash)
    other = MORE[crc32(chooser(edit).encode()) % len(MORE)]
    return Style(COLOURS.get(edit.source, other), dash)


def styles(arms: Iterable[Arm]) -> dict[Arm, Style]:
    """Returns the look of each arm; of arms that would look alike, later ones are lighter."""
    alike: dict[Style, list[Arm]] = {}
    for arm in dict.fromkeys(arms):
        alike.setdefault(style(arm), []).append(arm)
    return {
        arm: replace(look, colour=_lighter(look.colour, PALEST * i / len(members)))
        for look, members in alike.items()
        for i, arm in enumerate(members)
    }


def _lighter(colour: str, share: float) -> str:
    """Returns a colour mixed with a share of white; unchanged without a share."""
    if not share:
        return colour
    red, green, blue = ((1 - share) * part + share for part in to_rgb(colour))
    return to_hex((red, green, blue))
