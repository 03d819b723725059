"""Where the YAML files are, and which groups and options they make."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """Folder of the YAML files: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def groups() -> list[str]:
    """Groups of conf/, without Hydra's own."""
    folders = (path.name for path in conf_dir().iterdir() if path.is_dir())
    return sorted(name for name in folders if name != "hydra")


def options(group: str) -> list[str]:
    """Options of a group: its YAML files."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
