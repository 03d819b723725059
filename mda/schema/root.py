"""The remaining groups, and the whole."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

from mda.schema.attribution import INTERVENTIONS, InterventionConfig, RemoveConfig
from mda.schema.base import BaseConfig, PublishedConfig
from mda.schema.capabilities import CapabilitiesConfig
from mda.schema.data import (
    DataConfig,
    EmbeddedConfig,
    HfConfig,
    PileConfig,
    SyntheticConfig,
    TokensConfig,
)
from mda.schema.estimator import ESTIMATORS, EkfacConfig, EstimatorConfig
from mda.schema.model import (
    CheckpointConfig,
    ModelConfig,
    PublishedModelConfig,
    ScratchConfig,
)
from mda.schema.motifs import MotifsConfig, SynthesisConfig
from mda.schema.plan import PlanConfig
from mda.schema.run import EmergenceConfig, TrainingConfig
from mda.schema.sae import SaeConfig
from mda.schema.setting import Group, setting
from mda.schema.study import StudyConfig
from mda.schema.truth import TruthConfig
from mda.schema.unit import (
    DirectionConfig,
    HeadConfig,
    ModuleConfig,
    NeuronConfig,
    SaeFeatureConfig,
    UnitConfig,
)


@dataclass
class ReportConfig(Group):
    """Tables, figures, and the comparison of arms."""

    key: ClassVar[str] = "report"
    top_heads: int = setting(5, "heads in the table of the strongest", low=1)
    samples: int = setting(50, "highest and lowest samples that are shown with their text", low=1)
    dpi: int = setting(150, "resolution of figures, dots per inch", low=30)
    runs: list[str] = setting([], "folders with arms to compare: of a sweep, or of single runs")
    traces: list[str] = setting([], "folders of traces whose samples the page shows")
    title: str = setting("Which training samples made this unit?", "head of the page")
    confidence: float = setting(0.95, "level of intervals", above=0, below=1)
    resamples: int = setting(9999, "bootstrap resamples", low=99)
    pack: str | None = setting(
        None, "folder that the compared runs are written to, as one table of curves and one of runs"
    )


LOGGERS = "csv: nowhere else; wandb: Weights & Biases; tensorboard: events in the run's folder"


@dataclass
class LoggerConfig(Group):
    """The target of metrics besides the CSV that is always written."""

    key: ClassVar[str] = "logger"
    name: str = setting("csv", LOGGERS, one_of=("csv",))


@dataclass
class TensorboardConfig(LoggerConfig):
    """TensorBoard, by the extra `tensorboard`; `tensorboard --logdir outputs/runs` shows it."""

    name: str = setting("tensorboard", LOGGERS, one_of=("tensorboard",))


@dataclass
class WandbConfig(LoggerConfig):
    """Weights & Biases; offline runs are uploaded with `wandb sync`."""

    name: str = setting("wandb", LOGGERS, one_of=("wandb",))
    mode: str | None = setting(
        None,
        "offline needs no account; null: WANDB_MODE, else offline",
        one_of=("offline", "online"),
    )
    project: str | None = setting(None, "one for each study; null: WANDB_PROJECT, else mda")
    entity: str | None = setting(None, "user or team, null: your default")
    group: str | None = setting(None, "group of runs, null: the sweep's or run's name")


@dataclass
class Config(Group):
    """All groups, and the settings outside of any group."""

    seed: int = setting(
        0, "seed of initial weights and of the stream's order", low=0, high=2**32 - 1
    )
    name: str = setting("run", "folder of the run under outputs/runs/<program>/")
    output_dir: str = setting("outputs", "folder of store/, runs/ and reports/")
    base: BaseConfig = field(default_factory=BaseConfig)
    data: DataConfig = field(default_factory=EmbeddedConfig)
    model: ModelConfig = field(default_factory=ScratchConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    emergence: EmergenceConfig = field(default_factory=EmergenceConfig)
    sae: SaeConfig = field(default_factory=SaeConfig)
    unit: UnitConfig = field(default_factory=HeadConfig)
    estimator: EstimatorConfig = field(default_factory=EkfacConfig)
    intervention: InterventionConfig = field(default_factory=RemoveConfig)
    capabilities: CapabilitiesConfig = field(default_factory=CapabilitiesConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    truth: TruthConfig = field(default_factory=TruthConfig)
    motifs: MotifsConfig = field(default_factory=MotifsConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    logger: LoggerConfig = field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[\w.,=+-]+", self.name) or self.name.startswith("."):
            raise self._refuse("name", "letters, digits and any of _ . , = + -")


OPTIONS: dict[str, dict[str, type[Group]]] = {
    "base": {"train": BaseConfig, "published": PublishedConfig},
    "data": {
        "embedded": EmbeddedConfig,
        "synthetic": SyntheticConfig,
        "tokens": TokensConfig,
        "hf": HfConfig,
        "pile": PileConfig,
    },
    "unit": {
        "head": HeadConfig,
        "mlp_neuron": NeuronConfig,
        "module": ModuleConfig,
        "sae_feature": SaeFeatureConfig,
        "direction": DirectionConfig,
    },
    "estimator": ESTIMATORS,
    "intervention": INTERVENTIONS,
    "model": {
        "scratch": ScratchConfig,
        "checkpoint": CheckpointConfig,
        "published": PublishedModelConfig,
    },
    "logger": {"csv": LoggerConfig, "wandb": WandbConfig, "tensorboard": TensorboardConfig},
}
"""Groups whose options differ in kind, and the class of each."""
