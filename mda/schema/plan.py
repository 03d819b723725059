"""The group `plan`: the basis of the estimates of `--dry-run` and `mda plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mda.schema.setting import Group, setting

HARDWARE = ("this", "a100", "h100", "h200", "l40s")


@dataclass
class PlanConfig(Group):
    """The hardware whose time is estimated: this machine, measured, or a card by its data sheet."""

    key: ClassVar[str] = "plan"
    hardware: str = setting(
        "this", "this: this machine, measured for half a minute at most; or a card",
        one_of=HARDWARE,
    )  # fmt: skip
    share: float = setting(
        0.3, "share of a card's rate that is reached: an assumption", above=0, high=1
    )
