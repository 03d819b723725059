"""Compare arms: the effects of the edits on the unit, beside those of random edits.

Reads finished arms of mda run (report.runs: folders of arms or of whole sweeps) and writes the
effects with intervals and permutation tests, a verdict for every claim of the study (study=...,
conf/study), figures, and one self-contained page that opens without a network. `report.pack` keeps
the runs as one table, which can be read in place of their folders.
"""

from pathlib import Path
from typing import Any

from mda.config import next_command
from mda.schema import Config, ConfigError

NEEDS = ("study", "report")


def compare(config: Config, folder: Path) -> None:
    """Compares the arms of `report.runs` and writes tables, figures and the page into `folder`."""
    compared(config, folder, next_command("compare", folder))
    print(f"page: {folder / 'report.html'}")
    print(folder)


def compared(config: Config, folder: Path, command: str) -> dict[str, Any]:
    """Compares the arms of report.runs, prints the tables and returns the results."""
    from mda.report.compare import compare as compare_arms
    from mda.report.samples import traces_of

    report = config.report
    runs, traces = ([Path(name) for name in names] for names in (report.runs, report.traces))
    try:
        traces = traces or traces_of(runs, Path(config.output_dir) / "runs")
        return compare_arms(runs, folder, config.study, report, traces, command, config.seed)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"report.runs={report.runs}: {error}") from error
