"""Regenerate sweeps/results: tables, figures and README.md, out of what lies there.

A folder of sweeps/results is a study's: it has the name of a file of conf/study, with `-` and the
model where several sizes were run, and the runs as one table of curves and one of runs. In
sweeps/results/truth each folder has the tables of one run of the benchmark of estimators; its page
and the leaderboard of the main README are made from them.
Nothing is trained.
"""

import shutil
from pathlib import Path

from mda.config import compose, main
from mda.schema import Config

NEEDS = ("report",)
HOME = Path(__file__).parents[1]
RESULTS = HOME / "sweeps" / "results"
IN_README = "fresh_seeds"  # the study whose table stands in the main README

ABLE = (  # arms of that study whose models the README says to be able to do what
    "remove mask ekfac top 10 %",
    "remove mask repetition top 10 %",
    "remove mask random, as ekfac top 10 % by label, without its samples",
    "remove mask random 10 %",
    "augment duplicate ekfac top 10 %",
    "augment duplicate random 10 %",
)
TOKENS = (  # claims of the study of tokens that the README has, the others being on the page
    "samples_lower", "tokens_lower", "tokens_do_what_samples_do", "tokens_beat_their_samples",
    "lowest_tokens_raise", "tokens_beat_repetition", "tokens_beat_ten_times_repetition",
    "repetitions_are_the_cause", "these_repetitions_are_the_cause", "words_do_not_matter",
)  # fmt: skip
SIZES = ("nano", "nano-large", "nano-xlarge")  # models of the study of scales
OTHER_HEADS = {  # studies whose claims on the baseline stand below it
    "previous_token_head": "The previous-token head: ",
    "second_previous_token_head": "The head that attends two tokens back: ",
}


def readme_lines(confidence: float) -> dict[str, list[str]]:
    """What the main README says of results, place by place, from the tables that are kept."""
    from study_pages import (
        arms_table,
        baseline_claims,
        behaviour_table,
        claims_by_size,
        effects_of,
        sizes_table,
        study_table,
        verdict_lines,
    )

    studies = {name: compose([f"study={name}"]).study for name in (IN_README, *OTHER_HEADS)}
    lines = study_table(RESULTS / IN_README, studies[IN_README], confidence)
    for name, about in OTHER_HEADS.items():
        lines += baseline_claims(RESULTS / name, studies[name], about)
    effects = effects_of(RESULTS / IN_README)
    claims = verdict_lines(RESULTS / "tokens", compose(["study=tokens"]).study, TOKENS)
    sizes = {size: RESULTS / f"scales-{size}" for size in SIZES}
    return {
        "study": lines,
        "behaviour": behaviour_table(effects, ABLE),
        "tokens": [*arms_table(RESULTS / "tokens", confidence), "", *claims],
        "sizes": [*sizes_table(sizes), "", *claims_by_size(sizes)],
    }


def results(config: Config, folder: Path) -> None:
    from leaderboard_page import leaderboard_pages
    from study_pages import KEPT, fill, results_page, study_of

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
    (RESULTS / "README.md").write_text(results_page(studies, report.confidence), "utf-8")
    readme = HOME / "README.md"
    for place, lines in readme_lines(report.confidence).items():
        readme.write_text(fill(readme.read_text("utf-8"), place, lines), "utf-8")
    for path, text in leaderboard_pages(RESULTS / "truth", readme, report).items():
        path.write_text(text, "utf-8")
    print(RESULTS / "README.md")
    print(folder)


if __name__ == "__main__":
    main(results, NEEDS)
