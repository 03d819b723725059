"""Importing an implementation by its name, `module:class`."""

from __future__ import annotations

from mda.estimator.estimator import Estimator
from mda.schema import EstimatorConfig, UnitConfig
from mda.schema.plugins import implementation
from mda.unit.kind import Materials, UnitKind


def estimator_of(settings: EstimatorConfig) -> Estimator:
    """Returns the estimator of these settings."""
    return implementation(settings.estimator)(settings)


def kind_of(settings: UnitConfig, materials: Materials) -> UnitKind:
    """Returns the kind of unit of these settings."""
    return implementation(settings.kind)(settings, materials)


def module_of(name: str) -> str:
    """Returns the module of an implementation's name: its source is part of a key."""
    return name.partition(":")[0]
