"""Plugins: options, head metrics, sections and model families from outside this package.

A plugin is a module that calls `add_option`, `add_metric`, `add_section` or `add_family` when it is
imported.
Modules are named by the environment variable MDA_PLUGINS, separated by commas, or by an installed
package's entry points in the group `mda.plugins`. A YAML file in a folder given by --config-dir
makes the option choosable: `estimator=mine`. CONTRIBUTING.md shows one of each.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from mda.schema.metrics import HEAD_METRICS, HeadMetric
from mda.schema.model import FAMILIES
from mda.schema.root import OPTIONS
from mda.schema.sections import LAST, SECTIONS, Section
from mda.schema.setting import ConfigError, Group

VARIABLE = "MDA_PLUGINS"


def add_option(group: str, name: str, settings: type[Group]) -> None:
    """Registers `group=name` as an option whose settings are those of a dataclass.

    For `unit` and `estimator` the class variable `kind` or `estimator` names the implementation,
    `module:class`. Raises ConfigError for a group without options or a name that is taken.
    """
    if group not in OPTIONS:
        raise ConfigError(f"a plugin adds to {group}; expected {', '.join(OPTIONS)}")
    if OPTIONS[group].get(name, settings) is not settings:
        raise ConfigError(f"a plugin adds {group}={name}, which exists already")
    OPTIONS[group][name] = settings


def add_family(model_type: str, adapter: str) -> None:
    """Registers an adapter, `module:class`, for the models of a config.json's model_type."""
    FAMILIES[model_type] = adapter


def add_metric(metric: HeadMetric) -> None:
    """Registers a metric of heads, which every curve measures and units can be found by.

    Raises ConfigError for a name taken.
    """
    if HEAD_METRICS.get(metric.name, metric) != metric:
        raise ConfigError(f"a plugin adds the head metric {metric.name}, which exists already")
    HEAD_METRICS[metric.name] = metric


def add_section(section: Section) -> None:
    """Adds a section to the comparison's page. Raises ConfigError for a name taken."""
    if {**SECTIONS, LAST.name: LAST}.get(section.name, section) != section:
        raise ConfigError(f"a plugin adds the section {section.name}, which exists already")
    SECTIONS[section.name] = section


def implementation(name: str) -> Any:
    """Imports the module of `module:thing` and returns the thing."""
    module, _, thing = name.partition(":")
    return getattr(import_module(module), thing)


@cache
def load_plugins() -> None:
    """Imports every plugin once. Raises ConfigError for a module that is not there."""
    for name in filter(None, os.environ.get(VARIABLE, "").split(",")):
        try:
            import_module(name.strip())
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{VARIABLE}={name}: {error}; expected modules on the path"
            ) from error
    for entry in entry_points(group="mda.plugins"):
        entry.load()
