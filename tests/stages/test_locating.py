"""Which head is traced, and the window that its own curve gives."""

import math

import numpy as np
import pytest

from mda import pipeline
from mda.stages.locating import locate


def values_of(base, metric: str, head: str) -> dict[int, float]:
    return {int(row["step"]): row[f"emergence/{metric}/{head}"] for row in base.curve}


def test_a_named_head_is_traced_whatever_its_rank(context_of):
    corpus, base = pipeline.train(context_of())
    heads = ["L0H0", "L0H1", "L1H0", "L1H1"]
    last = {head: values_of(base, "prefix_matching", head)[60] for head in heads}
    lowest = min(heads, key=lambda head: last[head])
    found = locate(context_of(f"unit.locate={lowest}"), corpus, base)
    assert (found.name, found.members) == (lowest, (lowest,))
    assert [unit.name for unit in found.units] == heads
    highest = max(heads, key=lambda head: last[head])
    assert locate(context_of(), corpus, base).name == highest != lowest


def test_an_automatic_window_lies_around_the_heads_own_crossing_of_the_threshold(context_of):
    unit = ("unit=previous_token_head", "unit.locate=L1H0")
    corpus, base = pipeline.train(context_of(*unit))
    curve = values_of(base, "previous_token", "L1H0")
    before, after = curve[20], curve[30]
    assert max(value for step, value in curve.items() if step <= 20) == before < after
    threshold = 0.25 * before + 0.75 * after
    margins = ("intervention.before_onset=3", "intervention.after_onset=11")
    auto = (f"unit.threshold={threshold}", "intervention.window=auto", *margins)
    window = locate(context_of(*unit, *auto), corpus, base).window
    onset = np.interp(threshold, [before, after], [20, 30])
    assert window.onset == pytest.approx(onset)
    kept = [step for step in base.checkpoints if step <= onset - 3]
    assert (window.start, window.end) == (max(kept), math.ceil(onset + 11)) == (20, 39)
