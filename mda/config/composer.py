"""Composing YAML files, schema and overrides with Hydra into the schema's objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobRuntime
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict

from mda import schema
from mda.config.files import SWEEPS, conf_dir
from mda.config.jobs import CONFIG_DIR
from mda.config.mistakes import explain, refuse_illegal
from mda.schema import Config, ConfigError
from mda.schema.plugins import load_plugins
from mda.terminal import ctrl_c_waits


def compose(overrides: Sequence[str] = (), needs: Sequence[str] | None = None) -> Config:
    """Returns the checked configuration for these overrides.

    Raises ConfigError. With `needs`, only rules between these groups are checked.
    """
    extra, words = apart(overrides)
    with composer():
        try:
            refuse_illegal(OverridesParser.create().parse_overrides(words))
            return typed(composed("config", words + extra), needs)
        except Exception as error:
            raise explain(error, words) from error


@contextmanager
def composer(folder: str | None = None) -> Iterator[None]:
    """Yields Hydra, set up to compose from conf/ or another folder.

    Raises ConfigError for a folder that does not exist. A sweep in progress is unaffected: its next
    job gets the same name.
    """
    if folder and not (Path(folder).is_absolute() and Path(folder).is_dir()):
        raise ConfigError(f"--config-path {folder} is invalid; expected an absolute path")
    register()
    sweep, job = GlobalHydra.instance().hydra, JobRuntime.instance().get("name")
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(folder or str(conf_dir()), job, version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = sweep


def search_path(folder: str | None) -> list[str]:
    """Returns the override that makes Hydra look for options in one more folder."""
    if folder is None:
        return []
    if not Path(folder).is_dir():
        raise ConfigError(f"--config-dir {folder} is invalid; expected a folder of YAML files")
    return [f"hydra.searchpath=['file://{Path(folder).resolve()}']"]


def apart(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the search path of `--config-dir=<folder>` among the words, and the other words."""
    folders = [word.removeprefix(CONFIG_DIR) for word in words if word.startswith(CONFIG_DIR)]
    rest = [word for word in words if not word.startswith(CONFIG_DIR)]
    return search_path(folders[-1] if folders else None), rest


def with_hydra(name: str, overrides: list[str]) -> tuple[DictConfig, DictConfig]:
    """Returns Hydra's own settings, and the configuration without them."""
    cfg = composed(name, overrides, hydra_too=True)
    node = cfg.hydra
    with open_dict(cfg):
        del cfg["hydra"]
    return node, cfg


def composed(name: str, overrides: Sequence[str], hydra_too: bool = False) -> DictConfig:
    """Returns what Hydra composes from a configuration's name and overrides."""
    with ctrl_c_waits():
        return hydra.compose(name, list(overrides), return_hydra_config=hydra_too)


def typed(cfg: DictConfig, needs: Sequence[str] | None) -> Config:
    """Returns the schema's objects, checked.

    Raises ConfigError, or an error of OmegaConf.
    """
    with ctrl_c_waits():
        config = OmegaConf.to_object(cfg)
    if not isinstance(config, Config):
        raise ConfigError("this configuration has no schema/config in its defaults list")
    schema.validate(config, needs)
    return config


class Sweeps(SearchPathPlugin):
    """Makes the files of sweeps/ options of a group with that name: `sweeps=seeds`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        home = conf_dir().parent
        if (home / SWEEPS).is_dir():
            search_path.append("mda-sweeps", f"file://{home}")


@cache
def register() -> None:
    """Registers the dataclasses with Hydra as `schema/...`, which the YAML files refer to.

    Includes those of plugins. Raises ConfigError for a plugin that does not exist.
    """
    load_plugins()
    Plugins.instance().register(Sweeps)
    store = ConfigStore.instance()
    root = OmegaConf.structured(Config)
    for group, classes in schema.OPTIONS.items():
        root[group] = MISSING  # the option chosen brings its own class
        for name, cls in classes.items():
            store.store(group=f"schema/{group}", name=name, node=cls, package=group)
    store.store(group="schema", name="config", node=root, package="_global_")
