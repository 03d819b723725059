"""The location of the YAML files, and the groups and options that they define."""

from __future__ import annotations

from pathlib import Path

SWEEPS = "sweeps"


def conf_dir() -> Path:
    """Returns the folder of the YAML files: in an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def groups() -> list[str]:
    """Returns the groups of conf/ without Hydra's own, and `sweeps`, which is beside conf/."""
    folders = [path.name for path in conf_dir().iterdir() if path.is_dir()]
    beside = [SWEEPS] if (conf_dir().parent / SWEEPS).is_dir() else []
    return sorted([name for name in folders if name != "hydra"] + beside)


def options(group: str) -> list[str]:
    """Returns the options of a group: its YAML files."""
    home = conf_dir().parent if group == SWEEPS else conf_dir()
    folder = home / group
    files = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml"))
    return sorted(path.as_posix() for path in files if path.parts[0] != "wandb")
