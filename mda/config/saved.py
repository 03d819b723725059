"""A finished run's configuration, read back through the schema.

The folder may come from another user: the size of what is read is limited, the text cannot refer to
anything outside of itself (no interpolation, no aliases), and relative paths are resolved from the
run's own working directory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from mda import schema
from mda.config.composer import typed
from mda.config.jobs import FILE, recorded
from mda.config.mistakes import explain
from mda.config.words import setting_word
from mda.schema import Config, ConfigError
from mda.schema.old_words import NO_SETTINGS, groups_now, setting_now
from mda.schema.setting import show

LIMIT = 1_000_000  # bytes of config.yaml and of the json files beside it
PATHS = (
    *("data.path", "data.labels", "data.tokenizer", "data.source", "data.dataset"),
    *("base.folder", "base.state", "model.source", "intervention.rows", "estimator.path"),
    *("unit.source", "unit.file", "unit.probe.file", "emergence.prompts"),
)


@dataclass(frozen=True)
class Saved:
    """A run's folder: its program, its configuration, and later edits of its files."""

    folder: Path
    program: str
    config: Config
    edited: tuple[str, ...]  # a sentence for each key that config.yaml has otherwise than the run
    versions: Mapping[str, str | None]
    git: Mapping[str, Any]
    used: Mapping[str, str]  # kind -> fingerprint; empty for a run that has not finished
    overrides: tuple[str, ...] = ()


class PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which can expand to more than fits in memory."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:  # type: ignore[override]
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(None, None, "an alias", event.start_mark)
        return super().compose_node(parent, index)


def read_saved(folder: Path) -> Saved:
    """Reads `config.yaml` through the schema and compares it with the run's `job.json`.

    Raises ConfigError for a folder that is not a run's and for a configuration that the schema
    refuses.
    """
    try:
        job = _mapping(json.loads(_bounded(folder / FILE)))
        given = _mapping(yaml.load(_bounded(folder / "config.yaml"), PlainLoader))
        done = folder / "summary.json"
        summary = _mapping(json.loads(_bounded(done))) if done.exists() else {}
        program, git = str(job["program"]), _mapping(job["git"])
        then, versions = _mapping(job["config"]), _mapping(job["versions"])
        directory, used = str(job.get("directory", ".")), _mapping(summary.get("fingerprints", {}))
        words = map(setting_now, map(str, job["overrides"]))
        overrides = tuple(word for word in words if word.isprintable())
    except (OSError, KeyError, TypeError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{folder} is invalid; expected the folder of a run with config.yaml and {FILE} "
            f"({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    _refuse_interpolation(given)
    edited = tuple(
        f"{key} is {show(now)} in {folder / 'config.yaml'} and was {show(then)} in the run"
        for key, then, now in differences(then, given)
    )
    config = through_schema(_with_paths(given, (folder / directory).resolve()), program)
    return Saved(folder, program, config, edited, versions, git, groups_now(used), overrides)


def placed(saved: Saved, outputs: Path) -> Saved:
    """Returns the same run with its store and its results in another outputs folder."""
    return replace(saved, config=replace(saved.config, output_dir=str(outputs)))


@contextmanager
def repeating(saved: Saved, folder: Path, output_dir: Path) -> Iterator[Config]:
    """Returns the saved configuration for a run into another folder and store, without W&B."""
    content = asdict(saved.config) | {"output_dir": str(output_dir), "logger": {"name": "csv"}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    with recorded(folder, saved.program, _words(saved, output_dir), content):
        yield through_schema(content, saved.program)


def through_schema(content: Mapping[str, Any], program: str) -> Config:
    """Returns a resolved configuration as checked objects of the schema."""
    content = groups_now(content)
    try:
        root = OmegaConf.structured(Config)
        for group, options in schema.OPTIONS.items():
            root[group] = OmegaConf.structured(_option(group, content.get(group), options))
        known = {name: _known(name, value) for name, value in content.items()}
        return typed(OmegaConf.merge(root, known), _needs(program))  # type: ignore[arg-type]
    except Exception as error:
        raise explain(error) from error


def _known(group: str, settings: Any) -> Any:
    """Returns a saved group without settings that no longer exist."""
    gone = NO_SETTINGS.get(group, ())
    return {k: v for k, v in settings.items() if k not in gone} if gone else settings


def _needs(program: str) -> Sequence[str] | None:
    """Returns the groups that a program reads; None, meaning all, for an unknown program."""
    try:
        return import_module(f"mda.programs.{program}").NEEDS if program.isidentifier() else None
    except (ImportError, AttributeError):
        return None


def differences(then: object, now: object, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Returns (key, value then, value now) for every leaf that differs."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*then, *now]):
            yield from differences(then.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    elif then != now:
        yield key, then, now


def _words(saved: Saved, output_dir: Path) -> list[str]:
    """Returns the run's overrides for a run elsewhere, with paths as they are read from here."""
    places, config = {"output_dir": str(output_dir)}, saved.config
    for key in PATHS:
        places[key] = str(reduce(lambda one, name: getattr(one, name, ""), key.split("."), config))
    given = [word for word in saved.overrides if not word.startswith(("output_dir=", "logger"))]
    keys = [word.partition("=")[0] for word in given]
    words = [
        setting_word(key, places[key]) if key in places else word
        for key, word in zip(keys, given, strict=True)
    ]
    return [*words, setting_word("output_dir", places["output_dir"]), "logger=csv"]


def _option(group: str, given: object, options: Mapping[str, type]) -> type:
    """Returns the class of a group's settings, by its name or, for a preset, by its keys."""
    settings = given if isinstance(given, dict) else {}
    name = settings.get("name")
    if isinstance(name, str) and name in options:
        return options[name]
    for option in options.values():
        if {field.name for field in fields(option)} == set(settings):
            return option
    raise ConfigError(f"{group}.name={show(name)} is invalid; expected {', '.join(options)}")


def _bounded(path: Path) -> str:
    """Returns the text of a regular file of at most LIMIT bytes."""
    if not path.is_file():  # nor a device or a pipe, which never end
        raise FileNotFoundError(f"{path.name} is no file")
    with path.open("rb") as file:
        content = file.read(LIMIT + 1)
    if len(content) > LIMIT:
        raise ValueError(f"{path.name} has more than {LIMIT:,} bytes")
    return content.decode()


def _mapping(content: object) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise TypeError(f"a mapping is expected, not {type(content).__name__}")
    return content


def _refuse_interpolation(content: object, key: str = "") -> None:
    if isinstance(content, dict):
        for name, value in content.items():
            _refuse_interpolation(value, f"{key}.{name}".lstrip("."))
    elif isinstance(content, list):
        for i, value in enumerate(content):
            _refuse_interpolation(value, f"{key}[{i}]")
    if isinstance(content, str) and "${" in content:
        raise ConfigError(f"{key}={show(content)} is invalid; expected a value without ${{...}}")


def _with_paths(content: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Makes relative paths absolute where the file exists in the run's working directory."""
    content = deepcopy(content)
    for key in PATHS:
        *groups, name = key.split(".")
        section: Any = content
        for group in groups:
            section = section.get(group) if isinstance(section, dict) else None
        value = section.get(name) if isinstance(section, dict) else None
        if isinstance(value, str) and value:
            path = directory / value
            if path.exists():
                section[name] = str(path)
    return content
