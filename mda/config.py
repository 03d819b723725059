"""From the command line to a checked `mda.schema.Config`: the one place that knows Hydra.

A program of experiments/ hands its function to `main`. The command line is composed and checked
first, for a sweep every job of it, and a mistake ends the program with one sentence and exit code
2 before anything is imported, computed or written. Then Hydra runs the function, once or as a
sweep, with the typed configuration and the run's folder.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

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
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from mda import schema
from mda.help_page import help_page
from mda.schema import Config, ConfigError

Program = Callable[[Config, Path], None]
EXHAUSTIVE = 64  # a sweep of more jobs is checked one alternative at a time


def conf_dir() -> Path:
    """Folder of the YAML files: inside an installed package, beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def register() -> None:
    """Make the dataclasses known to Hydra as `schema/...`, which the YAML files refer to."""
    store = ConfigStore.instance()
    root = OmegaConf.structured(Config)
    for group, options in schema.OPTIONS.items():
        root[group] = MISSING  # the option chosen brings its own class
        for name, cls in options.items():
            store.store(group=f"schema/{group}", name=name, node=cls, package=group)
    store.store(group="schema", name="config", node=root, package="_global_")


def compose(
    overrides: Sequence[str] = (), groups: Sequence[str] | None = None, name: str = "config"
) -> Config:
    """The checked configuration for these overrides, for tests and notebooks.

    Raises ConfigError, one sentence. Rules between groups concern `groups` only, where given.
    """
    with _composer():
        try:
            return _typed(hydra.compose(name, list(overrides)), groups)
        except Exception as error:
            raise explain(error) from error


def main(program: Program, needs: Sequence[str]) -> None:
    """Run `program(config, folder)` as the command line says; never returns after a mistake.

    `needs` are the groups that the program uses: `--help` shows these, and the rules between
    groups are checked among these. The module docstring of the program is the head of its help.
    """
    args = _arguments(program, needs)
    try:
        if not (args.hydra_help or args.shell_completion or args.info):
            check(args, needs)
    except ConfigError as error:
        _refuse(error)
    task = _task(program, needs)
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()


def check(args: Any, needs: Sequence[str] | None) -> None:
    """Compose and check every job that a parsed command line asks for. Raises ConfigError."""
    name = args.config_name or "config"
    with _composer(args.config_path, args.config_dir):
        try:
            given = OverridesParser.create().parse_overrides(args.overrides)
            # Hydra's own settings and the choice of presets say whether this is a sweep.
            shape = [item for item in given if "." not in item.key_or_group or _of_hydra(item)]
            fixed = [str(item.input_line) for item in shape if not item.is_sweep_override()]
            node = hydra.compose(name, fixed, return_hydra_config=True).hydra
            loader = GlobalHydra.instance().config_loader()
            if args.multirun or node.mode == RunMode.MULTIRUN:
                lines = [f"{key}={value}" for key, value in (node.sweeper.get("params") or {}).items()]
                parser = OverridesParser.create(config_loader=loader)
                given = parser.parse_overrides(lines) + given
            elif sweep := next((item for item in given if item.is_sweep_override()), None):
                raise ConfigError(
                    f"{sweep.input_line} names several values; accepted: one value, a list as "
                    f"[a,b], or a sweep over them with -m"
                )
            for job in _jobs(given):
                _typed(hydra.compose(name, job), needs)
        except Exception as error:
            raise explain(error) from error


