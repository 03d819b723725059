"""Mechanistic data attribution: which training samples made a unit of a language model.

The names of `mda.library` are names of this package too. They work on any causal language model of
a known family that is in memory, without Hydra and without a store. They are imported when they are
first used, so that `import mda` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mda.library import Influence as Influence
    from mda.library import LocatedUnit as LocatedUnit
    from mda.library import Ranking as Ranking
    from mda.library import emergence_curve as emergence_curve
    from mda.library import influence as influence
    from mda.library import locate as locate
    from mda.library import pack as pack
    from mda.library import remove as remove
    from mda.library import upweight as upweight

_LIBRARY = (  # no __all__: the reference of the package lists its modules
    "Influence",
    "LocatedUnit",
    "Ranking",
    "emergence_curve",
    "influence",
    "locate",
    "pack",
    "remove",
    "upweight",
)


def __getattr__(name: str) -> Any:
    if name in _LIBRARY:
        return getattr(import_module("mda.library"), name)
    raise AttributeError(f"module 'mda' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LIBRARY])
