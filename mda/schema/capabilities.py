"""The capabilities group: tests of an arm's final model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mda.schema.setting import Group, setting


@dataclass
class CapabilitiesConfig(Group):
    """Tests of an arm's final model, with and without its strongest heads."""

    key: ClassVar[str] = "capabilities"
    held_out: int = setting(128, "sequences of real text for loss and ICL score", low=2)
    prompts: int = setting(128, "prompts of each few-shot task, made of held-out text", low=2)
    shots: int = setting(8, "examples before the question; fewer where they do not fit", low=1)
    span: int = setting(6, "tokens to be copied", low=1)
    snippet: int = setting(8, "tokens of an example that has a label", low=1)
    ablation: bool = setting(True, "repeat without the strongest heads, and without random ones")
    heads: int = setting(2, "heads ablated together, at most half of the model's", low=1)
    random_sets: int = setting(3, "random sets of the same number of other heads", low=1)
    seed: int = setting(0, "seed of texts, prompts and random sets", low=0, high=2**32 - 1)

    @property
    def shortest(self) -> int:
        """The tokens of one example and the question in the longer of the two tasks."""
        return 2 * max(2 * self.span + 2, self.snippet + 2) - 1
