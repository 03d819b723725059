"""From the name of an implementation, `module:class`, to the thing itself."""

from __future__ import annotations

from mda.estimator.estimator import Estimator
from mda.schema import EstimatorConfig, UnitConfig
from mda.schema.plugins import implementation
from mda.unit.kind import Materials, UnitKind


def estimator_of(settings: EstimatorConfig) -> Estimator:
    """The estimator that these settings belong to."""
    return implementation(settings.estimator)(settings)


def kind_of(settings: UnitConfig, materials: Materials) -> UnitKind:
    """The kind of unit that these settings belong to."""
    return implementation(settings.kind)(settings, materials)


def module_of(name: str) -> str:
    """The module of an implementation's name: its source is part of a key."""
    return name.partition(":")[0]
