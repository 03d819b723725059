"""The onset of a head: the first interpolated crossing of a threshold, with its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mda.schema.metrics import HEAD_METRICS
from mda.types import HeadId

Curve = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Onset:
    """The step of the crossing, and the steps at which the 95 % band's edges cross.

    None means no crossing. With `before`, the curve is at or above the threshold at its first step,
    which then is `step`: the unit emerged before the first measurement.
    """

    step: float | None
    low: float | None
    high: float | None
    before: bool = False


def crossing(steps: np.ndarray, values: np.ndarray, threshold: float) -> float | None:
    """Returns the first step at which the linearly interpolated curve reaches the threshold."""
    above = np.flatnonzero(values >= threshold)
    if len(above) == 0:
        return None
    i = int(above[0])
    if i == 0:
        return float(steps[0])
    rise = (threshold - values[i - 1]) / (values[i] - values[i - 1])
    return float(steps[i - 1] + rise * (steps[i] - steps[i - 1]))


def onset(
    steps: Sequence[float] | np.ndarray,
    values: Sequence[float] | np.ndarray,
    errors: Sequence[float] | np.ndarray | None,
    threshold: float,
) -> Onset:
    """Returns the onset of one curve.

    `errors` are the standard errors of its points over probe sequences.

    `low` and `high` are the crossings of value + 1.96 se and value - 1.96 se: the uncertainty from
    the draw of the probe. It does not include variation over training seeds.
    """
    x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    band = 1.96 * (np.zeros_like(y) if errors is None else np.asarray(errors, dtype=float))
    return Onset(
        crossing(x, y, threshold),
        crossing(x, y + band, threshold),
        crossing(x, y - band, threshold),
        before=len(y) > 0 and bool(y[0] >= threshold),
    )


def there_before(unit: str) -> str:
    """Returns the sentence for a unit whose onset is `before` the curve."""
    return f"{unit} was there before the first step: scores say what changes it"


def heads_of(curve: Curve, metric: str) -> list[HeadId]:
    """Returns the heads that a curve has columns for."""
    prefix = f"emergence/{metric}/L"
    names = [key.rsplit("/", 1)[1] for key in curve[0] if key.startswith(prefix)]
    return sorted(HeadId.parse(name) for name in names)


def head_metric(metric: str) -> str:
    """Returns the metric that heads are ranked by for a unit's metric: its own, or induction."""
    return metric if metric in HEAD_METRICS else "prefix_matching"


def measured(curve: Curve, name: str) -> Curve:
    """Returns the rows of a curve that have a column.

    Raises KeyError with its name where none has.
    """
    if not (rows := [row for row in curve if name in row]):
        raise KeyError(name)
    return rows


def column(curve: Curve, name: str) -> np.ndarray:
    """Returns one column of a curve as an array. Raises KeyError with its name."""
    return np.array([row[name] for row in curve])


def units_of(curve: Curve, metric: str) -> list[str]:
    """Returns the units for which a curve has a metric."""
    prefix = f"emergence/{metric}/L"
    return [key.rpartition("/")[2] for key in curve[0] if key.startswith(prefix)]


def strongest_first(values: Mapping[str, float]) -> list[str]:
    """Returns the names of units by their value, largest first; of equal ones by their place."""
    return sorted(values, key=lambda name: (-values[name], _place(name)))


def _place(name: str) -> tuple[int, ...]:
    digits = "".join(c if c.isdigit() else " " for c in name)
    return tuple(map(int, digits.split()))


def ranked(curve: Curve, metric: str) -> list[str]:
    """Returns the units for which a curve has a metric, strongest in its last row first."""
    last, prefix = curve[-1], f"emergence/{metric}/"
    return strongest_first({name: last[prefix + name] for name in units_of(curve, metric)})


def unit_onset(curve: Curve, metric: str, unit: HeadId | str, threshold: float) -> Onset:
    """Returns the onset of one unit's metric on its rows; without errors, without a band."""
    values, errors = f"emergence/{metric}/{unit}", f"emergence/{metric}_se/{unit}"
    rows = measured(curve, values)
    return onset(
        column(rows, "step"),
        column(rows, values),
        column(rows, errors) if errors in rows[0] else None,
        threshold,
    )
