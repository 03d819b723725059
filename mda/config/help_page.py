"""The text of `--help`, made from the program's docstring, conf/ and the schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from mda.schema import OPTIONS, Config
from mda.schema.keys import settings
from mda.schema.setting import default_of, show


def help_page(
    program: str,
    about: str,
    needs: Sequence[str],
    options: Mapping[str, Sequence[str]],
    dry_run: bool = False,
) -> str:
    """Returns the help: the program's purpose, its groups and options, every setting, examples."""
    shown = [name for name in options if name in needs or name in ("experiment", "sweeps")]
    lines = [about.strip(), "", f"Usage: {program} [group=option ...] [key=value ...]", ""]
    lines += ["Groups, and the options of each (the default settings below are the schema's; an"]
    lines += ["option sets its own, shown by --cfg job):"]
    lines += [f"  {name:<13} {', '.join(options[name])}" for name in shown]
    lines += ["", "Settings of every program:"]
    lines += [_line(item.name) for item in fields(Config) if "meaning" in item.metadata]
    for name in needs:
        lines += ["", f"Settings of {name}:"]
        keys = [key for key in settings() if key.startswith(f"{name}.") and key != f"{name}.name"]
        lines += [_line(key) for key in keys if "meaning" in settings()[key][0][1].metadata]
    lines += [
        "",
        "Examples:",
        f"  {program} seed=1 training.total_steps=8000",
        f"  {program} experiment=smoke    everything at its smallest, in seconds",
        f"  {program} seed=0,1,2 -m       a sweep: one job for each seed",
        f"  {program} --cfg job           show the configuration, run nothing",
    ]
    if dry_run:
        lines += [f"  {program} --dry-run           what would be built, and what that takes"]
    lines += [
        "",
        "Each run gets a folder, outputs/runs/<program>/<name>; its path is printed last.",
    ]
    return "\n".join(lines)


def _line(key: str) -> str:
    group, _, _ = key.partition(".")
    places = settings()[key]
    item = places[0][1]
    owners = [option for option, _ in places if option]
    some = 0 < len(owners) < len(OPTIONS.get(group, {}))
    note = f" ({group}={' or '.join(owners)})" if some else ""
    value = default_of(item)
    given = f"{key}={'...' if value == '???' else show(value)}"
    return f"  {given:<40} {item.metadata['meaning']}{note}"
