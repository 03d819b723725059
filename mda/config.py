"""From the command line to a checked `mda.schema.Config`: the one place that knows Hydra.

A program of experiments/ hands its function to `main`. The command line is composed and checked
first, for a sweep every job of it, and a mistake ends the program with one sentence and exit code
2 before anything heavy is imported and anything is written. Then Hydra runs the function, once or
as a sweep, with the typed configuration and the run's folder.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import re
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import (
    CompactHydraException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import (
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from mda import schema
from mda.help_page import help_page
from mda.schema import Config, ConfigError
from mda.schema.keys import accepted_at, settings, unknown_key
from mda.schema.setting import nearest

Program = Callable[[Config, Path], None]
EXHAUSTIVE = 16
"""A sweep of more jobs is checked one alternative at a time, not every combination: composing
one takes a quarter of a second, and Hydra does it again."""


def main(program: Program, needs: Sequence[str]) -> None:
    """Run `program(config, folder)` as the command line says; exit code 2 after a mistake.

    `needs` are the groups that the program uses: `--help` shows these, and the rules between
    groups are checked among these. The docstring of the program's module heads its help. Import
    what is heavy (torch, transformers) inside `program`, so that help and mistakes answer at once.
    """
    parser = get_args_parser()
    parser.error = lambda message: _refuse(ConfigError(f"{message}; see --help"))
    args = parser.parse_intermixed_args()
    flags = [word for word in sys.argv[1:] if word not in args.overrides]
    sys.argv[1:] = [*flags, *args.overrides]  # Hydra itself wants its flags first
    if args.help:
        about = sys.modules[program.__module__].__doc__ or ""
        name = Path(sys.argv[0]).name
        print(help_page(name, about, needs, {group: options(group) for group in groups()}))
        return
    try:
        if not (args.hydra_help or args.shell_completion or args.info):
            check(args, needs)
    except ConfigError as error:
        _refuse(error)
    run = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    with tempfile.TemporaryDirectory() as folder:
        if int(os.environ.get("RANK", "0")) > 0:  # of torchrun's processes the first writes
            sys.argv.append(f"hydra.run.dir={folder}")
        run(_task(program, needs))()


def compose(overrides: Sequence[str] = (), needs: Sequence[str] | None = None) -> Config:
    """The checked configuration for these overrides, for tests and notebooks.

    Raises ConfigError, one sentence. Rules between groups concern `needs` only, where given.
    """
    with _composer():
        try:
            _legal(OverridesParser.create().parse_overrides(list(overrides)))
            return _typed(hydra.compose("config", list(overrides)), needs)
        except Exception as error:
            raise explain(error, overrides) from error


def check(args: Namespace, needs: Sequence[str] | None) -> None:
    """Compose and check every job that a parsed command line asks for. Raises ConfigError."""
    name = args.config_name or "config"
    job = args.overrides
    extra = _search_path(args.config_dir)
    with _composer(args.config_path):
        try:
            parser = OverridesParser.create(GlobalHydra.instance().config_loader())
            given = parser.parse_overrides(args.overrides)
            _legal(given)
            swept = [item for item in given if item.is_sweep_override()]
            if not (swept or args.multirun):
                node, cfg = _with_hydra(name, args.overrides + extra)
                if node.mode != RunMode.MULTIRUN:
                    _typed(cfg, needs)
                    return
            else:  # presets and Hydra's own settings tell whether a sweep was meant
                fixed = [item for item in given if item not in swept]
                shape = [item for item in fixed if "." not in item.key_or_group or _of_hydra(item)]
                node, _ = _with_hydra(name, [str(item.input_line) for item in shape] + extra)
                if not (args.multirun or node.mode == RunMode.MULTIRUN):
                    raise ConfigError(
                        f"{swept[0].input_line} names several values; accepted: one value, a list "
                        f"as [a,b], or a sweep over them with -m"
                    )
            params = node.sweeper.get("params") or {}
            given = parser.parse_overrides([f"{k}={v}" for k, v in params.items()]) + given
            for job in _jobs(given):
                _typed(hydra.compose(name, job + extra), needs)
        except Exception as error:
            raise explain(error, job) from error


def explain(error: BaseException, overrides: Sequence[str] = ()) -> ConfigError:
    """Any error of composing `overrides` as one sentence with what is accepted.

    An error that has nothing to do with the configuration is raised again as it is.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for one in chain:
        if isinstance(one, ConfigError):
            return one
    files = [match[1] for one in chain if (match := re.match(r"In '(\S+)':", str(one)))]
    for one in reversed(chain):
        if message := _sentence(one, overrides):
            inside = files and not isinstance(one, MissingConfigException)
            return ConfigError(message + (f" (in {files[0]}.yaml)" if inside else ""))
    if not isinstance(error, HydraException | OmegaConfBaseException | yaml.YAMLError | OSError):
        raise error
    return ConfigError(" ".join(str(error).split()))


