"""The page of the leaderboard of the committed tables; `experiments/results.py` writes it."""

from __future__ import annotations

from pathlib import Path

from mda import store
from mda.analysis.leaderboard import ABOUT, Tables, leaderboard, read_tables
from mda.report.leaderboard import all_comparisons, meanings, page
from mda.schema import ReportConfig

FIRST = "default"  # the preset that comes first


def leaderboard_page(results: Path, config: ReportConfig) -> str:
    """Returns the page of the committed tables in `results`, a leaderboard for each preset.

    Raises ValueError where runs of one preset do not belong together.
    """
    presets: dict[str, list[Path]] = {FIRST: []}
    for place in sorted(path.parent for path in results.glob(f"*/{ABOUT}")):
        presets.setdefault(store.read_json(place / ABOUT)["settings"]["name"], []).append(place)
    made = "Made by `python experiments/results.py` from the tables that lie here; do not edit."
    lines = ["# Leaderboard", "", made, "", meanings(config), ""]
    for preset, places in presets.items():
        if not places:
            continue
        tables = read_tables(places)
        refuse_mixed(preset, tables)
        board = leaderboard(tables, config.confidence, config.resamples)
        lines += [f"## `truth={preset}`", "", *page(tables, board, all_comparisons(tables, config))]
    return "\n".join([*lines, ""])


def refuse_mixed(preset: str, tables: Tables) -> None:
    """Raises ValueError where a seed was measured twice, or runs have different corpora.

    Two seeds with the same initial weights and the same order of samples are one seed.
    """
    seeds = [about["seed"] for about in tables.about]
    if twice := [seed for seed in sorted(set(seeds)) if seeds.count(seed) > 1]:
        raise ValueError(f"truth={preset}: seed {twice[0]} has two folders; expected one")
    origins = [origin for about in tables.about if (origin := about["fingerprints"].get("origin"))]
    if len(set(origins)) < len(origins):
        raise ValueError(f"truth={preset}: two seeds are copies of each other; expected one")
    if len({about["fingerprints"]["corpus"] for about in tables.about}) > 1:
        raise ValueError(f"truth={preset}: runs of different corpora; expected truth.name=another")
