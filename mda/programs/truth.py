"""Measure how well estimators predict the effect of retraining on a unit, as a leaderboard.

Scores the samples of one window for several units by several estimators, then trains that window
again and again: without sets of samples (do summed scores rank the unit's metric?), without the
samples of highest score or with each of them twice, and the same from other initial weights. In a
stream with planted causes it counts how many are found. The cost of every estimator is given in
trainings of the window. All units share the first one's window, so that a retraining serves every
unit and estimator.

Results are kept in the store: if interrupted, the same command resumes. With
truth.finished_only=true nothing is built, and the tables show what the store has.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mda.config import command_of, compose, overrides_of
from mda.schema import Config, ConfigError, ScratchConfig, TruthConfig
from mda.schema.setting import refuse
from mda.stages.declared import SCORES, needs

NEEDS = (*needs(SCORES), "truth", "plan", "report")
OWN = ("unit", "estimator")  # groups that truth.units and truth.estimators choose


def refuse_transfer(config: Config) -> None:
    """Raises ConfigError where another seed does not change the initial weights."""
    transfer = config.truth.transfer
    if config.seed in transfer:
        raise ConfigError(f"truth.transfer={config.seed} is the seed itself; expected other seeds")
    if transfer and (config.base.published or not isinstance(config.model, ScratchConfig)):
        raise refuse("truth.transfer", transfer, "[]: another seed starts from the same weights")


def truth(config: Config, folder: Path) -> None:
    """Retrains the configured sets and writes the leaderboard into `folder`."""
    from mda.analysis.leaderboard import write_tables
    from mda.report.summary import write_summary
    from mda.report.truth import FILES, report_truth

    start, settings = time.perf_counter(), config.truth
    refuse_transfer(config)
    fixed = fixed_words(overrides_of(folder))
    # The training is the command's own: what it says of threads was decided by its launcher.
    units, estimators = (
        {words: replace(chosen(fixed, group, words), training=config.training) for words in wanted}
        for group, wanted in (("unit", settings.units), ("estimator", settings.estimators))
    )
    tables = measured(config, units, estimators)
    results = report_truth(tables, folder, config.report)
    if config.report.pack:
        write_tables(tables, Path(config.report.pack))
    (about,) = tables.about
    write_summary(
        folder,
        "truth",
        seed=config.seed,
        fingerprints=about["fingerprints"],
        results=results,
        files={name: what for name, what in FILES.items() if (folder / name).exists()},
        times={"total_s": time.perf_counter() - start},
        warnings=about["warnings"],
    )
    print(f"page: {folder / 'leaderboard.md'}")
    words = overrides_of(folder)
    if not any(word.startswith("sweeps=") for word in words):
        kept = [word for word in words if not word.startswith("seed=")]
        print(f"next, another seed: {command_of('truth', [*kept, f'seed={config.seed + 1}'])}")
    print(folder)


def measured(config: Config, units: Mapping[str, Config], estimators: Mapping[str, Config]) -> Any:
    """Returns all tables of one seed; each configuration of `units` has that unit's settings."""
    from mda import pipeline
    from mda.analysis.leaderboard import Tables
    from mda.stages import truth_tables as make
    from mda.stages.context import Context
    from mda.stages.found import FindOnly, NotBuilt
    from mda.stages.truth import Asked, Bench, other_initialisation
    from mda.training.available import check_devices

    settings = config.truth
    context = Context.of(config)
    check_devices(config.training)
    if settings.finished_only:
        context = replace(context, store=FindOnly(context.store.root))

    def bench(own: Mapping[str, Config], window: Any = None) -> Bench:
        first = next(iter(own.values()))
        _, base = pipeline.train(replace(context, config=first), NEEDS)
        asked = {name: Asked(c.unit, c.sae, c.intervention) for name, c in own.items()}
        return Bench.of(asked, base, window, context.at)

    print("1/4  base run and units")
    first, *rest = units
    try:
        window = _with_units(bench({first: units[first]})).window
    except NotBuilt as missing:
        raise ConfigError(
            f"truth.finished_only=true: {missing}; expected false, or an output_dir with the run"
        ) from missing
    known = [n for n in rest
             if make.finished(lambda n=n: _with_units(bench({n: units[n]}, window)))]  # fmt: skip
    settings = settings.of_units([first, *known])
    here = bench({name: units[name] for name in settings.units}, window)
    located = {name: one.name for name, one in here.located.items()}
    print(f"2/4  scores of {', '.join(f'{unit} {name}' for unit, name in located.items())}")
    traces: dict[str, dict[str, Any]] = {}
    for unit in settings.units:
        found = {e: make.finished(lambda u=unit, o=one: here.traced(u, o.estimator))
                 for e, one in estimators.items()}  # fmt: skip
        traces[unit] = {name: traced for name, traced in found.items() if traced is not None}
    print(f"3/4  up to {retrainings(settings):,} retrainings of the window")
    rows: dict[str, list[dict[str, Any]]] = {
        "subsets": list(make.subset_rows(here, settings, traces)),
        "edits": list(make.edit_rows(here, settings, traces)),
    }
    for seed in settings.transfer:
        others = {n: other_initialisation(units[n], here.corpus, seed) for n in settings.units}
        there = make.finished(lambda own=others: _with_units(bench(own, here.window)))
        if there is not None:
            rows["edits"] += make.edit_rows(here, settings, traces, ("remove",), there)
    print("4/4  tables")
    rows["planted"] = list(make.planted_rows(here, settings, traces))
    rows["estimators"] = list(make.estimator_rows(here, settings, traces))
    rows["tops"] = list(make.top_rows(here, settings, traces))
    rows["labels"] = list(make.label_rows(here, settings, traces))
    return Tables(rows, [about(here, config, located, rows)])


