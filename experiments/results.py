"""Regenerate sweeps/results: tables, figures and README.md, from its own tables.

A folder of sweeps/results belongs to a study: it is named like a file of conf/study, with `-` and
the model where several sizes were run, and holds the runs as one table of curves and one of runs.
In sweeps/results/truth each folder has the tables of one run of the benchmark of estimators, from
which its page is made. Nothing is trained.
"""

import shutil
from pathlib import Path

from mda.config import compose, main
from mda.schema import Config

NEEDS = ("report",)
HOME = Path(__file__).parents[1]
RESULTS = HOME / "sweeps" / "results"


def results(config: Config, folder: Path) -> None:
    """Regenerates the tables, figures and pages of sweeps/results."""
    from leaderboard_page import leaderboard_page
    from study_pages import KEPT, results_page, study_of

    from mda.report.compare import compare

    report = config.report
    studies = {}
    for place in sorted(path.parent for path in RESULTS.glob("*/runs.json")):
        study = compose([f"study={study_of(place)}"]).study
        summary = compare([place], folder / place.name, study, report)
        for name in KEPT:
            if (folder / place.name / name).exists():
                shutil.copyfile(folder / place.name / name, place / name)
        studies[place] = (study, summary["results"]["headline"])
    readme = (HOME / "README.md").read_text("utf-8")
    (RESULTS / "README.md").write_text(results_page(studies, report.confidence, readme), "utf-8")
    board = RESULTS / "truth" / "README.md"
    board.write_text(leaderboard_page(RESULTS / "truth", report), "utf-8")
    print(RESULTS / "README.md")
    print(folder)


if __name__ == "__main__":
    main(results, NEEDS)
