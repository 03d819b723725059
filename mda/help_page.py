"""The text of `--help`, made from the program's docstring, conf/ and the schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass

from mda.schema import OPTIONS, Config, Group, show

WIDTH = 34


def help_page(
    program: str, about: str, needs: Sequence[str], options: Mapping[str, Sequence[str]]
) -> str:
    """What the program does, the groups it needs with their options, every setting, examples."""
    config = Config()
    used = [name for name in options if name in needs or name == "experiment"]
    lines = [about.strip(), "", f"Usage: python {program} [group=option] [key=value] ...", ""]
    lines += ["Groups (choose an option with group=option):"]
    lines += [f"  {name:<14}{', '.join(options[name])}" for name in used]
    lines += ["", "Settings (change one with key=value) and their defaults:"]
    lines += _settings("", config, skip=is_dataclass)
    for name in needs:
        chosen = getattr(config, name)
        lines += ["", *_settings(f"{name}.", chosen)]
        for option, cls in OPTIONS.get(name, {}).items():
            if not isinstance(chosen, cls) or cls is not type(chosen):
                known = {item.name for item in fields(chosen)}
                lines += _settings(f"{name}.", cls(), f" (with {name}={option})", known)
    lines += [
        "",
        "Examples:",
        f"  python {program} seed=1 model=nano training.total_steps=8000",
        f"  python {program} experiment=smoke         everything at its smallest, in seconds",
        f"  python {program} -m seed=0,1,2            a sweep: one job for each seed",
        f"  python {program} --cfg job                show the configuration, run nothing",
        "",
        "The run's folder is outputs/runs/<program>/<name>; its path is the last line printed.",
    ]
    return "\n".join(lines)


def _settings(
    prefix: str, group: Group, note: str = "", known: set[str] | None = None, skip=None
) -> list[str]:
    lines: list[str] = []
    for item in fields(group):
        value = getattr(group, item.name)
        if item.name in (known or ()) or (item.name == "name" and prefix):
            continue
        if is_dataclass(value):
            if not skip and isinstance(value, Group):
                lines += _settings(f"{prefix}{item.name}.", value, note)
            continue
        given = "(must be given)" if value == "???" else show(value)
        lines.append(f"  {f'{prefix}{item.name}={given}':<{WIDTH}} {item.metadata['meaning']}{note}")
    return lines
