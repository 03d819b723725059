"""The whole configuration as plain dataclasses, and the rules its values must obey.

One class for each Hydra group, or one for each of its options where they differ in kind. A field
has a default, its meaning with the unit, and the accepted values; the command line's help and
errors are made from these. Only the standard library is imported here, so a wrong configuration is
refused before anything heavy is loaded.

Rules within a group are checked when its object is made, those between groups by `validate`.
"""

from mda.schema.arm import StudyArm
from mda.schema.attribution import (
    AugmentConfig,
    ControlConfig,
    EditConfig,
    InterventionConfig,
    RemoveConfig,
)
from mda.schema.base import BaseConfig, PublishedConfig
from mda.schema.capabilities import CapabilitiesConfig
from mda.schema.data import (
    DataConfig,
    EmbeddedConfig,
    HfConfig,
    PileConfig,
    SyntheticConfig,
    TemplateWeights,
    TokensConfig,
)
from mda.schema.estimator import (
    AtCheckpoint,
    Bm25Config,
    EkfacConfig,
    EmbeddingConfig,
    EstimatorConfig,
    ExactConfig,
    FileConfig,
    GradientNormConfig,
    LossConfig,
    NgramConfig,
    RandomConfig,
    RepetitionConfig,
    Requires,
    TracinConfig,
    UnrolledConfig,
)
from mda.schema.model import (
    CheckpointConfig,
    ModelConfig,
    PublishedModelConfig,
    ScratchConfig,
)
from mda.schema.motifs import MotifsConfig, SynthesisConfig
from mda.schema.root import (
    OPTIONS,
    Config,
    LoggerConfig,
    ReportConfig,
    TensorboardConfig,
    WandbConfig,
)
from mda.schema.rules import validate, validate_sizes
from mda.schema.run import EmergenceConfig, TrainingConfig
from mda.schema.sae import SaeConfig
from mda.schema.setting import ConfigError, Group, Unavailable, refuse
from mda.schema.study import REFERENCES, ClaimConfig, StudyConfig
from mda.schema.truth import TruthConfig
from mda.schema.unit import (
    DirectionConfig,
    HeadConfig,
    ModuleConfig,
    NeuronConfig,
    ProbeConfig,
    SaeFeatureConfig,
    UnitConfig,
)

__all__ = [
    "OPTIONS",
    "REFERENCES",
    "AtCheckpoint",
    "AugmentConfig",
    "BaseConfig",
    "Bm25Config",
    "CapabilitiesConfig",
    "CheckpointConfig",
    "ClaimConfig",
    "Config",
    "ConfigError",
    "ControlConfig",
    "DataConfig",
    "DirectionConfig",
    "EditConfig",
    "EkfacConfig",
    "EmbeddedConfig",
    "EmbeddingConfig",
    "EmergenceConfig",
    "EstimatorConfig",
    "ExactConfig",
    "FileConfig",
    "GradientNormConfig",
    "Group",
    "HeadConfig",
    "HfConfig",
    "InterventionConfig",
    "LoggerConfig",
    "LossConfig",
    "ModelConfig",
    "ModuleConfig",
    "MotifsConfig",
    "NeuronConfig",
    "NgramConfig",
    "PileConfig",
    "ProbeConfig",
    "PublishedConfig",
    "PublishedModelConfig",
    "RandomConfig",
    "RemoveConfig",
    "RepetitionConfig",
    "ReportConfig",
    "Requires",
    "SaeConfig",
    "SaeFeatureConfig",
    "ScratchConfig",
    "StudyArm",
    "StudyConfig",
    "SynthesisConfig",
    "SyntheticConfig",
    "TemplateWeights",
    "TensorboardConfig",
    "TokensConfig",
    "TracinConfig",
    "TrainingConfig",
    "TruthConfig",
    "Unavailable",
    "UnitConfig",
    "UnrolledConfig",
    "WandbConfig",
    "refuse",
    "validate",
    "validate_sizes",
]
