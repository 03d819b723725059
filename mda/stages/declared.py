"""The declarations of stages: the stages before each, and the groups of settings it reads.

Nothing heavy is imported, so that a program knows the groups it needs before torch is loaded. A
stage itself (`mda.stages.stage.Stage`) has one of these as its `declared`, and a test compares the
types of its fields with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from mda.schema import Config


@dataclass(frozen=True)
class Declared:
    """A kind of artifact: its name, those it is made from, the groups of settings it reads."""

    kind: str
    after: tuple[Declared, ...] = ()
    reads: tuple[str, ...] = ()

    def groups(self) -> Iterator[str]:
        """Returns every group that it depends on: its own, and those of all stages before it."""
        yield from self.reads
        for one in self.after:
            yield from one.groups()


RUN = ("training", "emergence")  # how a run goes on: updates, curve

CORPUS = Declared("corpus", (), ("data",))
WEIGHTS = Declared("weights", (), ("base",))
CURVE = Declared("curve", (CORPUS, WEIGHTS), RUN)
BASE = Declared("base", (CORPUS, CURVE), ("base", "model", *RUN))
SAE = Declared("sae", (CORPUS, BASE), ("sae",))
UNIT = ("sae", "unit", "intervention")  # what finds a unit and its window
RANKING = Declared("ranking", (CORPUS, BASE, SAE), UNIT)
EMERGENCE = Declared("emergence", (RANKING,), UNIT)
CURVATURE = Declared("curvature", (CORPUS, BASE), ())
SCORES = Declared("scores", (BASE, EMERGENCE, CURVATURE), (*UNIT, "estimator"))
TOKENS = Declared("tokens", (SCORES,), (*UNIT, "estimator"))
STATE = Declared("state", (BASE,), ())
ARM = Declared("arm", (STATE, SCORES, TOKENS), ())
CAPABILITIES = Declared("capabilities", (ARM,), ("unit", "capabilities"))


def needs(*stages: Declared) -> tuple[str, ...]:
    """Returns the groups that some stages and all before them read, in order."""
    read = {group for stage in stages for group in stage.groups()}
    return tuple(item.name for item in fields(Config) if item.name in read)
