"""The table of head metrics. An entry is all that a metric needs; plugins add theirs.

Every metric of the table is measured on every curve, for every head. It can find a unit
(`unit.metric`) and be differentiated in its place (`unit.probe.target`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadMetric:
    """A number between 0 and 1 that an attention pattern has, and so each head.

    `function` is the `module:function` that computes it: from patterns [M, H, T, T] on sequences
    of random tokens that repeat after `length` tokens, and that length, to a value of each, [M, H].
    """

    name: str
    function: str
    title: str  # how axes call it
    threshold: float  # value from which a head counts as emerged
    length: int = 2  # fewest tokens before they repeat
    repeats: int = 1  # fewest occurrences in a sequence


HEAD_METRICS: dict[str, HeadMetric] = {
    metric.name: metric
    for metric in (
        HeadMetric(
            "prefix_matching",
            "mda.unit.metrics:prefix_matching",
            "induction score",
            threshold=0.06,
            repeats=2,
        ),
        HeadMetric(
            "previous_token",
            "mda.unit.metrics:previous_token",
            "previous-token score",
            threshold=0.3,
        ),
        HeadMetric(
            "second_previous_token",
            "mda.unit.metrics:second_previous_token",
            "second-previous-token score",
            threshold=0.25,
            length=3,
        ),
    )
}


def functions() -> dict[str, str]:
    """Returns the function of every metric by name, which a curve's key holds."""
    return {metric.name: metric.function for metric in HEAD_METRICS.values()}


def modules(*names: str) -> tuple[str, ...]:
    """Returns the modules that compute some metrics, or all: their source is part of a key."""
    found = [HEAD_METRICS[name].function for name in names or HEAD_METRICS]
    return tuple(dict.fromkeys(function.partition(":")[0] for function in found))
