"""The steps at which a curve is measured."""

from __future__ import annotations

from mda.schema import EmergenceConfig


def curve_steps(start: int, end: int, every: int) -> list[int]:
    """Returns the steps at which a curve is measured: multiples of `every`, and both ends."""
    return sorted({start, end, *range(-(-start // every) * every, end + 1, every)})


def held_out_every(settings: EmergenceConfig) -> int:
    """Returns the number of steps between measurements of held-out text."""
    return settings.every * settings.held_out_every