def about(
    bench: Any, config: Config, located: Mapping[str, str], rows: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """Returns the basis of one seed's tables: settings, versions, and how much was done."""
    from mda import store

    settings, n_units = config.truth, len(located)
    pairs = len(settings.units) * len(settings.estimators)
    edited = len(settings.edited) * len(settings.estimators) * len(settings.edits)
    own = [row for row in rows["edits"] if row["to_seed"] == row["seed"]]
    reruns = sum(row["reruns"] for row in rows["subsets"])
    return {
        "seed": config.seed,
        "units": dict(located),
        "estimators": list(settings.estimators),
        "window": [bench.window.start, bench.window.end],
        "samples": len(bench.stream.sample_ids),
        "planned": {
            "estimators": pairs,
            "sets": settings.subsets,
            "reruns of sets": settings.subsets * settings.reruns,
            "edits": 2 * edited,
            "edits of other initial weights": edited * len(settings.transfer),
        },
        "done": {
            "estimators": len(rows["estimators"]),
            "sets": len(rows["subsets"]) // n_units,
            "reruns of sets": reruns // n_units,
            "edits": len(own),
            "edits of other initial weights": len(rows["edits"]) - len(own),
        },
        "settings": asdict(settings),
        "fingerprints": {
            "corpus": bench.corpus.fingerprint,
            "base": bench.base.fingerprint,
            "origin": bench.origin,
        },
        "warnings": list(bench.at.store.warnings.values()),
        "versions": store.versions(),
        "git": store.git_state(),
    }


def preview(configs: Sequence[Config], side_by_side: int) -> None:
    """Prints the whole cost, as if nothing were in the store."""
    from mda.stages.preview import Estimates, print_costs

    print("as if nothing of it were in the store:")
    corpus = [(configs[0], "corpus")]
    each = (build for one in configs for build in builds(one))
    print_costs(Estimates([*corpus, *each]), side_by_side)


def builds(config: Config) -> list[tuple[Config, str]]:
    """Returns what one seed builds besides the corpus: base runs, scores of units, retrainings."""
    settings = config.truth
    units = [compose(_words("unit", words), ("unit",)).unit for words in settings.units]
    estimators = [
        compose(_words("estimator", words), ("estimator",)).estimator
        for words in settings.estimators
    ]
    scored = [replace(config, unit=u, estimator=e) for u in units for e in estimators]
    first = scored[0]
    runs = [first] * (1 + len(settings.transfer))
    arms = [first] * retrainings(settings)
    return [
        *((one, "base") for one in runs),
        *((one, "scores") for one in scored),
        *((one, "arm") for one in arms),
    ]


def retrainings(settings: TruthConfig) -> int:
    """Returns the arms and controls of the settings; equal sets are trained once."""
    edits = len(settings.edited) * len(settings.estimators) * len(settings.edits)
    elsewhere = len(settings.transfer) * (1 + edits)
    return settings.retrains + settings.subsets * (1 + settings.reruns) + 2 * edits + elsewhere


def fixed_words(words: Sequence[str]) -> list[str]:
    """Returns the command's words that hold for every unit and estimator.

    Raises ConfigError for others.
    """
    for word in words:
        key = word.partition("=")[0].lstrip("+")
        if key.partition(".")[0] in OWN:
            group = key.partition(".")[0]
            raise ConfigError(f"{word} is invalid; expected truth.{group}s=[...], a list of them")
    return [word for word in words if not word.startswith("name=")]


def chosen(fixed: Sequence[str], group: str, words: str) -> Config:
    """Returns the configuration with an option of a group and its settings, from one text."""
    try:
        return compose([*fixed, *_words(group, words)], NEEDS)
    except ConfigError as error:
        raise ConfigError(f"truth.{group}s={words}: {error}") from error


def _words(group: str, words: str) -> list[str]:
    """Returns the command line's words for an option of a group and its settings."""
    option, *settings = words.split()
    return [f"{group}={option}", *(f"{group}.{setting}" for setting in settings)]


def _with_units(bench: Any) -> Any:
    """Returns a benchmark whose units have been found."""
    assert bench.located
    return bench
