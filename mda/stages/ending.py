"""The end of a base run that goes no further than the unit's window (`training.ends=window`)."""

from __future__ import annotations

from dataclasses import dataclass

from mda.emergence.onset import Curve, ranked, unit_onset
from mda.intervention.window import window_end
from mda.schema import InterventionConfig, TrainingConfig, UnitConfig


@dataclass(frozen=True)
class Ending:
    """The rule for the end: the first point of the curve at or after the end of the window.

    The onset is found on the curve so far, as that of the whole curve is. So the window of a named
    unit is that of a longer run. Of an unnamed one it is, if the unit that is strongest at this
    point stays so.
    """

    metric: str
    unit: str | None  # its name; None for the strongest
    threshold: float
    after: int  # steps from the onset to the window's end
    given: int | None  # the window's end, where the settings say it

    @classmethod
    def of(
        cls, training: TrainingConfig, unit: UnitConfig, edit: InterventionConfig
    ) -> Ending | None:
        """Returns the rule of these settings; None for a run to its last step."""
        if training.ends == "schedule":
            return None
        name = None if unit.named is None else unit.locate
        given = None if edit.steps is None else edit.steps[1]
        return cls(unit.metric, name, unit.onset_threshold, edit.after_onset, given)

    @property
    def inputs(self) -> dict[str, object]:
        """The values that decide the end, for the base run's key."""
        if self.given is not None:
            return {"step": self.given}
        found = {"metric": self.metric, "unit": self.unit, "threshold": self.threshold}
        return {**found, "after_onset": self.after}

    def end(self, curve: Curve) -> int | None:
        """Returns the window's end by the curve so far; None where the unit has no onset yet."""
        if self.given is not None:
            return self.given
        unit = self.unit or ranked(curve, self.metric)[0]
        onset = unit_onset(curve, self.metric, unit, self.threshold).step
        return None if onset is None else window_end(onset, self.after)

    def reached(self, curve: Curve) -> bool:
        """Returns whether the run ends at the last point of the curve so far."""
        end = self.end(curve) if curve else None
        return end is not None and curve[-1]["step"] >= end
