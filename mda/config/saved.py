"""A finished run's configuration, read back through the schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from mda import schema
from mda.config.composer import typed
from mda.config.jobs import FILE, recorded
from mda.config.mistakes import explain
from mda.schema import Config, ConfigError
from mda.schema.setting import show


@dataclass(frozen=True)
class Saved:
    """A run's folder: its program, its configuration, and what has been edited since."""

    folder: Path
    program: str
    config: Config
    edited: tuple[str, ...]  # a sentence for each key that config.yaml has otherwise than the run
    versions: Mapping[str, str | None]
    git: Mapping[str, Any]


def read_saved(folder: Path) -> Saved:
    """Read `config.yaml` through the schema, and compare it with what `job.json` says was run.

    Raises ConfigError, one sentence, for a folder that is no run's and for a configuration that
    the schema refuses.
    """
    from mda import store

    try:
        job = store.read_json(folder / FILE)
        given = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{folder} is refused; accepted: the folder of a run with config.yaml and {FILE} "
            f"({type(error).__name__}: {error})"
        ) from error
    edited = tuple(
        f"{key} is {show(now)} in {folder / 'config.yaml'} and was {show(then)} in the run"
        for key, then, now in differences(job["config"], given)
    )
    config = through_schema(given)
    return Saved(folder, job["program"], config, edited, job["versions"], job["git"])


@contextmanager
def repeating(saved: Saved, folder: Path, output_dir: Path) -> Iterator[Config]:
    """The saved configuration for a run into another folder and store, without W&B."""
    content = asdict(saved.config) | {"output_dir": str(output_dir), "logger": {"name": "csv"}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    with recorded(folder, saved.program, (), content):
        yield through_schema(content)


def through_schema(content: Mapping[str, Any]) -> Config:
    """A resolved configuration as the schema's objects, every value and rule checked."""
    try:
        root = OmegaConf.structured(Config)
        for group, options in schema.OPTIONS.items():
            name = (content.get(group) or {}).get("name")
            if name not in options:
                raise ConfigError(
                    f"{group}.name={show(name)} is refused; accepted: {', '.join(options)}"
                )
            root[group] = OmegaConf.structured(options[name])
        return typed(OmegaConf.merge(root, dict(content)), None)  # type: ignore[arg-type]
    except Exception as error:
        raise explain(error) from error


def differences(then: object, now: object, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, value then, value now) for every leaf that differs; None where there is none."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*then, *now]):
            yield from differences(then.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    elif then != now:
        yield key, then, now