def explain(error: BaseException) -> ConfigError:
    """Any error of composing a configuration as one sentence, with the nearest known name."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for one in chain:
        if isinstance(one, ConfigError):
            return one
    for one in chain:
        if message := _sentence(one):
            return ConfigError(message)
    if not isinstance(error, HydraException | OmegaConfBaseException | yaml.YAMLError | OSError):
        raise error
    return ConfigError(" ".join(str(error).split()))


def _sentence(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read; accepted: key=value, such as model.n_heads=4"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        place = f"{mark.name}, line {mark.line + 1}" if mark else "a file"
        return f"{place} is no valid YAML: {error.problem}"
    if isinstance(error, MissingMandatoryValue):
        key = str(error.full_key or text.rsplit(" ", 1)[-1])
        return f"{key} is not given; accepted: {_accepted(key)}"
    if isinstance(error, InterpolationResolutionError):
        return f"{error.full_key} refers to what does not exist: {text.splitlines()[0]}"
    if isinstance(error, ValidationError) and error.full_key:
        value = re.search(r"[Vv]alue '(.*?)'", text, re.DOTALL)
        given = f"={value[1]}" if value else ""
        return f"{error.full_key}{given} is refused; accepted: {_accepted(str(error.full_key))}"
    if isinstance(error, ConfigKeyError) or "Key '" in text:
        found = re.search(r"full_key: (\S+)", text)
        if found:
            return _unknown(found[1])
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown(match[1])
    return None


def _unknown(key: str) -> str:
    """Sentence for a key or group that does not exist."""
    types = key_types()
    parent = key.rpartition(".")[0]
    if parent in types and not is_dataclass(types[parent]):
        return f"{key} does not exist: {parent} is {_accepted(parent)}"
    inside = f"{parent}." if any(name.startswith(f"{parent}.") for name in types) else ""
    names = sorted(
        {name for name in types if name.startswith(inside) and "." not in name[len(inside) :]}
    )
    if not parent:
        names = sorted({*names, *groups()} - {"schema"})
    close = schema.nearest(key, [*names, *types])
    return f"{key} is no key of the configuration{close} accepted: {', '.join(names)}".replace(
        "configuration accepted", "configuration; accepted"
    )


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    known = error.options or options(group)
    if not known:
        return f"{error.missing_cfg_file} is no configuration file{schema.nearest(group, groups())}"
    close = schema.nearest(option, known) or ";"
    return f"{group}={option} does not exist{close} accepted: {', '.join(known)}"


def _accepted(key: str) -> str:
    parent, _, name = key.partition("[")[0].rpartition(".")
    for cls in _classes().get(parent, []):
        for item in fields(cls):
            if item.name == name:
                return schema.accepted(item)
    return "another value"


@functools.cache
def _classes() -> dict[str, list[type]]:
    """Every class that may stand at a key: `data` -> [EmbeddedConfig, ...], `unit.probe` -> ..."""
    found: dict[str, list[type]] = {}

    def walk(cls: type, key: str) -> None:
        found.setdefault(key, []).append(cls)
        for name, kind in get_type_hints(cls).items():
            if is_dataclass(kind) and isinstance(kind, type):
                below = f"{key}.{name}".lstrip(".")
                for option in schema.OPTIONS.get(below, {"": kind}).values():
                    walk(option, below)

    walk(Config, "")
    return found


def key_types() -> dict[str, Any]:
    """Full key of every setting and group -> its type."""
    return {
        f"{key}.{item.name}".lstrip("."): get_type_hints(cls)[item.name]
        for key, classes in _classes().items()
        for cls in classes
        for item in fields(cls)
    }


def groups() -> list[str]:
    """Groups of conf/, without Hydra's own."""
    return sorted(path.name for path in conf_dir().iterdir() if path.is_dir() and path.name != "hydra")


def options(group: str) -> list[str]:
    """Options of a group: its YAML files."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def _arguments(program: Program, needs: Sequence[str]) -> Any:
    parser = get_args_parser()
    parser.error = lambda message: _refuse(ConfigError(f"{message}; see --help"))
    args = parser.parse_args()
    if args.help:
        about = sys.modules[program.__module__].__doc__ or ""
        print(help_page(Path(sys.argv[0]).name, about, needs, {g: options(g) for g in groups()}))
        raise SystemExit(0)
    return args


def _task(program: Program, needs: Sequence[str]) -> Callable[[DictConfig], None]:
    @functools.wraps(program)  # Hydra names the job after the file of the wrapped function
    def task(cfg: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
        single = HydraConfig.get().mode == RunMode.RUN
        try:
            program(_typed(cfg, needs), folder)
        except ConfigError as error:
            if single:
                _refuse(error)
            raise CompactHydraException(f"error: {error}") from None

    return task


def _typed(cfg: DictConfig, groups: Sequence[str] | None) -> Config:
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    schema.validate(config, groups)
    return config


@contextmanager
def _composer(path: str | None = None, extra: str | None = None) -> Iterator[None]:
    GlobalHydra.instance().clear()
    register()
    folder = Path(path) if path else conf_dir()
    with hydra.initialize_config_dir(str(folder.resolve()), version_base="1.3"):
        if extra:
            search = GlobalHydra.instance().config_loader().get_search_path()
            search.append("command-line", f"file://{Path(extra).resolve()}")
        yield


def _of_hydra(item: Override) -> bool:
    return item.key_or_group.startswith("hydra")


def _jobs(given: Sequence[Override]) -> Iterator[list[str]]:
    """Overrides of each job; of a long sweep, each alternative once."""
    choices: dict[str, list[str]] = {}
    for item in given:
        if _of_hydra(item):
            continue
        key = item.get_key_element()
        if not item.is_sweep_override():
            choices[key] = [str(item.input_line)]
        elif item.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in item.sweep_string_iterator()]
    if math.prod(len(values) for values in choices.values()) <= EXHAUSTIVE:
        yield from map(list, itertools.product(*choices.values()))
        return
    first = {key: values[0] for key, values in choices.items()}
    for key, values in choices.items():
        for value in values:
            yield list({**first, key: value}.values())


def _refuse(error: ConfigError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)


register()
