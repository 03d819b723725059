"""Where the YAML files are, and which groups and options they make."""

from __future__ import annotations

from pathlib import Path

SWEEPS = "sweeps"


def conf_dir() -> Path:
    """Folder of the YAML files: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def groups() -> list[str]:
    """Groups of conf/, without Hydra's own, and `sweeps`, which lies beside it in a checkout."""
    folders = [path.name for path in conf_dir().iterdir() if path.is_dir()]
    beside = [SWEEPS] if (conf_dir().parent / SWEEPS).is_dir() else []
    return sorted([name for name in folders if name != "hydra"] + beside)


def options(group: str) -> list[str]:
    """Options of a group: its YAML files."""
    home = conf_dir().parent if group == SWEEPS else conf_dir()
    folder = home / group
    found = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml"))
    return sorted(path.as_posix() for path in found if path.parts[0] != "wandb")
