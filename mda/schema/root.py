"""The remaining groups, and the whole."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

from mda.schema.attribution import (
    AugmentConfig,
    ControlConfig,
    EkfacConfig,
    EstimatorConfig,
    InterventionConfig,
    RandomConfig,
    RemoveConfig,
    TracinConfig,
    UnitConfig,
)
from mda.schema.run import (
    DataConfig,
    EmbeddedConfig,
    EmergenceConfig,
    ModelConfig,
    SyntheticConfig,
    TokensConfig,
    TrainingConfig,
)
from mda.schema.setting import Group, setting


@dataclass
class ReportConfig(Group):
    """Tables and figures."""

    key: ClassVar[str] = "report"
    top_heads: int = setting(5, "heads in the table of the strongest", low=1)
    samples: int = setting(50, "highest and lowest samples that are shown with their text", low=1)
    dpi: int = setting(150, "resolution of figures, dots per inch", low=30)


@dataclass
class LoggerConfig(Group):
    """Where metrics go besides the CSV that is always written."""

    key: ClassVar[str] = "logger"
    name: str = setting("csv", "csv: nowhere else; wandb: Weights & Biases", one_of=("csv",))


@dataclass
class WandbConfig(LoggerConfig):
    """Weights & Biases; offline runs are uploaded with `wandb sync`."""

    name: str = setting("wandb", "csv: nowhere else; wandb: Weights & Biases", one_of=("wandb",))
    mode: str = setting("offline", "offline needs no account", one_of=("offline", "online"))
    project: str = setting("mda", "project, one for each study")
    entity: str | None = setting(None, "user or team, null: your default")
    group: str | None = setting(None, "group of runs, null: the sweep's or run's name")


@dataclass
class Config(Group):
    """All groups, and what belongs to none."""

    seed: int = setting(
        0, "seed of initial weights and of the stream's order", low=0, high=2**32 - 1
    )
    name: str = setting("run", "folder of the run under outputs/runs/<program>/")
    output_dir: str = setting("outputs", "folder of store/, runs/ and reports/")
    data: DataConfig = field(default_factory=EmbeddedConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    emergence: EmergenceConfig = field(default_factory=EmergenceConfig)
    unit: UnitConfig = field(default_factory=UnitConfig)
    estimator: EstimatorConfig = field(default_factory=EkfacConfig)
    intervention: InterventionConfig = field(default_factory=RemoveConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    logger: LoggerConfig = field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[\w.,=+-]+", self.name) or self.name.startswith("."):
            raise self._refuse("name", "letters, digits and any of _ . , = + -")


OPTIONS: dict[str, dict[str, type[Group]]] = {
    "data": {"embedded": EmbeddedConfig, "synthetic": SyntheticConfig, "tokens": TokensConfig},
    "estimator": {"ekfac": EkfacConfig, "tracin": TracinConfig, "random": RandomConfig},
    "intervention": {"remove": RemoveConfig, "augment": AugmentConfig, "control": ControlConfig},
    "logger": {"csv": LoggerConfig, "wandb": WandbConfig},
}
"""Groups whose options differ in kind, and the class of each."""
