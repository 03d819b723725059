"""Mechanistic data attribution: which training samples made a unit of a language model.

The names below work on any causal language model of a known family that is in memory, without
Hydra and without a store; see `mda.library`. They are imported when they are first used, so that
`import mda` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mda.library import (
        Influence,
        LocatedUnit,
        Ranking,
        emergence_curve,
        influence,
        locate,
        pack,
        remove,
        upweight,
    )

__all__ = [
    "Influence",
    "LocatedUnit",
    "Ranking",
    "emergence_curve",
    "influence",
    "locate",
    "pack",
    "remove",
    "upweight",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("mda.library"), name)
    raise AttributeError(f"module 'mda' has no attribute {name!r}")
