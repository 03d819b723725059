"""Every way to get a configuration wrong, as one sentence: key, value, what is accepted."""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from mda.config.files import groups, options
from mda.config.words import advice
from mda.schema import ConfigError
from mda.schema.keys import accepted_at, settings, unknown_key
from mda.schema.setting import nearest

PLUGINS = ("joblib", "submitit_local", "submitit_slurm")  # Hydra's launchers of other packages


def explain(error: BaseException, overrides: Sequence[str] = ()) -> ConfigError:
    """Returns any error of composing `overrides` as one sentence with what is accepted.

    An error that is unrelated to the configuration is raised again unchanged.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for link in chain:
        if isinstance(link, ConfigError):
            return link
    files = [match[1] for link in chain if (match := re.match(r"In '(\S+)':", str(link)))]
    for link in reversed(chain):
        if message := _sentence(link, overrides):
            inside = files and not isinstance(link, MissingConfigException)
            return ConfigError(message + (f" (in {files[0]}.yaml)" if inside else ""))
    if not isinstance(error, HydraException | OmegaConfBaseException | yaml.YAMLError | OSError):
        raise error
    return ConfigError(" ".join(str(error).split()))


def refuse_illegal(given: Sequence[Override]) -> None:
    """Raises ConfigError for what Hydra allows: removing settings, and adding unknown ones."""
    for item in given:
        key = item.key_or_group
        if of_hydra(item):
            continue
        if item.is_delete() and key != "experiment":
            raise ConfigError(f"{item.input_line} takes a setting away; expected another value")
        if item.is_add() and key not in settings() and key not in groups():
            raise ConfigError(unknown_key(key, groups()))


def of_hydra(item: Override) -> bool:
    """Returns whether an override concerns Hydra itself."""
    return item.key_or_group.startswith("hydra")


def _sentence(error: BaseException, overrides: Sequence[str]) -> str | None:
    text = str(error)
    if isinstance(error, MissingConfigException):
        return _missing_file(error)
    if isinstance(error, OverrideParseException):
        said = f"{error.override} cannot be read; expected key=value, such as model.n_heads=4"
        return said + advice(str(error.override))
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        place = f"{mark.name}, line {mark.line + 1}" if mark else "a file"
        return f"{place} is no valid YAML: {error.problem}"
    if isinstance(error, MissingMandatoryValue):
        key = str(error.full_key or text.rpartition(" ")[2])
        return f"{key} is not given; expected {accepted_at(key, missing=True)}"
    if isinstance(error, InterpolationResolutionError) and error.full_key:
        return f"{error.full_key} refers to what does not exist: {text.splitlines()[0]}"
    if isinstance(error, ValidationError) and error.full_key:
        return _wrong_type(str(error.full_key), text, overrides)
    if match := re.search(r"Key '.*full_key: (\S+)\s.*object_type=(\w+)", text, re.DOTALL):
        return unknown_key(match[1], groups(), match[2])
    if match := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(match[1], groups())
    return None


def _wrong_type(key: str, text: str, overrides: Sequence[str]) -> str:
    given = [line.partition("=")[2] for line in overrides if line.partition("=")[0] == key]
    if not given and (match := re.search(r"[Vv]alue '(.*?)'", text, re.DOTALL)):
        given = [match[1]]
    value = f"={given[-1]}" if given else ""
    return f"{key}{value} is invalid; expected {accepted_at(key)}"


def _missing_file(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    known = list(error.options or options(group))
    if not group:
        return f"--config-name {option} does not exist; expected {', '.join(known)}"
    if group == "hydra/launcher" and option in PLUGINS:
        brings = "pip install 'mechanistic-data-attribution[launchers]' brings it"
        return f"{group} needs the plugin for {option}; {brings}"
    close = nearest(option, known)
    return f"{group}={option} does not exist{close}; expected {', '.join(known)}"
