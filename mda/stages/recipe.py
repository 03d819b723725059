"""How a run is trained and measured: the same way for the base run and its arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mda import store
from mda.emergence.measure import Follow, make_probes
from mda.emergence.steps import curve_steps, held_out_every
from mda.model.build import CONFIG_FILE, saved_config
from mda.schema import EmergenceConfig, TrainingConfig
from mda.stages.context import Runtime, without
from mda.stages.corpus import fetch
from mda.stages.ending import Ending
from mda.stages.order import Order
from mda.stages.stage import HashFile
from mda.training.scoped import Reach
from mda.types import Stream

if TYPE_CHECKING:
    from transformers import PreTrainedModel


NOT_INPUTS = ("accelerator", "ends")  # the key has the kind of device, and the rule of the end


@dataclass(frozen=True)
class Recipe:
    """The training settings of a run and its arms, and the measurements during it."""

    training: TrainingConfig
    emergence: EmergenceConfig

    @property
    def device(self) -> torch.device:
        """The device of training and scoring."""
        return device_of(self.training)

    @property
    def threads(self) -> dict[str, object]:
        """The number of threads where results depend on it: on a CPU."""
        return {"threads": self.training.threads} if self.device.type == "cpu" else {}

    def curve_inputs(self, hash_of: HashFile) -> dict[str, object]:
        """Returns the inputs of keys from the settings of a base run's curve."""
        found = without(asdict(self.emergence), "arm_held_out_every", "prompts")
        if self.emergence.prompts is not None:
            found["prompts"] = hash_of(Path(self.emergence.prompts))
        return found

    @property
    def inputs(self) -> dict[str, object]:
        """The inputs of keys from the settings of training."""
        return without(asdict(self.training), *NOT_INPUTS, "threads") | self.threads


def device_of(training: TrainingConfig) -> torch.device:
    """Returns the device of training and scoring."""
    gpu = training.accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


@dataclass(frozen=True)
class Training:
    """Updates on a stream by a recipe, with checkpoints and a curve."""

    order: Order
    recipe: Recipe
    keep: Sequence[int]
    follow: Follow | None = None
    measured: Sequence[int] = ()  # steps at which the curve has a row besides
    ending: Ending | None = None

    def run(
        self,
        part: Path,
        at: Runtime,
        model: PreTrainedModel,
        stream: Stream,
        start_from: Path | None,
        name: str,
        reach: Reach | None = None,
    ) -> None:
        """Trains into a folder, from a checkpoint's state if given."""
        # Lightning takes a second to import; a plan, or a run that is in the store, needs none.
        from mda.emergence.callback import EmergenceCurve
        from mda.training.loop import train

        corpus, emergence = self.order.corpus, self.recipe.emergence
        steps = stream.start, stream.end
        also = {step for step in self.measured if steps[0] <= step <= steps[1]}
        fetch(at, corpus, stream.sample_ids)
        store.free_memory()
        store.write_json(part / CONFIG_FILE, saved_config(model))
        curve = EmergenceCurve(
            part / "curve.csv",
            make_probes(corpus, emergence),
            also.union(curve_steps(*steps, emergence.every)),
            also.union(curve_steps(*steps, held_out_every(emergence))),
            stream.batch_size * corpus.seq_len,
            self.follow,
            self.ending.reached if self.ending else None,
        )
        train(
            part,
            model,
            corpus,
            stream,
            self.recipe.training,
            checkpoints=self.keep,
            start_from=start_from,
            curves=[curve],
            log=at.log,
            progress=f"{name} (seed {self.order.seed})" if at.progress else None,
            reach=reach,
        )
