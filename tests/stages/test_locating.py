"""Which head is traced, and the window that its own curve gives."""

import math

import numpy as np
import pytest

from mda import pipeline, store
from mda.stages.measuring import job_of


def values_of(base, metric: str, head: str) -> dict[int, float]:
    return {int(row["step"]): row[f"emergence/{metric}/{head}"] for row in base.curve}


def test_a_named_head_is_traced_whatever_its_rank(context_of):
    _, base = pipeline.train(context_of())
    heads = ["L0H0", "L0H1", "L1H0", "L1H1"]
    last = {head: values_of(base, "prefix_matching", head)[60] for head in heads}
    lowest = min(heads, key=lambda head: last[head])
    found = pipeline.unit_of(context_of(f"unit.locate={lowest}"), base)
    assert (found.name, found.members) == (lowest, (lowest,))
    assert [unit.name for unit in found.units] == heads
    highest = max(heads, key=lambda head: last[head])
    assert pipeline.unit_of(context_of(), base).name == highest != lowest


def test_an_automatic_window_lies_around_the_heads_own_crossing_of_the_threshold(context_of):
    unit = ("unit=previous_token_head", "unit.locate=L1H0")
    _, base = pipeline.train(context_of(*unit))
    curve = values_of(base, "previous_token", "L1H0")
    before, after = curve[20], curve[30]
    assert max(value for step, value in curve.items() if step <= 20) == before < after
    threshold = 0.25 * before + 0.75 * after
    margins = ("intervention.before_onset=3", "intervention.after_onset=11")
    auto = (f"unit.threshold={threshold}", "intervention.window=auto", *margins)
    window = pipeline.unit_of(context_of(*unit, *auto), base).window
    onset = np.interp(threshold, [before, after], [20, 30])
    assert window.onset == pytest.approx(onset)
    kept = [step for step in base.checkpoints if step <= onset - 3]
    assert (window.start, window.end) == (max(kept), math.ceil(onset + 11)) == (20, 39)


def test_a_unit_that_is_there_at_the_first_step_has_no_onset(context_of):
    """Any head is, where the threshold is below its metric before training."""
    auto = ("unit.locate=L1H0", "intervention.window=auto", "intervention.after_onset=11")
    _, base = pipeline.train(context_of())
    curve = values_of(base, "prefix_matching", "L1H0")
    low = pipeline.unit_of(context_of(*auto, f"unit.threshold={curve[0] * 0.999}"), base)
    assert low.emerged.before and (low.window.start, low.window.end) == (0, 11)
    assert low.window.rule == (
        "L1H0 was there before the first step: scores say what changes it; it has no onset, so "
        "the window is the first steps: [0, 11)"
    )
    threshold = (curve[0] + max(curve.values())) / 2
    assert curve[0] < threshold
    assert not pipeline.unit_of(
        context_of(*auto, f"unit.threshold={threshold}"), base
    ).emerged.before


@pytest.mark.parametrize(
    ("words", "name", "fitted"),
    [
        ("unit.locate=L1H1", "L1H1", "qk v o"),
        ("unit.locate=mechanism unit.k=1", "mechanism", "qk v o"),
        ("unit=mlp_neuron unit.label=generated_json unit.locate=L1N5", "L1N5", "neurons.in"),
        ("unit=module unit.locate=L1.mlp", "L1.mlp", "mlp.in mlp.out"),
    ],
)
def test_a_unit_that_is_scored_alone_has_its_column_of_all_the_others(
    traced, words, name, fitted, outputs
):
    """And no other unit's block is captured, fitted or reckoned with."""
    overrides = (*words.split(), "estimator.fit_sequences=40")
    every, _ = traced(*overrides)
    one, context = traced(*overrides, "unit.only=true")
    assert one.traced.scores.units == (name,) and len(every.traced.scores.units) > 1
    assert one.traced.fingerprint != every.traced.fingerprint
    alone, among = one.traced.scores.of(name), every.traced.scores.of(name)
    assert np.abs(among).max() > 0
    assert np.allclose(alone, among, rtol=1e-4, atol=1e-5 * np.abs(among).max())
    layer = one.unit.members[0][:2]
    assert {f"{layer}.{end}" for end in fitted.split()} in [
        set(store.read_json(path)["inputs"]["blocks"])
        for path in (outputs / "store" / "curvature").glob("*/manifest.json")
    ]
    planned = job_of(context.config)
    assert [unit.name for unit in planned.units] == [name]
    assert len(planned.rows) == len(one.unit.units[0].parts) <= 3
    assert set(planned.rows.values()) == {1}
