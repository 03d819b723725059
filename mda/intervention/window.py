"""The window of an arm, by a rule that depends only on the base run."""

from __future__ import annotations

from collections.abc import Sequence

from mda.types import Window


def window_end(onset: float, after: int) -> int:
    """Returns onset + after in steps, rounded up to a whole one."""
    return -int(-(onset + after) // 1)


def auto_window(
    onset: float | None,
    checkpoints: Sequence[int],
    last_step: int,
    before: int,
    after: int,
) -> Window:
    """Returns the window around the base run's onset, before any arm has been trained.

    start = the last checkpoint at or before onset - before (steps), so the unit is still absent;
            step 0 where the unit came within `before` steps;
    end   = onset + after, rounded up to a whole step, or `last_step` where the run ends earlier.

    `onset` is the base run's own, in steps, None where the unit never emerged. The rule does not
    depend on any arm's result, so it cannot be tuned to one. Raises ValueError where there is no
    such window.
    """
    if before < 0 or after < 1:
        raise ValueError(f"before={before}, after={after}: need before >= 0 and after >= 1")
    if onset is None:
        raise ValueError(
            f"the unit did not emerge in the base run's {last_step} steps, so there is no window "
            "around its onset; train longer or give the window's start and end"
        )
    latest = max(onset - before, 0)
    early = [step for step in checkpoints if step <= latest]
    if not early:
        first = min(checkpoints, default=None)
        raise ValueError(
            f"no checkpoint at or before step {latest:g} (onset {onset:g} - {before}); the "
            f"first is {first}. Save checkpoints earlier or choose a smaller margin"
        )
    start, end = max(early), min(window_end(onset, after), last_step)
    if end <= onset:
        raise ValueError(
            f"the unit emerged at step {onset:g}, where the base run ends ({last_step}); train it "
            "longer or give the window's start and end"
        )
    cut = f", cut to the run's end (step {last_step})" if end == last_step < onset + after else ""
    rule = (
        f"last checkpoint at or before the base run's onset ({onset:.1f}) - {before} steps"
        f"{' (the first step)' if onset < before else ''}, to "
        f"onset + {after} steps{cut}: [{start}, {end})"
    )
    return Window(start=start, end=end, onset=float(onset), rule=rule)
