"""Composes the command line to a checked `mda.schema.Config`; the only place that knows Hydra.

A program (mda/programs) hands its function to `main`. The command line is composed and checked
first, in a sweep for every job. A mistake ends the program with one sentence and exit code 2 before
anything heavy is imported or anything is written. Then Hydra runs the function, once or as a sweep,
with the typed configuration and the run's folder.
"""

from mda.config.command import check, main, prepared
from mda.config.composer import compose
from mda.config.files import conf_dir
from mda.config.jobs import command_of, next_command, overrides_of
from mda.config.mistakes import explain
from mda.config.saved import Saved, placed, read_saved, repeating
from mda.config.words import setting_word

__all__ = [
    "Saved", "check", "command_of", "compose", "conf_dir", "explain", "main",
    "next_command", "overrides_of", "placed", "prepared", "read_saved", "repeating",
    "setting_word",
]  # fmt: skip