def _sentence(error: BaseException, overrides: Sequence[str]) -> str | None:
    text = str(error)
    if isinstance(error, MissingConfigException):
        return _missing_file(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read; accepted: key=value, such as model.n_heads=4"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        place = f"{mark.name}, line {mark.line + 1}" if mark else "a file"
        return f"{place} is no valid YAML: {error.problem}"
    if isinstance(error, MissingMandatoryValue):
        key = str(error.full_key or text.rpartition(" ")[2])
        return f"{key} is not given; accepted: {accepted_at(key)}"
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
    return f"{key}{value} is refused; accepted: {accepted_at(key)}"


def _missing_file(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    known = list(error.options or options(group))
    if not group:
        return f"--config-name {option} does not exist; accepted: {', '.join(known)}"
    close = nearest(option, known)
    return f"{group}={option} does not exist{close}; accepted: {', '.join(known)}"


def _legal(given: Sequence[Override]) -> None:
    """Refuse what Hydra would allow: taking settings away, and adding ones nobody reads."""
    for item in given:
        key = item.key_or_group
        if _of_hydra(item):
            continue
        if item.is_delete() and key != "experiment":
            raise ConfigError(f"{item.input_line} takes a setting away; accepted: another value")
        if item.is_add() and key not in settings() and key not in groups():
            raise ConfigError(unknown_key(key, groups()))


def conf_dir() -> Path:
    """Folder of the YAML files: inside an installed package, beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def groups() -> list[str]:
    """Groups of conf/, without Hydra's own."""
    folders = (path.name for path in conf_dir().iterdir() if path.is_dir())
    return sorted(name for name in folders if name != "hydra")


def options(group: str) -> list[str]:
    """Options of a group: its YAML files."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def _register() -> None:
    """Make the dataclasses known to Hydra as `schema/...`, which the YAML files refer to."""
    store = ConfigStore.instance()
    root = OmegaConf.structured(Config)
    for group, classes in schema.OPTIONS.items():
        root[group] = MISSING  # the option chosen brings its own class
        for name, cls in classes.items():
            store.store(group=f"schema/{group}", name=name, node=cls, package=group)
    store.store(group="schema", name="config", node=root, package="_global_")


def _task(program: Program, needs: Sequence[str]) -> Callable[[DictConfig], None]:
    @functools.wraps(program)  # Hydra names the job after the file of the wrapped function
    def task(cfg: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        single = HydraConfig.get().mode == RunMode.RUN
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
        try:
            program(_typed(cfg, needs), folder)
        except ConfigError as error:  # from data files and checkpoints, which only now are read
            if single:
                _refuse(error)
            raise CompactHydraException(f"error: {error}") from None

    return task


def _typed(cfg: DictConfig, needs: Sequence[str] | None) -> Config:
    config = OmegaConf.to_object(cfg)
    if not isinstance(config, Config):
        raise ConfigError("this configuration has no schema/config in its defaults list")
    schema.validate(config, needs)
    return config


@contextmanager
def _composer(folder: str | None = None) -> Iterator[None]:
    if folder and not (Path(folder).is_absolute() and Path(folder).is_dir()):
        raise ConfigError(f"--config-path {folder} is refused; accepted: an absolute path")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(folder or str(conf_dir()), version_base="1.3"):
        yield


def _search_path(folder: str | None) -> list[str]:
    """The override that makes Hydra look for options in one more folder."""
    if folder is None:
        return []
    if not Path(folder).is_dir():
        raise ConfigError(f"--config-dir {folder} is refused; accepted: a folder of YAML files")
    return [f"hydra.searchpath=['file://{Path(folder).resolve()}']"]


def _with_hydra(name: str, overrides: list[str]) -> tuple[DictConfig, DictConfig]:
    """Hydra's own settings, and the configuration without them."""
    cfg = hydra.compose(name, overrides, return_hydra_config=True)
    node = cfg.hydra
    with open_dict(cfg):
        del cfg["hydra"]
    return node, cfg


def _of_hydra(item: Override) -> bool:
    return item.key_or_group.startswith("hydra")


def _jobs(given: Sequence[Override]) -> Iterator[list[str]]:
    """Overrides of each job; of a range its ends, of a long sweep each alternative once."""
    choices: dict[str, list[str]] = {}
    for item in given:
        key = item.get_key_element()
        if not item.is_sweep_override():
            choices[key] = [str(item.input_line)]
        elif item.is_discrete_sweep():
            values = [f"{key}={value}" for value in item.sweep_string_iterator()]
            choices[key] = [values[0], values[-1]] if item.is_range_sweep() else values
    if math.prod(len(values) for values in choices.values()) <= EXHAUSTIVE:
        yield from map(list, itertools.product(*choices.values()))
        return
    first = {key: values[0] for key, values in choices.items()}
    yield list(first.values())
    for key, values in choices.items():
        for value in values[1:]:
            yield list({**first, key: value}.values())


def _refuse(error: ConfigError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)


_register()
