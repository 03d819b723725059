"""Open the newest page, or that of a named run, in a browser, and print its path.

Pages are those of comparisons and quickstarts (report.html) and of traces (top_samples.html).
"""

from __future__ import annotations

import argparse
import sys
import webbrowser
from pathlib import Path

from mda.schema import ConfigError

PAGES = ("report.html", "top_samples.html")


def page_of(run: Path | None, outputs: Path) -> Path:
    """Returns the page of a run, or without one the newest page under `outputs`.

    Raises ConfigError where there is none.
    """
    if run is None:
        pages = (path for name in PAGES for path in (outputs / "runs").rglob(name))
        found = [
            path for path in pages if path.with_name("job.json").is_file()
        ]  # not of a data set
        if not found:
            raise ConfigError(
                f"--outputs {outputs} has no page; expected one with a finished quickstart, "
                "trace or comparison"
            )
        return max(found, key=lambda path: path.stat().st_mtime)
    for name in PAGES:
        if (run / name).is_file():
            return run / name
    raise ConfigError(
        f"{run} has no page; expected the folder of a finished quickstart, trace or comparison"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mda view",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, nargs="?", help="folder of a run; default the newest")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="folder of runs/")
    return parser


def start() -> None:
    """Runs the program from the command line."""
    args = _parser().parse_args()
    try:
        page = page_of(args.run, args.outputs)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    print(page, flush=True)
    if not webbrowser.open(page.resolve().as_uri()):
        print("no browser was found; open the page yourself", file=sys.stderr)
