"""The `mda` command: the programs, and the store in which their work is kept."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mda.programs import start
from mda.terminal import at_terminal

PROGRAMS = {
    "quickstart": "the whole causal result for one seed: base run, trace, arms, comparison",
    "train": "train a base run and watch its units emerge",
    "train_sae": "train a sparse autoencoder on a base run's activations",
    "trace": "find a unit and score the samples of its window",
    "run": "one arm: edit the stream, retrain the window, watch the unit",
    "plan": "what a `run` with the same words would build, and how long it would take",
    "motifs": "what the samples of highest influence have in common, as a file to edit",
    "synthesize": "token rows made from motifs, and the rows to compare them with",
    "compare": "arms against control and random edits: effects, tests, verdicts, one page",
    "truth": "how well estimators predict what retraining does to a unit (LDS): a leaderboard",
    "view": "the newest page, or a run's, in a browser",
    "push": "a run as a data set with a card, for the Hugging Face hub",
    "reproduce": "a finished run again, every value compared",
    "wandb_report": "the comparison as a W&B report",
    "store": "what has been computed: list it, check it, clean it up",
}
COMPLETION = "-sc"
WITHOUT_SETTINGS = ("push", "reproduce", "store", "view")
"""Programs whose words are options and paths."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program that the first word names with the other words; returns the exit code."""
    with at_terminal():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    if name in ("-h", "--help"):
        print(help_text())
        return 0
    if name == COMPLETION:
        return complete(rest)
    if name not in PROGRAMS:
        print(f"error: mda {name} is invalid; expected {', '.join(PROGRAMS)}", file=sys.stderr)
        return 2
    if name == "store":
        from mda.programs import store

        return store.main(rest)
    _start(name, rest)
    return 0


def help_text() -> str:
    """Returns the programs, one line each."""
    lines = [f"  {name:<14}{about}" for name, about in PROGRAMS.items()]
    return "\n".join(
        [
            "Usage: mda PROGRAM [group=option ...] [key=value ...]",
            "",
            *lines,
            "",
            "mda PROGRAM --help lists every setting of a program.",
            f'eval "$(mda {COMPLETION} install=bash)" completes programs and settings in bash.',
        ]
    )


def complete(rest: Sequence[str]) -> int:
    """Completes a shell's words with Hydra, which knows one program only, after its name."""
    line = os.environ.get("COMP_LINE", "").lstrip()
    typed = line.split()
    if rest[:1] and rest[0].startswith("query="):
        if len(typed) < 2 or (len(typed) == 2 and not line[-1].isspace()):
            print(" ".join(PROGRAMS))
            return 0
        if typed[1] not in PROGRAMS or typed[1] in WITHOUT_SETTINGS:
            return 0
        os.environ["COMP_LINE"] = line.removeprefix(typed[0]).lstrip()
        _start(typed[1], [COMPLETION, *rest])
        return 0
    _start("train", [COMPLETION, *rest])
    return 0


def _start(name: str, rest: Sequence[str]) -> None:
    if name == "plan":
        name, rest = "run", [*rest, *(["--dry-run"] if COMPLETION not in rest else [])]
    sys.argv = ["mda", *rest]
    start(name)


if __name__ == "__main__":
    raise SystemExit(main())
